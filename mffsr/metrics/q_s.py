"""Q_S: structural similarity of the fused image to whichever source has the contrast.

G. Piella, H. Heijmans, "A new quality metric for image fusion", ICIP 2003.
"""

from __future__ import annotations

import numpy as np

from mffsr.metrics._common import (
    SSIM_C1,
    SSIM_C2,
    AnyImage,
    FloatImage,
    LocalStatistics,
    check_triple,
    gaussian_window,
)

MIN_SIDE = 11


def q_s(a: AnyImage, b: AnyImage, fused: AnyImage) -> float:
    """Piella's fusion quality index: SSIM with each source, weighted by the sources' local variance.

    Args:
        a: first source, one channel (H, W), at least 11×11: uint8, uint16, or float in 0…255.
        b: second source, the same size. The metric is symmetric in a and b.
        fused: the fused image, the same size.

    Returns:
        −1…1, more is better; 1 for fused = a = b, constant images included. Where both sources are
        flat they weigh the same, except that a black source gives way to one that is not.

    Raises:
        ValueError: sizes differ, not one channel, smaller than 11×11, or values out of range.
    """
    return _q_s(*check_triple("q_s", a, b, fused, min_side=MIN_SIDE))


def _q_s(a: FloatImage, b: FloatImage, fused: FloatImage) -> float:
    stats = LocalStatistics(gaussian_window(11, 1.5), ["AA", "BB", "FF", "AF", "BF"], A=a, B=b, F=fused)
    # In flat windows the MATLAB code's weight is the round-off of E[x²] − E[x]², and only black windows
    # have none: beside one, a flat window of another value counts alone. Published values contain this
    # (1e-5 in images with clipped shadows), so it is kept; all other flat pairs weigh the same here.
    lit_a, lit_b = ((stats.means[name] > 0).astype(np.float64) for name in "AB")
    weight = stats.salience("A", "B", flat=(1 + lit_a - lit_b) / 2)  # Piella & Heijmans 2003, λ(w)
    quality = weight * stats.ssim("AF", SSIM_C1, SSIM_C2) + (1 - weight) * stats.ssim("BF", SSIM_C1, SSIM_C2)
    return float(quality.mean())  # Piella & Heijmans 2003, Q(a, b, f)
