"""Q_Y: structural similarity to both sources where they agree, to the better-kept one where they differ.

C. Yang, J. Zhang, X. Wang, X. Liu, "A novel similarity based quality metric for image fusion",
Information Fusion 9(2), 2008.
"""

from __future__ import annotations

import numpy as np

from mffsr.metrics._common import AnyImage, FloatImage, LocalStatistics, check_triple, gaussian_window

MIN_SIDE = 7

_C = 2e-16  # C1 and C2: only there to define 0/0
_AGREEMENT = 0.75


def q_y(a: AnyImage, b: AnyImage, fused: AnyImage) -> float:
    """Yang's similarity-based fusion quality.

    The constants of its SSIM are so small that the usual way to compute variances, E[x²] − E[x]²,
    divides round-off by round-off where the images are flat. Here variances come from deviations, so
    that flat windows count as equal or not by their means alone.

    Args:
        a: first source, one channel (H, W), at least 7×7: uint8, uint16, or float in 0…255.
        b: second source, the same size. The metric is symmetric in a and b.
        fused: the fused image, the same size.

    Returns:
        −1…1, more is better; 1 for fused = a = b, constant images included.

    Raises:
        ValueError: sizes differ, not one channel, smaller than 7×7, or values out of range.
    """
    return _q_y(*check_triple("q_y", a, b, fused, min_side=MIN_SIDE))


def _q_y(a: FloatImage, b: FloatImage, fused: FloatImage) -> float:
    stats = LocalStatistics(gaussian_window(7, 1.5), ["AA", "BB", "FF", "AF", "BF", "AB"], A=a, B=b, F=fused)
    with_a, with_b = stats.ssim("AF", _C, _C), stats.ssim("BF", _C, _C)
    weight = stats.salience("A", "B")
    agree = stats.ssim("AB", _C, _C) >= _AGREEMENT
    quality = np.where(agree, weight * with_a + (1 - weight) * with_b, np.maximum(with_a, with_b))
    return float(quality.mean())  # Yang et al. 2008, Q(A, B, F | w) and its mean
