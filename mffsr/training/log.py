"""What a run's folder keeps of a stage's course: a table (CSV), and its curve as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from mffsr.checkpoint import write_file
from mffsr.training.curve import draw_curves

__all__ = ["COLUMNS", "Log"]

COLUMNS = ("step", "loss", "rate", "seconds", "images_per_second", "data_share", "gpu_busy")


class Log:
    """The CSV of one stage, appended to row by row, and the PNG beside it."""

    def __init__(self, path: Path, scores: tuple[str, ...]) -> None:
        self.path, self.columns = path, (*COLUMNS, *scores)
        self.rows: list[dict[str, str]] = []

    def begin(self, step: int) -> None:
        """Start the table, or with `step` > 0 go on after that step: what came later is done anew."""
        if step and self.path.exists():
            with self.path.open(newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if _number(row.get("step")) <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        write_file(self.path, text.getvalue().encode())

    def add(self, values: Mapping[str, float | None]) -> None:
        """Append a row; what is None or missing stays empty."""
        row = {name: f"{value:.7g}" for name, value in values.items() if value is not None}
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def draw(self, title: str) -> None:
        """Write the picture of all rows: the loss, and below it the scores of the validations."""
        series = {name: self._series(name) for name in ("loss", *self.columns[len(COLUMNS) :])}
        picture = io.BytesIO()
        draw_curves(title, series).save(picture, "PNG", optimize=True)
        write_file(self.path.with_suffix(".png"), picture.getvalue())

    def _series(self, column: str) -> list[tuple[float, float]]:
        return [(_number(row["step"]), _number(row[column])) for row in self.rows if row.get(column)]


def _number(text: str | None) -> float:
    """Return the number in a cell; infinity where a killed run left half a row."""
    try:
        return float(text or "inf")
    except ValueError:
        return float("inf")
