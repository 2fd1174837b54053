"""From evaluations to what `mffsr eval` delivers: tables, JSON and rows of CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mffsr.cli.evaluate_tables import Line, Sheet
from mffsr.evaluate_scores import Evaluation, finite
from mffsr.metrics import FUSION_KEYS, FusionMetrics
from mffsr.paper_tables import CITATION, LYTRO_PAIRS, TABLE_II, TABLE_III, TABLE_IV, PaperRow, paper_rows
from mffsr.paper_tables import COLUMNS as PAPERS

__all__ = ["Report", "channels_report", "pairs_report", "truth_report"]

COLUMNS = (*PAPERS, *(key for key in FUSION_KEYS if key not in PAPERS))  # the paper's, then what it lacks
SYNTHETIC = (
    "psnr_y",
    "ssim_y",
    "label_accuracy",
    "boundary_accuracy",
    "ceiling_psnr_y",
    "sr_psnr_y",
    "bicubic_psnr_y",
)
LEGEND = (
    "labels: share of rightly chosen frames where the frames differ; at edges: the same within 3 pixels of a "
    "boundary; ceiling: super-resolving the all-in-focus photo itself (dB)"
)
TWO_STEPS = {"SRN, then fusion": "SR-Fusion", "fusion, then SRN": "Fusion-SR"}  # Table III's names


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is delivered."""

    sheets: list[Sheet]
    data: dict[str, Any]  # for JSON
    csv: list[list[str | float | None]]


def channels_report(found: FusionMetrics, title: str) -> Report:
    """One fused photo: each channel and the mean."""
    per_channel, mean = found["per_channel"], found["mean"]
    names = ("R", "G", "B") if len(per_channel["Q_MI"]) == 3 else ("gray",)
    lines = [Line(n, {k: per_channel[k][i] for k in COLUMNS}) for i, n in enumerate(names)]
    lines.append(Line("mean", mean, apart=True))
    data = {
        "per_channel": {key: [finite(v) for v in values] for key, values in per_channel.items()},
        "mean": {key: finite(value) for key, value in mean.items()},
    }
    rows: list[list[str | float | None]] = [["channel", *COLUMNS]]
    rows += [[line.label, *(line.values[key] for key in COLUMNS)] for line in lines]
    return Report(
        sheets=[Sheet(title=title, first="channel", columns=COLUMNS, lines=lines)], data=data, csv=rows
    )


def truth_report(found: Sequence[Evaluation], about: str, settings: Mapping[str, Any]) -> Report:
    """Synthetic brackets: our numbers by image, then the means of all methods.

    `settings`: as in `pairs_report`.
    """
    scale = settings["scale"]
    columns = [key for key in SYNTHETIC if key in found[0].mean]
    sheets = [_images(found[0], columns, f"{found[0].method}, ×{scale}, {about}", LEGEND)]
    if len(found) > 1:
        lines = [_own(other.method, other.mean) for other in found]
        sheets.append(
            Sheet(
                title=f"means at ×{scale} over {about}",
                first="method",
                columns=["psnr_y", "ssim_y"],
                lines=lines,
                compared=True,
            )
        )
    return Report(sheets=sheets, data=_data(found, settings, []), csv=_csv(found))


def pairs_report(
    found: Sequence[Evaluation],
    about: str,
    settings: Mapping[str, Any],
    missing: list[str],
    *,
    ablated: bool = False,
    as_the_paper: bool = True,
) -> Report:
    """Pairs without ground truth: numbers by image, then the means beside the paper's.

    Table IV stands there where ablations were run, and Tables II and III where their images were measured
    by more than one method. `settings`: what the numbers depend on, for JSON, the scale first of all;
    `as_the_paper`: the photos were reduced as the paper does.
    """
    scale = settings["scale"]
    table, rows = paper_rows(scale)
    lines = [_own(other.method, other.mean) for other in found] + _printed(rows)
    if ablated and scale == 2:
        table, lines = f"{table} and Table IV", lines + _printed(TABLE_IV)
    notes = [f"paper: {table} of {CITATION}"] if rows else []
    images = found[0].rows
    if not rows:
        notes.append(f"the paper has no table at ×{scale}")
    elif len(images) != LYTRO_PAIRS or not all(row.name.casefold().startswith("lytro") for row in images):
        notes.append(
            f"the paper's means are over the {LYTRO_PAIRS} pairs of Lytro: not comparable with these"
        )
    if rows and scale > 1 and not as_the_paper:
        notes.append("the paper reduces without antialiasing: not comparable with these")
    means = Sheet(
        title=f"means at ×{scale} over {about}",
        first="method",
        columns=COLUMNS,
        lines=lines,
        notes=notes,
        compared=True,
    )
    sheets = [_images(found[0], COLUMNS, f"{found[0].method}, ×{scale}, {about}"), means]
    if scale == 2 and len(found) > 1:
        sheets += [sheet for name in TABLE_III for sheet in _single(found, name)]
    return Report(sheets=sheets, data=_data(found, settings, missing), csv=_csv(found))


def _single(found: Sequence[Evaluation], name: str) -> list[Sheet]:
    """One image of Tables II and III, if it was measured."""
    lines = [
        _own(TWO_STEPS.get(evaluation.method, evaluation.method), row.values)
        for evaluation in found
        for row in evaluation.rows
        if row.name.casefold() == name
    ]
    if not lines:
        return []
    lines += _printed(TABLE_II[name]) + _printed(TABLE_III[name])
    notes = [f"paper: Tables II and III of {CITATION}"]
    return [
        Sheet(title=f"{name}, ×2", first="method", columns=COLUMNS, lines=lines, notes=notes, compared=True)
    ]


def _printed(rows: Sequence[PaperRow]) -> list[Line]:
    return [
        Line(f"paper: {row.method}", row.by_key, apart=i == 0, rival="(sic)" not in row.method)
        for i, row in enumerate(rows)
    ]


def _own(method: str, values: Mapping[str, float]) -> Line:
    """A line of this run; a source alone is no fusion, but agrees with itself better than any fusion can."""
    return Line(method, values, rival=not method.startswith("source "))


def _data(found: Sequence[Evaluation], settings: Mapping[str, Any], missing: list[str]) -> dict[str, Any]:
    """The settings and first method's numbers; the others' and what is missing where there is any."""
    data = {**settings, **found[0].as_json()}
    if len(found) > 1:
        data["baselines"] = {other.method: other.as_json() for other in found[1:]}
    return data | ({"missing": missing} if missing else {})


def _csv(found: Sequence[Evaluation]) -> list[list[str | float | None]]:
    keys = list(dict.fromkeys(key for evaluation in found for key in evaluation.mean))
    rows: list[list[str | float | None]] = [["method", "image", *keys]]
    for evaluation in found:
        numbers = [(row.name, row.values) for row in evaluation.rows]
        numbers += [("mean", evaluation.mean), *_interval(evaluation, "ci95 low", "ci95 high")]
        rows += [[evaluation.method, name, *(values.get(key) for key in keys)] for name, values in numbers]
    return rows


def _interval(evaluation: Evaluation, low: str, high: str) -> list[tuple[str, dict[str, float]]]:
    ends = evaluation.ci95
    return [(name, {key: pair[i] for key, pair in ends.items()}) for i, name in enumerate((low, high))]


def _images(evaluation: Evaluation, columns: Sequence[str], title: str, *notes: str) -> Sheet:
    """The sheet of single images, their mean and its interval."""
    lines = [Line(row.name, row.values) for row in evaluation.rows]
    lines.append(Line("mean", evaluation.mean, apart=True))
    lines += [Line(name, ends) for name, ends in _interval(evaluation, "95 % from", "95 % to")]
    return Sheet(title=title, first="image", columns=columns, lines=lines, notes=notes)
