"""Q_MI: how much of the sources' information the fused image holds.

M. Hossny, S. Nahavandi, D. Creighton, "Comments on 'Information measure for performance of image
fusion'", Electronics Letters 44(18), 2008.
"""

from __future__ import annotations

from mffsr.metrics._common import AnyImage, FloatImage, PairEntropies, check_triple, norm255


def q_mi(a: AnyImage, b: AnyImage, fused: AnyImage) -> float:
    """Normalised mutual information of the fused image with its two sources.

    Args:
        a: first source, one channel (H, W): uint8, uint16, or float in 0…255.
        b: second source, the same size. The metric is symmetric in a and b.
        fused: the fused image, the same size.

    Returns:
        0…2, more is better; 2 when fused, a and b determine each other. A constant image holds no
        information: the term of a constant source is 0, and all is 0 for a constant fused image.

    Raises:
        ValueError: sizes differ, not one channel, or values out of range.
    """
    return _q_mi(*check_triple("q_mi", a, b, fused))


def _q_mi(a: FloatImage, b: FloatImage, fused: FloatImage) -> float:
    levels = norm255(fused)
    total = 0.0
    for source in (a, b):
        pair = PairEntropies(norm255(source), levels)
        entropies = pair.first + pair.second
        total += pair.mutual / entropies if entropies > 0 else 0.0
    return 2.0 * total  # the sum of the normalised MIs of Hossny et al. 2008
