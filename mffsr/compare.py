"""Which of two photographs is in focus where, decided on a pyramid of resolutions.

    level 2 (1/4) ─ FAPN everywhere ─ margin ─ settled? ─ level 1 (1/2) ─ FAPN where not ─ … ─ level 0

A flat wall or a large blur disc is wider than the network's reach on a large photograph, but not on a small
copy of it. The coarse levels therefore decide wherever they are sure; the fine ones run only on tiles where
the coarse ones are not, or where a boundary passes, and where one photo has more detail than the other: the
network always decides, in a dark background by its noise. What a level says of a pixel does not depend on
the tiles, so the result does not either; of each tile only rectangles that hold all doubt are run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mffsr.device import Runtime
from mffsr.errors import MffsrError
from mffsr.frames import Frame, row_blocks
from mffsr.model import JointModel
from mffsr.model.blocks import start_of
from mffsr.photo import Pixels
from mffsr.tiles import Tile, covering, tiles

__all__ = [
    "FLOOR",
    "SMALLEST_SIDE",
    "TIE",
    "UNDECIDED",
    "Comparison",
    "Detail",
    "compare",
    "contrast",
    "detail",
    "detail_window",
    "levels",
    "mask_at",
    "reduced",
    "to_tensor",
]

Margin = NDArray[np.int16]
Detail = NDArray[np.float16]

TIE = 26  # margins (of 255) below this are a tie
CLEAR = 128  # margins from here on settle a pixel, if …
NEAR = 8  # … all those within so many pixels, of the coarse level, say the same
SMALLEST_SIDE = 384  # pixels: a level's shorter side, at least
UNDECIDED = 0.15  # contrasts of detail below this are within what noise does
DETAIL_WINDOW = 0.015  # of the shorter side, at least …
LEAST_WINDOW = 15  # … so many pixels: over which detail is averaged
FLOOR = 1.0  # levels of 255: less detail than this is none


class Comparison(NamedTuple):
    """Two photographs compared."""

    margin: Margin  # H×W: 255 · (M2 − M1), positive where photo 2 is in focus
    tiles_run: int  # tiles of the finest level that went through FAPN
    tiles_all: int


def to_tensor(pixels: Pixels, runtime: Runtime) -> Tensor:
    """Return pixels (H, W, 1 or 3) as an image (1, 3, H, W) in [0, 1], float32, channels last."""
    own = np.array(pixels)
    if own.dtype == np.uint16:  # few devices know it
        values = torch.from_numpy(own.view(np.int16)).to(runtime.device).to(torch.int32) & 0xFFFF
    else:
        values = torch.from_numpy(own).to(runtime.device)
    image = values.to(torch.float32).div_(np.iinfo(own.dtype).max).permute(2, 0, 1)[None]
    return image.expand(1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def levels(height: int, width: int) -> int:
    """Return how many coarse levels a picture has: each halves it, down to `SMALLEST_SIDE`."""
    return max(0, (min(height, width) // SMALLEST_SIDE).bit_length() - 1)


def compare(
    model: JointModel,
    photo1: Frame,
    photo2: Frame,
    runtime: Runtime,
    *,
    tile: int,
    where: NDArray[np.bool_] | None = None,
    differs: NDArray[np.float16] | None = None,
    adaptive: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Comparison:
    """Compare two photographs H×W×C of one size.

    `tile` is the side of a tile's core in pixels; it changes memory and time, not the result. Pixels not in
    `where` (H×W) need no decision; their margin means nothing. `differs` is the `contrast` of the two
    photographs' detail (H×W), if it is known already. Without `adaptive` every level runs everywhere, and a
    coarse one counts only where the finer ones see a tie, or no detail. `progress` is given the tiles of the
    finest level that are done, and all of them.
    """
    top = levels(*photo1.shape[:2])
    config = model.fapn.config
    start = start_of(runtime.device)
    margin: Margin = np.zeros((1, 1), np.int16)
    shown = np.zeros((1, 1), np.bool_)
    run, plan = 0, list[Tile]()
    for level in range(top, -1, -1):
        pair = (reduced(photo1, level), reduced(photo2, level))
        size = (pair[0].shape[0], pair[0].shape[1])
        doubt = np.ones(size, np.bool_)
        if adaptive and level < top:
            settled = _settled(margin, shown).astype(np.uint8)
            doubt = cv2.resize(settled, size[::-1], interpolation=cv2.INTER_NEAREST) == 0
        margin = np.asarray(cv2.resize(margin, size[::-1], interpolation=cv2.INTER_LINEAR), np.int16)
        if top:
            known = differs if level == 0 else None
            shown = (contrast(*map(detail, pair)) if known is None else known) >= UNDECIDED
        if level < top:
            near = np.ones((detail_window(*size),) * 2, np.uint8)
            doubt &= cv2.dilate(shown.astype(np.uint8), near) > 0
        if where is not None:
            doubt &= mask_at(where, size) if level else where
        plan = list(tiles(*size, tile, config.halo, grid=config.sam_window))
        run = 0
        for done, whole in enumerate(plan, 1):
            parts = [whole]
            if adaptive or where is not None:
                parts = covering(
                    whole.core,
                    doubt,
                    config.halo,
                    config.sam_window,
                    mean_halo=config.mean_reach,
                    start=start,
                )
            run += bool(parts)
            for part in parts:
                found = _margin(model, pair, part, runtime)
                counts = doubt[part.core]  # what else the rectangle holds depends on where tiles begin
                if level < top:
                    counts = counts & (np.abs(found) >= TIE)
                margin[part.core] = np.where(counts, found, margin[part.core])
            if level == 0:
                progress(done, len(plan))
    return Comparison(margin, run, len(plan))


def reduced(photo: Frame, level: int) -> Frame:
    """Return the photograph at 1/2^level of its size, each pixel the mean of those it stands for."""
    if level == 0:
        return photo
    step = 1 << level
    height, width, channels = photo.shape
    out = np.empty((-(-height // step), -(-width // step), channels), photo.dtype)
    block = max(step, next(row_blocks(photo.shape, photo.dtype.itemsize)).stop // step * step)
    for top in range(0, height, block):
        rows = photo[slice(top, min(top + block, height)), slice(None)]
        target = slice(top // step, -(-min(top + block, height) // step))
        small = cv2.resize(rows, (out.shape[1], target.stop - target.start), interpolation=cv2.INTER_AREA)
        out[target] = small.reshape(-1, out.shape[1], channels)
    return out


def mask_at(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask at a coarser level's size (height, width): all pixels that stand for any of its own."""
    small = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.dilate(small, np.ones((3, 3), np.uint8)) > 0)


def _settled(margin: Margin, shown: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where a level is sure: its margin is clear, and so are all around it, with the same winner."""
    window = np.ones((2 * NEAR + 1,) * 2, np.uint8)
    clear = np.where(shown, margin, 0).astype(np.int16)
    settled: NDArray[np.bool_] = (cv2.erode(clear, window) >= CLEAR) | (cv2.dilate(clear, window) <= -CLEAR)
    return settled


def detail(photo: Frame) -> Detail:
    """Return how much detail a photo H×W×C has around each pixel, H×W, in 8-bit levels.

    The mean over a window of the Laplacian's magnitude, after a slight blur: noise differs between frames
    that were resampled differently.
    """
    height, width, channels = photo.shape
    window = detail_window(height, width)
    margin = window // 2 + 6
    unit = 257 if photo.dtype == np.uint16 else 1
    out = np.empty((height, width), np.float16)
    for rows in row_blocks(photo.shape, 4, least=8 * margin):
        outer = slice(max(0, rows.start - margin), min(height, rows.stop + margin))
        block = photo[outer, slice(None)].astype(np.float32)
        gray = cv2.transform(block, np.full((1, channels), 1 / (channels * unit), np.float32))
        edges = np.abs(cv2.Laplacian(cv2.GaussianBlur(gray, (0, 0), 1.2), cv2.CV_32F))
        inner = slice(rows.start - outer.start, rows.stop - outer.start)
        out[rows] = cv2.blur(edges, (window, window))[inner]
    return out


def contrast(first: Detail, second: Detail) -> NDArray[np.float16]:
    """Return how much more detail one has than the other, |d1 − d2| / (d1 + d2), 0 (as much) … 1."""
    found = np.empty(first.shape, np.float16)
    for rows in row_blocks(first.shape, 4):
        one, other = (x[rows].astype(np.float32) for x in (first, second))  # the processor knows no float16
        found[rows] = np.abs(one - other) / (one + other + FLOOR)
    return found


def detail_window(height: int, width: int) -> int:
    """Return the side, in pixels, of the window over which detail is averaged."""
    return max(LEAST_WINDOW, round(min(height, width) * DETAIL_WINDOW)) | 1


def _margin(model: JointModel, pair: tuple[Frame, Frame], part: Tile, runtime: Runtime) -> Margin:
    """Return 255 · (M2 − M1) of a tile's core, rounded away from zero so that the sign is kept."""
    image1, image2 = (to_tensor(photo[part.outer], runtime) for photo in pair)
    with torch.inference_mode(), runtime.autocast():
        maps = model.focus(image1, image2, part.inner)
        difference = (maps.m2 - maps.m1)[0, 0]
        if not math.isfinite(float(difference.sum())):
            raise MffsrError(
                "the focus map is not finite: damaged weights, or a precision too low for them\n"
                "try --precision fp32"
            )
        found: Margin = (difference.sign() * (difference.abs() * 255).ceil()).to(torch.int16).cpu().numpy()
    return found
