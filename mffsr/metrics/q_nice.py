"""Q_NICE (also Q_NCIE): nonlinear correlation of the fused image and its sources, taken together.

Q. Wang, Y. Shen, J. Jin, "Performance evaluation of image fusion techniques", in: Image Fusion:
Algorithms and Applications, ch. 19, 2008.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from mffsr.metrics._common import AnyImage, FloatImage, PairEntropies, check_triple, norm255


def q_nice(a: AnyImage, b: AnyImage, fused: AnyImage) -> float:
    """Nonlinear correlation information entropy of the two sources and the fused image.

    Args:
        a: first source, one channel (H, W): uint8, uint16, or float in 0…255.
        b: second source, the same size. The metric is symmetric in all three images.
        fused: the fused image, the same size.

    Returns:
        0.8019 (= 1 − log256 3, nothing in common) … 1, more is better. A constant image has nothing in
        common with any other, itself included.

    Raises:
        ValueError: sizes differ, not one channel, or values out of range.
    """
    return _q_nice(*check_triple("q_nice", a, b, fused))


def _q_nice(a: FloatImage, b: FloatImage, fused: FloatImage) -> float:
    levels = [norm255(image) for image in (a, b, fused)]
    correlation = np.eye(3)
    for i, j in combinations(range(3), 2):
        # NCC in units of 256 levels: log256 = log2 / 8 (Wang et al. 2008, NCC)
        correlation[i, j] = correlation[j, i] = PairEntropies(levels[i], levels[j]).mutual / 8
    share = np.linalg.eigvalsh(correlation) / 3
    share = share[share > 0]  # 0·log 0 = 0; identical images give eigenvalues of −1e-17
    return float(1 + (share * np.log2(share)).sum() / 8)  # Wang et al. 2008, 1 − H_R
