"""Curves of a training run as one small picture, drawn with Pillow: no plotting library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_curves"]

WIDTH, PANEL = 800, 240  # pixels of the picture and of each curve's panel
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 30, 30  # margins of a panel
FINE = 2  # drawn so many times as large, then reduced: Pillow's lines are not antialiased
INK, GRID, LINES = "#333333", "#dddddd", ("#1f5fa8", "#c2571a", "#3c8d40", "#8a4fa3")
LOG_SPAN = 20  # a curve that falls to less than 1/20 of its highest value is drawn over a logarithmic axis

Points = Sequence[tuple[float, float]]


def draw_curves(title: str, series: Mapping[str, Points]) -> Image.Image:
    """Return a picture with one panel per series of (step, value); series without points are left out.

    Scores of one unit share a panel.
    """
    drawn = {name: [p for p in points if math.isfinite(p[1])] for name, points in series.items()}
    panels: dict[str, dict[str, Points]] = {}
    for name, points in drawn.items():
        if points:
            panels.setdefault(_unit(name), {})[name] = points
    height = PANEL * max(1, len(panels))
    picture = Image.new("RGB", (WIDTH * FINE, height * FINE), "white")
    last = max((p[0] for points in drawn.values() for p in points), default=1.0)
    for row, (unit, curves) in enumerate(panels.items()):
        _panel(ImageDraw.Draw(picture), row * PANEL, f"{title}: {unit}" if row == 0 else unit, curves, last)
    return picture.resize((WIDTH, height), Image.Resampling.LANCZOS)


def _unit(name: str) -> str:
    if name == "loss":
        return name
    if name.startswith("ssim"):
        return "SSIM-Y"
    return "PSNR-Y, dB" if name.startswith("psnr") else "share of pixels decided rightly"


def _panel(
    draw: ImageDraw.ImageDraw, top: int, title: str, curves: Mapping[str, Points], last: float
) -> None:
    """Draw one panel, its upper edge at `top`: frame, grid, labels, one line per curve."""
    values = [value for points in curves.values() for _, value in points]
    log = min(values) > 0 and max(values) / min(values) > LOG_SPAN
    low, high = _range(values, log)

    def at(step: float, value: float) -> tuple[float, float]:
        part = math.log(value / low) / math.log(high / low) if log else (value - low) / (high - low)
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / max(last, 1)
        return x * FINE, (top + PANEL - BOTTOM - (PANEL - TOP - BOTTOM) * part) * FINE

    small = ImageFont.load_default(12 * FINE)
    for tick in range(5):
        value = low * (high / low) ** (tick / 4) if log else low + (high - low) * tick / 4
        draw.line((at(0, value), at(last, value)), fill=GRID, width=FINE)
        x, y = at(0, value)
        draw.text((x - 6 * FINE, y), f"{value:.4g}", fill=INK, font=small, anchor="rm")
        x, y = at(last * tick / 4, low)
        draw.text((x, y + 6 * FINE), f"{last * tick / 4:,.0f}", fill=INK, font=small, anchor="mt")
    draw.text(
        (LEFT * FINE, (top + TOP / 2) * FINE),
        title,
        fill=INK,
        font=ImageFont.load_default(14 * FINE),
        anchor="lm",
    )
    right = (WIDTH - RIGHT) * FINE
    for colour, (name, points) in zip(LINES * len(curves), curves.items(), strict=False):
        draw.line([at(*p) for p in points], fill=colour, width=2 * FINE, joint="curve")
        if len(points) == 1:
            draw.circle(at(*points[0]), 3 * FINE, fill=colour)
        if len(curves) > 1:
            label = name.replace("_", " ")
            draw.text((right, (top + TOP / 2) * FINE), label, fill=colour, font=small, anchor="rm")
            right -= int(draw.textlength(label, font=small)) + 16 * FINE


def _range(values: Sequence[float], log: bool) -> tuple[float, float]:
    """Return the ends of an axis: a little more than the values."""
    low, high = min(values), max(values)
    if log:
        return low / 1.1, high * 1.1
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - pad, high + pad
