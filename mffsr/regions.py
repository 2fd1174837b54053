"""Regions of a label map: holes, and what is sharp in no frame; found on the whole map, never per tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.compare import FLOOR, UNDECIDED, Detail, detail_window
from mffsr.frames import row_blocks
from mffsr.photo import fill_from_nearest

__all__ = ["Glow", "Labels", "depth_of", "fill_holes", "nearby", "settle_undecided", "undecided_regions"]

Labels = NDArray[np.uint16]  # H×W, index of a frame

UNDECIDED_WIDTH = 0.02  # of the picture's shorter side: narrower strips are borders, not regions
DECIDED = 0.4  # contrasts from here on are a decision even beside such a region, …
RIM = 0.03  # … up to so far from it, of the shorter side
GLOW = 0.04  # of the picture's shorter side: how far a blurred edge shines
FAINT = 0.2  # less than this share of the most detail so near may be nothing but such a glow, …
SHARP = 0.5  # … in a frame with less than this share of it
BLURRED = 0.35  # a frame with less than this share of it blurs things greatly
SMALLEST_REGION = 1e-3  # HF removes regions smaller than this share of the image


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
            (labels == label).view(np.uint8), connectivity=4
        )
        areas = stats[:, cv2.CC_STAT_AREA].astype(np.int64)
        areas[0] = 0  # the background of this label
        largest = max(largest, (int(areas.max()), int(label)))
        keep |= (areas >= smallest)[regions].view(np.uint8)
        del regions
    if not keep.any():
        return np.full_like(labels, largest[1])
    if keep.all():
        return labels
    return _filled_from_nearest(labels, keep == 0, round(smallest**0.5))


def _filled_from_nearest(labels: Labels, unknown: NDArray[np.bool_], near: int) -> Labels:
    """Give each unknown pixel the label of the nearest known one, which is rarely farther than `near` pixels.

    By a few rows at a time and those `near` them, since the search takes eighteen bytes a pixel.
    """
    filled = labels.copy()
    for rows in row_blocks(labels.shape, 18, least=2 * near):
        if not unknown[rows].any():
            continue
        outer = slice(max(0, rows.start - near), rows.stop + near)
        if unknown[outer].all():
            return fill_from_nearest(labels, unknown)[0]
        known, distance = fill_from_nearest(labels[outer], unknown[outer])
        inner = slice(rows.start - outer.start, rows.stop - outer.start)
        if distance[inner].max() >= near:  # what is nearest may lie outside
            return fill_from_nearest(labels, unknown)[0]
        filled[rows] = known[inner]
    return filled


def settle_undecided(labels: Labels, contrast: NDArray[np.float16], glow: NDArray[np.bool_]) -> Labels:
    """Take each region that is sharp in no frame whole from one frame.

    `labels` (H×W) name the frame with most detail, `contrast` (H×W) is between that and the frame with least
    of it, 0…1. Where the contrast is small throughout, no frame stands out from any other, so that any of
    them will do: the region goes to the frame that most of its decided surroundings come from. Its rim, up to
    where the contrast is large, comes from the frames in which the nearest edges are sharpest instead: in
    another one they are blurred, and shine. So does all that is known to be such a `glow` (H×W). Thin strips,
    as between two labels, are left as they are.
    """
    undecided = undecided_regions(contrast) | glow
    if not undecided.any():
        return labels
    blur = detail_window(*labels.shape) // 2 + 1  # by which the detail of an edge reaches into the region
    undecided = _grown(undecided, blur)
    undecided |= _grown(undecided, round(min(labels.shape) * RIM)) & (contrast < DECIDED)
    if undecided.all():
        return np.full_like(labels, np.bincount(labels.ravel()).argmax())
    around, distance = fill_from_nearest(labels, undecided)
    settled: Labels = np.where(undecided, around, labels).astype(np.uint16)
    rim = distance <= 1.5
    inside = distance > min(labels.shape) * GLOW
    count, found = cv2.connectedComponents(undecided.astype(np.uint8), connectivity=4)
    regions = np.asarray(found, np.int32)
    votes = np.zeros((count, int(labels.max()) + 1), np.int64)
    np.add.at(votes, (regions[rim & undecided], settled[rim & undecided]), 1)
    settled[inside] = votes.argmax(1).astype(np.uint16)[regions[inside]]
    return settled


def depth_of(region: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the distance of each of a region's pixels to what is not the region, 0 outside it."""
    found = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.asarray(found, np.float32)


def _grown(region: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Dilate by a disc; unlike OpenCV's dilation, in a time that does not depend on its radius."""
    grown: NDArray[np.bool_] = depth_of(~region) <= radius
    return grown


def undecided_regions(contrast: NDArray[np.float16]) -> NDArray[np.bool_]:
    """Return the regions, but not the thin strips, whose contrast is no more than noise makes."""
    radius = max(3, round(min(contrast.shape) * UNDECIDED_WIDTH / 2))
    return _grown(depth_of(contrast < UNDECIDED) > radius, radius)


def nearby(detail: Detail) -> NDArray[np.float32]:
    """Return the most of a photo's detail (H×W) within `GLOW` of each pixel, on a smaller map."""
    step = max(1, detail_window(*detail.shape) // 6)  # a mean over a window is smooth
    size = tuple(-(-side // step) for side in detail.shape)
    small = cv2.resize(detail.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA)
    reach = 2 * round(min(detail.shape) * GLOW / step) + 1
    found = cv2.dilate(small, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    return np.asarray(found, np.float32)


class Glow(NamedTuple):
    """Where the frames of a bracket may show nothing but the glow of edges that they blur."""

    faint: NDArray[np.bool_]  # H×W: where no frame has much detail, for what there is nearby
    blurs: NDArray[np.uint8]  # N×h×w, smaller: 1 where a frame blurs what is nearby, 2 where greatly

    @classmethod
    def of(cls, most: Detail, contrast: NDArray[np.float16], around: Sequence[NDArray[np.float32]]) -> Glow:
        """Find it by the `most` detail of all frames, H×W, and that `nearby` in each."""
        of_all = np.max(around, 0)
        here = cv2.resize(of_all, most.shape[::-1], interpolation=cv2.INTER_LINEAR)
        here *= FAINT
        faint = (most < here) & (contrast < DECIDED)
        blurs = [(own < SHARP * of_all).astype(np.uint8) + (own < BLURRED * of_all) for own in around]
        return cls(faint, np.stack(blurs))

    def likely(self, detail: Detail) -> NDArray[np.bool_]:
        """Return where a frame of this detail, if it blurs what is nearby, may show glow alone, H×W."""
        found: NDArray[np.bool_] = self.faint | (detail < FLOOR)
        return found

    def blurred(self, index: int, *, greatly: bool = False) -> NDArray[np.bool_]:
        """Return where frame `index` blurs what is nearby, H×W."""
        size = self.faint.shape[::-1]
        blurs = cv2.resize(self.blurs[index], size, interpolation=cv2.INTER_NEAREST)
        return np.asarray(blurs > (1 if greatly else 0), np.bool_)
