"""Which frame is in focus where: the label map of a bracket of N frames.

    frames ── winner so far against the next (`mffsr.compare`) ── labels ── HF on the whole map ── labels

The paper decides between two photos. More are folded: the composite of the winners so far is compared with
the next frame, and is complete before the next comparison begins, so the map does not depend on the tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.compare import TIE, compare
from mffsr.device import Runtime
from mffsr.frames import Frame, row_blocks
from mffsr.model import JointModel
from mffsr.photo import Pixels

__all__ = ["FocusMap", "Labels", "decide_focus", "fill_holes", "preview", "settle_undecided"]

Labels = NDArray[np.uint16]  # H×W, index of a frame

UNDECIDED_WINDOW = 9  # pixels over which the margins are averaged
UNDECIDED_WIDTH = 0.02  # of the picture's shorter side: narrower strips are borders, not regions
SMALLEST_REGION = 1e-3  # HF removes regions smaller than this share of the image


class FocusMap(NamedTuple):
    """The decision for a whole bracket."""

    labels: Labels  # H×W uint16: index of the frame each pixel is taken from
    confidence: NDArray[np.uint8]  # H×W: |M1 − M2| of the decision, 0…255
    clearest: NDArray[np.uint8]  # H×W: the largest |M1 − M2| of all comparisons, 0…255
    tiles_run: int = 0  # tiles of full resolution that went through FAPN
    tiles_all: int = 0  # the same if it ran everywhere


def decide_focus(
    model: JointModel,
    frames: Sequence[Frame],
    runtime: Runtime,
    *,
    tile: int,
    tie: Literal["first", "last"] | None = None,
    adaptive: bool = True,
    seen: Callable[[int], NDArray[np.bool_]] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> FocusMap:
    """Return the label map and confidence of frames of one size, before hole filling.

    `tile` is the side of a tile's core in pixels; it changes memory and time, not the result.
    Where a decision is less clear than `TIE`, `tie` gives the pixel to the first or the last of the frames
    that tie. `seen(i)` (H×W) is where frame i has pixels of its own, if frames do not cover the picture.
    `adaptive`: see `mffsr.compare`. `progress` is given tiles done, and all of them.
    """
    height, width = frames[0].shape[:2]
    labels = np.zeros((height, width), np.uint16)
    confidence = np.full((height, width), 255, np.uint8)
    clearest = np.zeros((height, width), np.uint8)
    composite: Frame = frames[0]
    known_to = seen(0) if seen is not None else np.empty(0, np.bool_)
    run = every = 0
    for index in range(1, len(frames)):

        def told(done: int, total: int, before: int = index - 1) -> None:
            progress(before * total + done, (len(frames) - 1) * total)

        compared = compare(
            model, composite, frames[index], runtime, tile=tile, adaptive=adaptive, progress=told
        )
        run, every = run + compared.tiles_run, every + compared.tiles_all
        margin = np.abs(compared.margin).astype(np.uint8)
        wins = compared.margin > 0
        if tie is not None:
            wins = np.where(margin < TIE, tie == "last", wins)
        confidence = np.where(wins, margin, np.minimum(confidence, margin))
        clearest = np.maximum(clearest, margin)
        if seen is not None:
            own = seen(index)
            wins = own & (wins | ~known_to)
            known_to |= own
        labels[wins] = index
        if index + 1 < len(frames):
            composite = _paste(composite, frames[index], wins, own=index > 1)
    return FocusMap(labels, confidence, clearest, run, every)


def _paste(composite: Frame, frame: Frame, wins: NDArray[np.bool_], *, own: bool) -> Pixels:
    """Return the composite with the frame where it wins, by a few rows; in place where it is our `own`."""
    if own and isinstance(composite, np.ndarray):
        out: Pixels = composite
    else:
        out = np.empty(composite.shape, composite.dtype)
    for rows in row_blocks(composite.shape, composite.dtype.itemsize):
        part = (rows, slice(None))
        out[part] = np.where(wins[part][:, :, None], frame[part], composite[part])
    return out


def fill_holes(labels: Labels, share: float = SMALLEST_REGION) -> Labels:
    """HF, equation (14): give connected regions smaller than `share` of the image to what surrounds them.

    Works on the whole map and on every label alike (holes and islands). With N labels in use the smallest
    region kept is 2/N of that, since every frame's share of the picture is smaller.
    """
    used = np.unique(labels)
    if len(used) < 2:
        return labels
    smallest = share * labels.size * 2 / len(used)
    keep = np.zeros(labels.shape, np.uint8)
    largest = (0, 0)  # area and label of the largest region
    for label in used:
        _, regions, stats, _ = cv2.connectedComponentsWithStats(
            (labels == label).astype(np.uint8), connectivity=4
        )
        areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
        areas[0] = 0  # the background of this label
        largest = max(largest, (int(areas.max()), int(label)))
        keep |= (areas >= smallest)[regions].astype(np.uint8)
    if not keep.any():
        return np.full_like(labels, largest[1])
    if keep.all():
        return labels
    # Every pixel of a small region takes the label of the nearest pixel of a region that stays.
    _, nearest = cv2.distanceTransformWithLabels(
        1 - keep, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    source = np.zeros(int(nearest.max()) + 1, np.uint16)
    source[nearest[keep == 1]] = labels[keep == 1]
    filled: Labels = np.where(keep == 1, labels, source[nearest]).astype(np.uint16)
    return filled


def settle_undecided(labels: Labels, clearest: NDArray[np.uint8]) -> tuple[Labels, float]:
    """Take each region that is sharp in no frame whole from one frame; return the labels and its share, 0…1.

    `clearest` (H×W) is the largest margin of all comparisons. Where it is small throughout, no frame stood
    out from any other there, so that any of them will do: the region goes to the frame that most of its
    decided surroundings come from. Thin strips, as between two labels, are left as they are.
    """
    smooth = cv2.boxFilter(clearest, -1, (UNDECIDED_WINDOW, UNDECIDED_WINDOW))
    radius = max(3, round(min(labels.shape) * UNDECIDED_WIDTH / 2))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    undecided = cv2.morphologyEx((smooth < TIE).astype(np.uint8), cv2.MORPH_OPEN, disc)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(undecided, connectivity=4)
    settled = labels.copy()
    (height, width), reach = labels.shape, UNDECIDED_WINDOW  # averaging takes half a window off a region
    for region in range(1, count):
        x, y, w, h = (int(v) for v in stats[region, :4])
        part = (
            slice(max(0, y - reach), min(height, y + h + reach)),
            slice(max(0, x - reach), min(width, x + w + reach)),
        )
        own = (regions[part] == region).astype(np.uint8)
        ring = (cv2.dilate(own, np.ones((2 * reach + 1,) * 2, np.uint8)) > own) & (clearest[part] >= TIE)
        around = labels[part][ring] if ring.any() else labels[part][own > 0]
        settled[part][own > 0] = np.bincount(around).argmax()
    return settled, float(undecided.mean())


def preview(labels: Labels, count: int) -> NDArray[np.uint8]:
    """Return the label map as colours, H×W×3: hues from red (first frame) to violet (last)."""
    hue = np.linspace(0, 140, count).astype(np.uint8)  # OpenCV's hues end at 180
    hsv = np.stack((hue, np.full(count, 190, np.uint8), np.full(count, 235, np.uint8)), 1)[None]
    colours = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0]
    chosen: NDArray[np.uint8] = colours[labels]
    return chosen
