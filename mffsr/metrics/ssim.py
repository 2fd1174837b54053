"""SSIM: structural similarity of an image to its reference.

Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, "Image quality assessment: from error visibility
to structural similarity", IEEE Transactions on Image Processing 13(4), 2004.
"""

from __future__ import annotations

import numpy as np

from mffsr.metrics._common import (
    SSIM_C1,
    SSIM_C2,
    AnyImage,
    LocalStatistics,
    check_min_side,
    gaussian_window,
    prepare_pair,
)

MIN_SIDE = 11


def ssim(reference: AnyImage, image: AnyImage, *, luma: bool = False, border: int = 0) -> float:
    """Structural similarity: 11×11 Gaussian window, σ 1.5, whole windows only, K 0.01 and 0.03.

    Args:
        reference: (H, W) or (H, W, 3) RGB, at least 11×11 inside the border: uint8, uint16, or float
            in 0…255.
        image: the same size. uint16 counts as v/257.
        luma: compare the luma alone, as in `psnr`. Needs RGB.
        border: pixels to leave out along every side; the literature takes the scale factor.

    Returns:
        −1…1, more is better; 1 where both are equal, constant images included. Colour: the mean of the
        channels.

    Raises:
        ValueError: sizes differ, neither (H, W) nor (H, W, 3), values out of range, luma of a grey image,
            or less than 11×11 inside the border.
    """
    x, y = prepare_pair("ssim", reference, image, luma=luma, border=border)
    check_min_side("ssim", x, MIN_SIDE)
    pairs, window = ["XX", "YY", "XY"], gaussian_window(11, 1.5)
    values = []
    for c in range(x.shape[2]):
        stats = LocalStatistics(window, pairs, X=x[:, :, c], Y=y[:, :, c])
        values.append(float(stats.ssim("XY", SSIM_C1, SSIM_C2).mean()))  # eqs. 13, 17
    return float(np.mean(values))
