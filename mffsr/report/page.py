"""The page of one bracket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mffsr.report.card import Card, card_html
from mffsr.report.html import document, duration, image, name, resource, text
from mffsr.report.pictures import Pictures

__all__ = ["Making", "bracket_page"]

STAGES = {"align": "Reading, registering", "focus": "Finding focus", "enlarge": "Enlarging, fusing"}
COLUMNS = ("", "Photo", "Shift x, y", "Rotation", "Scale", "Exposure", "Match", "Off by", "Share")
MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, kw_only=True)
class Making:
    """How a result came to be, as far as `--json` does not tell."""

    command: str
    device: str
    weights: Sequence[tuple[str, str]]  # file name and sha256
    versions: Mapping[str, str]


def bracket_page(told: Mapping[str, Any], pictures: Pictures, making: Making) -> str:
    """Return the HTML page of a fused bracket. `told` is what `mffsr fuse --json` prints of it."""
    body = "\n".join(
        [
            _header(told),
            "<main>",
            _viewer(told, pictures),
            _focus_map(told, pictures),
            _frames(told, pictures.colours),
            _warnings(told["warnings"]),
            _making(told, making),
            "</main>",
        ]
    )
    card = Card(
        output=told["output"],
        width=told["width"],
        height=told["height"],
        depth=told["depth"],
        photos=len(told["frames"]),
        warnings=len(told["warnings"]),
        seconds=told["seconds"]["total"],
        cover=pictures.cover,
    )
    ratio = f"{pictures.result.width} / {pictures.result.height}"
    style = f".stage {{ aspect-ratio: {ratio}; }}\n"
    return document(
        Path(told["output"]).name, body, head=card_html(card), style=style, script=resource("page.js")
    )


def _header(told: Mapping[str, Any]) -> str:
    frames, source = told["frames"], told["input"]
    facts = [
        f"{len(frames)} photos",
        f"{_size(source)}, {source['depth']} bits → {_size(told)}, {told['depth']} bits",
        "fused" if told["scale"] == 1 else f"fused and enlarged ×{told['scale']}",
        duration(told["seconds"]["total"]),
    ]
    return (
        f'<header><p class="over">Focus bracket</p><h1>{name(told["output"])}</h1>'
        f'<p class="lede">{" <i>·</i> ".join(f"<span>{text(fact)}</span>" for fact in facts)}</p></header>'
    )


def _viewer(told: Mapping[str, Any], pictures: Pictures) -> str:
    """The stage with all pictures; the script shows one pair of them."""
    paths = [frame["path"] for frame in told["frames"]]
    enlarged = "as taken" if told["scale"] == 1 else f"bicubic ×{told['scale']}"
    results = [image(pictures.result, "The fused photo", 'data-view="0"')]
    sources: list[str] = []
    choices, details = [], []
    for index, picture in pictures.sources.items():
        where = f'data-view="0" data-frame="{index}"'
        hidden = "hidden" if sources else ""
        sources.append(image(picture, f"Photo {index + 1}, enlarged by interpolation", f"{where} {hidden}"))
        choices.append(_choice(where, image(pictures.thumbs[index], ""), index, paths[index], not hidden))
    for view, detail in enumerate(pictures.details, 1):
        where = f'data-view="{view}" data-frame="{detail.frame}"'
        results.append(image(detail.result, "Detail of the fused photo", f'data-view="{view}" hidden'))
        sources.append(image(detail.source, f"Detail of photo {detail.frame + 1}", f"{where} hidden"))
        details.append(_choice(where, image(detail.thumb, ""), detail.frame, paths[detail.frame], False))
    strips = f'<div class="strip" role="group" aria-label="Photo to compare with">{"".join(choices)}</div>'
    if pictures.brightened:
        strips += '<p class="note">The photos are dark: here they are shown brighter than they are.</p>'
    if details:
        strips += (
            f'<p class="note">Above, the picture is reduced to {pictures.zoom:.0%} to keep this page small. '
            "These parts are at full size, each with the photo it is taken from:</p>"
            f'<div class="strip" role="group" aria-label="Details at full size">{"".join(details)}</div>'
        )
    return f"""<section class="viewer" aria-label="Before and after">
<div class="stage" id="stage" tabindex="0" role="group" aria-label="Comparison: drag to wipe, scroll to zoom">
<div class="layer" id="results">{"".join(results)}</div>
<div class="layer" id="sources">{"".join(sources)}</div>
<div class="divider" id="divider" role="slider" tabindex="0" aria-label="Wipe between photo and result"
 aria-valuemin="0" aria-valuemax="100" aria-valuenow="50"><b></b></div>
<p class="tag left"><span id="before"></span> <i>{text(enlarged)}</i></p><p class="tag right">mffsr</p>
</div>
<div class="bar">
<div class="zooms" role="group" aria-label="Zoom">
<button type="button" data-zoom="0" aria-pressed="true">Fit</button>
<button type="button" data-zoom="1" aria-pressed="false">100 %</button>
<button type="button" data-zoom="3" aria-pressed="false">300 %</button></div>
<p class="keys"><kbd>←</kbd> <kbd>→</kbd> wipe <i>·</i> <kbd>0</kbd> <kbd>1</kbd> <kbd>3</kbd> zoom <i>·</i>
<kbd>[</kbd> <kbd>]</kbd> photo <i>·</i> hold <kbd>space</kbd> photo alone</p>
<button type="button" id="full">Full screen</button></div>
{strips}</section>"""


def _choice(where: str, thumb: str, index: int, path: str, chosen: bool) -> str:
    state = f'aria-pressed="{str(chosen).lower()}" data-name="{text(Path(path).name)}"'
    return f'<button type="button" {where} {state}>{thumb}<span>{index + 1} {name(path)}</span></button>'


def _focus_map(told: Mapping[str, Any], pictures: Pictures) -> str:
    legend = []
    for index, frame in enumerate(told["frames"]):
        colour = pictures.colours[index]
        legend.append(
            f'<li><button type="button" aria-pressed="false" data-colour="{colour}">{_swatch(colour)}'
            f"<span>{index + 1} {name(frame['path'])}</span><b>{frame['share']:.1%}</b></button></li>"
        )
    return f"""<section class="map"><h2>Focus map</h2>
<div class="columns"><figure><div class="overlay" id="map">
{image(pictures.ground, "")}
{image(pictures.labels, "Which photo each part is taken from", 'id="labels"')}</div>
<figcaption>Each colour is the photo that this part of the picture is taken from.
Undecided, as plain or as sharp in all photos: {told["undecided"]:.1%} of the picture.</figcaption></figure>
<ol class="legend" aria-label="Legend">{"".join(legend)}</ol></div></section>"""


def _swatch(colour: str) -> str:
    square = f'<rect width="1" height="1" fill="{colour}"/>'
    return f'<svg class="swatch" viewBox="0 0 1 1" aria-hidden="true">{square}</svg>'


def _frames(told: Mapping[str, Any], colours: Sequence[str]) -> str:
    largest = max(frame["share"] for frame in told["frames"])
    rows = [_row(index, frame, colours[index], largest) for index, frame in enumerate(told["frames"])]
    head = "".join(f'<th scope="col">{column}</th>' for column in COLUMNS)
    return f"""<section><h2>Photos</h2>
<table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>
<p class="note">Match: correlation of what photo and reference show, at best 1. Off by: what registration
left, in pixels. Scale: of the field of view, which changes with focus.</p></section>"""


def _row(index: int, frame: Mapping[str, Any], colour: str, largest: float) -> str:
    reference = ' <span class="badge">reference</span>' if frame.get("reference") else ""
    first = f"{_swatch(colour)}<span>{index + 1}</span>"
    if "dropped" in frame:
        cells = [f'<td data-label="" colspan="7">left out: {text(frame["dropped"])}</td>']
    else:
        values = _registered(frame) if "shift" in frame else ["not registered", "", "", "", "", ""]
        values.append(f'<span class="share">{_bar(frame["share"] / largest)}{frame["share"]:.1%}</span>')
        cells = [
            f'<td data-label="{label}">{value}</td>' if value else "<td></td>"  # which narrow pages hide
            for label, value in zip(COLUMNS[2:], values, strict=True)
        ]
    return (
        f'<tr><td class="number">{first}</td><th scope="row">{name(frame["path"])}{reference}</th>'
        f"{''.join(cells)}</tr>"
    )


def _registered(frame: Mapping[str, Any]) -> list[str]:
    x, y = frame["shift"]
    return [
        f"{_signed(x, 2)}, {_signed(y, 2)} px",
        f"{_signed(frame['rotation'], 3)}°",
        f"{frame['scale']:.4f}",
        f"{_signed(frame['exposure'], 2)} EV",
        f"{frame['ecc']:.3f}",
        "–" if frame["residual"] is None else f"{frame['residual']:.1f} px",
    ]


def _bar(share: float) -> str:
    return (
        '<svg class="measure" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="all" width="100" height="1"/><rect width="{100 * share:.1f}" height="1"/></svg>'
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{text(warning)}</li>" for warning in warnings)
    return f'<section class="warnings"><h2>Warnings</h2><ul>{items}</ul></section>'


def _making(told: Mapping[str, Any], making: Making) -> str:
    seconds = told["seconds"]
    total = max(seconds["total"], 1e-9)
    stages = {label: seconds[stage] for stage, label in STAGES.items() if stage in seconds}
    stages["Loading, writing"] = max(0.0, total - sum(stages.values()))
    times = "".join(
        f"<dt>{label}</dt><dd>{_bar(spent / total)}<span>{duration(spent)}</span></dd>"
        for label, spent in stages.items()
    )
    weights = "".join(
        f"<dt>{text(file)}</dt><dd><code>{text(digest)}</code></dd>" for file, digest in making.weights
    )
    versions = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in making.versions.items())
    return f"""<section><h2>How it was made</h2>
<pre tabindex="0"><code>{text(making.command)}</code></pre>
<div class="columns three">
<div><h3>Time</h3><dl class="times">{times}
<dt>All</dt><dd><span></span><span>{duration(total)}</span></dd></dl></div>
<div><h3>Program</h3><dl>{versions}<dt>device</dt><dd>{text(making.device)}</dd></dl></div>
<div><h3>Weights, sha256</h3><dl class="stacked">{weights}</dl></div></div></section>"""


def _size(of: Mapping[str, Any]) -> str:
    return f"{of['width']} × {of['height']}"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", MINUS)
