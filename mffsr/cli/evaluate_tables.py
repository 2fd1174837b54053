"""Tables of `mffsr eval`: as plain text, for a terminal, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Line", "Sheet", "shown", "to_csv", "to_latex", "to_text"]

HEADINGS = {
    "psnr_y": "PSNR-Y",
    "ssim_y": "SSIM-Y",
    "label_accuracy": "labels",
    "boundary_accuracy": "at edges",
    "ceiling_psnr_y": "ceiling",
    "sr_psnr_y": "SR alone",
    "bicubic_psnr_y": "bicubic",
}
ESCAPES = {
    "\\": r"\textbackslash{}",
    **{c: "\\" + c for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "–": "--",
    "∞": r"$\infty$",
}


@dataclass(frozen=True)
class Line:
    """One row: a label and numbers by column."""

    label: str
    values: Mapping[str, float]
    apart: bool = False  # set off from the line before
    rival: bool = True  # False: no fusion, or printed in error; never marked as the best


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """One table."""

    title: str
    first: str  # heading of the labels
    columns: Sequence[str]
    lines: Sequence[Line]
    notes: Sequence[str] = ()
    compared: bool = False  # the lines are rivals: LaTeX sets the best of each column in bold

    def cells(self, line: Line) -> list[str]:
        """The line as text, label first."""
        return [line.label, *(shown(key, line.values.get(key)) for key in self.columns)]

    @property
    def head(self) -> list[str]:
        """The headings as text."""
        return [self.first, *(HEADINGS.get(key, key) for key in self.columns)]


def shown(key: str, value: float | None) -> str:
    """Return a number as tables show it: dB with two digits, all else with four."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if "psnr" in key else f"{value:.4f}"


def to_text(sheets: Iterable[Sheet]) -> str:
    """Return the tables for stdout: drawn on a terminal that is wide enough, else aligned plain text."""
    drawn = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return "\n\n".join(_drawn(sheet) if drawn else _plain(sheet) for sheet in sheets)


def _plain(sheet: Sheet) -> str:
    rows = [sheet.head, *(sheet.cells(line) for line in sheet.lines)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = [
        "  ".join(
            [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        )
        for cells in rows
    ]
    rule = "-" * len(texts[0])
    body = [
        part
        for line, text in zip(sheet.lines, texts[1:], strict=True)
        for part in ([rule] if line.apart else []) + [text.rstrip()]
    ]
    return "\n".join([sheet.title, texts[0], rule, *body, *sheet.notes])


def _drawn(sheet: Sheet) -> str:
    import rich.box
    import rich.console
    import rich.table
    from rich.text import Text

    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, heading in enumerate(sheet.head):
        table.add_column(Text(heading), justify="right" if index else "left", no_wrap=True)
    for line in sheet.lines:
        if line.apart:
            table.add_section()
        table.add_row(*(Text(cell) for cell in sheet.cells(line)))
    width = shutil.get_terminal_size().columns
    if rich.console.Console(width=1000).measure(table).maximum > width:
        return _plain(sheet)  # cut off nothing
    out = io.StringIO()
    rich.console.Console(file=out, force_terminal=True, width=width).print(table, end="")
    return "\n".join([sheet.title, out.getvalue().strip("\n"), *sheet.notes])


def to_csv(rows: Iterable[Sequence[str | float | None]]) -> str:
    """Return rows as CSV; numbers in full, what is not finite as an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow("" if isinstance(v, float) and not math.isfinite(v) else v for v in row)
    return out.getvalue()


def to_latex(sheets: Iterable[Sheet]) -> str:
    """Return each table as a tabular environment, its title and notes as comments."""
    return "\n".join(_latex(sheet) for sheet in sheets)


def _latex(sheet: Sheet) -> str:
    best = {
        key: max(
            (v for line in sheet.lines if line.rival and not math.isnan(v := line.values.get(key, math.nan))),
            default=math.nan,
        )
        for key in sheet.columns
    }
    # A line break in a folder's name would end the comment, and the rest be LaTeX.
    lines = [f"% {' '.join(text.splitlines())}" for text in (sheet.title, *sheet.notes)]
    lines += [rf"\begin{{tabular}}{{l{'c' * len(sheet.columns)}}}", r"\hline"]
    heads = [_escaped(sheet.first), *(_heading(key) for key in sheet.columns)]
    lines += [" & ".join(heads) + r" \\", r"\hline"]
    for line in sheet.lines:
        cells = [_escaped(cell) for cell in sheet.cells(line)]
        if sheet.compared:
            for index, key in enumerate(sheet.columns, 1):
                if line.rival and line.values.get(key) == best[key]:
                    cells[index] = rf"\textbf{{{cells[index]}}}"
        lines += ([r"\hline"] if line.apart else []) + [" & ".join(cells) + r" \\"]
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def _heading(key: str) -> str:
    if key.startswith("Q_"):
        return rf"$Q_{{\mathrm{{{key[2:]}}}}}$"
    return _escaped(HEADINGS.get(key, key))


def _escaped(text: str) -> str:
    return "".join(ESCAPES.get(c, c) for c in text)
