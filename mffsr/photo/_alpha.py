"""Colour where a photo is transparent."""

from __future__ import annotations

from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ._decoded import Pixels

__all__ = ["fill_from_nearest", "fill_transparent"]

_Value = TypeVar("_Value", bound=np.generic)


def fill_transparent(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Return H×W×C pixels whose erased ones have the colour of the nearest other: no filter draws a dark rim.

    Erased is what is transparent (`alpha` H×W is 0), if all of it has one colour, as programs leave it. A
    picture under the transparency stays.
    """
    erased = alpha == 0
    under = pixels[erased]
    if not len(under) or erased.all() or (under != under[0]).any():
        return pixels
    return fill_from_nearest(pixels, erased)[0]


def fill_from_nearest(
    values: NDArray[_Value], unknown: NDArray[np.bool_]
) -> tuple[NDArray[_Value], NDArray[np.float32]]:
    """Give each unknown pixel of a map (H×W or H×W×C) the value of the nearest known one.

    Also returns its distance, in pixels. Some pixel must be known.
    """
    distance, nearest = cv2.distanceTransformWithLabels(
        unknown.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    beside = (cv2.dilate(unknown.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & ~unknown
    source = np.zeros((int(nearest.max()) + 1, *values.shape[2:]), values.dtype)
    source[nearest[beside]] = values[beside]
    known = values.copy()
    known[unknown] = source[nearest[unknown]]
    return known, np.asarray(distance, np.float32)
