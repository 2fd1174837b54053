"""Rims of what is in front, which FAPN gives to the photo focused behind where blur is wide.

    photo focused in front:   ░░░░░░░░░░│             plain up to its edge
    photo focused behind:     ░░░░▒▒▒▒▓▓▓▓▓▓▓▓▓▓      what is behind shows through the blur, before the edge

Seen through a blur wider than those it has learned from, detail behind wins against a plain rim. Two things
know better. The edge is sharp in the photo focused in front, so that a watershed of it (Meyer's, as OpenCV
has it) which sets out from both sides meets there; and on smaller copies the blur is narrower. What FAPN
gives to the photo focused behind becomes that of the other where the watershed says so, and FAPN itself on
both of two copies. Nothing is given to the photo focused behind. Labels are H×W as in `mffsr.focus_map`.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.compare import SMALLEST_SIDE, compare, mask_at, reduced
from mffsr.device import Runtime
from mffsr.frames import Frame
from mffsr.model import JointModel
from mffsr.photo import Pixels
from mffsr.regions import Labels, depth_of

__all__ = ["rims"]

Mask = NDArray[np.bool_]  # H×W

SIDE = 512  # pixels of a copy's shorter side that the figures below are made for; it has up to twice as many
CORE = 8.0  # pixels: so far inside what is labelled near it is …
BEYOND = 16.0  # … and so far outside it is not
THIN = 1.5  # pixels from edge to middle: of what is near and as thin as that the middle may be chance
NARROW = 3.0  # the same of a gap before what is behind; a wider one is no rim on both sides
SMOOTH = 0.7  # σ in pixels of a Gaussian, against noise


def rims(
    model: JointModel, frames: Sequence[Frame], labels: Labels, near: int, runtime: Runtime, *, tile: int
) -> Mask:
    """Return where pixels of the other photo of a pair belong to frame `near`, which is focused in front.

    `tile` is the side of a tile's core in pixels; it does not change the result. Pictures with less than
    `SMALLEST_SIDE` pixels on a side, of which no copy shows enough, have none.
    """
    shorter = min(labels.shape)
    if shorter < SMALLEST_SIDE:
        return np.zeros(labels.shape, np.bool_)
    level = max(0, (shorter // SIDE).bit_length() - 1)
    view: Pixels = reduced(frames[near], level)[slice(None), slice(None)]
    size = (view.shape[1], view.shape[0])
    is_near = (labels == near).astype(np.uint8) * 255
    own = cv2.resize(is_near, size, interpolation=cv2.INTER_AREA) >= 128
    found = _flooded(view, own, shorter / 2**level / SIDE) & ~own
    for coarser in (level + 2, level + 1):
        if not found.any():
            return np.zeros(labels.shape, np.bool_)
        one, other = (reduced(frame, coarser) for frame in frames)
        where = mask_at(found, (one.shape[0], one.shape[1]))
        margin = compare(model, one, other, runtime, tile=tile, where=where).margin
        margin = np.asarray(cv2.resize(margin, size, interpolation=cv2.INTER_LINEAR), np.int16)
        found &= margin > 0 if near else margin < 0
    full = labels.shape[::-1]
    grown = cv2.resize((own | found).astype(np.uint8) * 255, full, interpolation=cv2.INTER_LINEAR) >= 128
    around = cv2.dilate(found.astype(np.uint8), np.ones((3, 3), np.uint8))
    there: Mask = grown & (cv2.resize(around, full, interpolation=cv2.INTER_NEAREST) > 0) & (labels != near)
    return there


def _flooded(view: Pixels, near: Mask, unit: float) -> Mask:
    """Return what is near by the edges in `view`, H×W×C, which is focused on it: `near` is where about.

    `unit` is by how much the picture is larger than the figures are made for.
    """
    inside, outside = depth_of(near), depth_of(~near)
    markers = np.zeros(near.shape, np.int32)
    markers[outside > BEYOND * unit] = 2
    markers[_middle(outside) & (outside > NARROW * unit)] = 2
    markers[inside > CORE * unit] = 1
    markers[_middle(inside) & (inside > THIN)] = 1
    levels = cv2.convertScaleAbs(view, alpha=1 / 257) if view.dtype == np.uint16 else view
    smooth = cv2.GaussianBlur(levels, (0, 0), SMOOTH).reshape(view.shape)
    # OpenCV takes the outermost pixels for boundaries.
    image = np.pad(np.broadcast_to(smooth, (*near.shape, 3)), ((1, 1), (1, 1), (0, 0)), mode="edge")
    flooded: Mask = cv2.watershed(image, np.pad(markers, 1, mode="edge"))[1:-1, 1:-1] == 1
    return flooded


def _middle(depth: NDArray[np.float32]) -> Mask:
    """Return the ridge of a distance: the pixels from which it falls to all sides."""
    middle: Mask = depth >= cv2.dilate(depth, np.ones((3, 3), np.uint8)) - np.float32(1e-3)
    return middle
