"""Colour where a photo is transparent."""

from __future__ import annotations

import cv2
import numpy as np

from ._decoded import Pixels

__all__ = ["fill_transparent"]


def fill_transparent(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Return H×W×C pixels whose erased ones have the colour of the nearest other: no filter draws a dark rim.

    Erased is what is transparent (`alpha` H×W is 0), if all of it has one colour, as programs leave it. A
    picture under the transparency stays.
    """
    erased = alpha == 0
    under = pixels[erased]
    if not len(under) or erased.all() or (under != under[0]).any():
        return pixels
    _, nearest = cv2.distanceTransformWithLabels(
        erased.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    rim = (cv2.dilate(erased.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & ~erased
    colours = np.zeros((int(nearest.max()) + 1, pixels.shape[2]), pixels.dtype)
    colours[nearest[rim]] = pixels[rim]
    full = pixels.copy()
    full[erased] = colours[nearest[erased]]
    return full
