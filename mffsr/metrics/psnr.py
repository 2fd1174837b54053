"""PSNR: peak signal-to-noise ratio of an image against its reference."""

from __future__ import annotations

import math

from mffsr.metrics._common import PEAK, AnyImage, prepare_pair


def psnr(reference: AnyImage, image: AnyImage, *, luma: bool = False, border: int = 0) -> float:
    """Peak signal-to-noise ratio, 10·log10(255² / mean squared error).

    Args:
        reference: (H, W) or (H, W, 3) RGB: uint8, uint16, or float in 0…255.
        image: the same size. uint16 counts as v/257, so the peak is 255 for every dtype.
        luma: compare the luma alone: BT.601 in 16…235 as MATLAB's `rgb2ycbcr` of doubles gives it, not
            rounded, which is how the super-resolution literature does. Needs RGB.
        border: pixels to leave out along every side; the literature takes the scale factor.

    Returns:
        Decibels, more is better; infinity where both are equal. Colour: over all values of all channels.

    Raises:
        ValueError: sizes differ, neither (H, W) nor (H, W, 3), values out of range, luma of a grey image,
            or a border that leaves nothing.
    """
    x, y = prepare_pair("psnr", reference, image, luma=luma, border=border)
    error = float(((x - y) ** 2).mean())
    return 10 * math.log10(PEAK * PEAK / error) if error > 0 else math.inf
