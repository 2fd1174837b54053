"""Q_G (also Q^AB/F): how much of the sources' edges the fused image keeps.

C. Xydeas, V. Petrović, "Objective image fusion performance measure", Electronics Letters 36(4), 2000.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from mffsr.metrics._common import AnyImage, FloatImage, check_triple, sobel

_TINY = 1e-5


def q_g(
    a: AnyImage, b: AnyImage, fused: AnyImage, *, variant: Literal["toolbox", "xydeas"] = "toolbox"
) -> float:
    """Gradient-based fusion quality.

    Two variants are in use. "toolbox" is the one of the MATLAB code of Liu et al. (PAMI 2012), which
    the literature's tables come from: logistic curves without Γ, slopes 10 and 20, and the mean over
    the pixels of the locally weighted quality. It replaces zero gradients of the fused image while it
    works on `a` and keeps them replaced for `b`, so exchanging a and b may change the last digits
    wherever the fused image is flat. "xydeas" is the paper's: Γ, κ, σ = 0.9994, −15, 0.5 and
    0.9879, −22, 0.8, and the ratio of the sums over the image; it is exactly symmetric in a and b. Its
    directions are compared as those of "toolbox", where a half turn is none (docs/metrics.md).

    Args:
        a: first source, one channel (H, W): uint8, uint16, or float in 0…255.
        b: second source, the same size.
        fused: the fused image, the same size.
        variant: "toolbox" (default: comparable with published tables) or "xydeas".

    Returns:
        0…1, more is better; at most 0.98666 ("toolbox") or 0.97479 ("xydeas"), reached where fused = a = b.
        Three equal constant images give that value too; "xydeas" gives 0 where neither source has
        any gradient, which, as zeros pad the border, means that both are black.

    Raises:
        ValueError: sizes differ, not one channel, values out of range, or an unknown variant.
    """
    triple = check_triple("q_g", a, b, fused)
    if variant == "toolbox":
        return _q_g_toolbox(*triple)
    if variant == "xydeas":
        return _q_g_xydeas(*triple)
    raise ValueError(f'q_g: variant is {variant!r}; expected "toolbox" or "xydeas"')


class _Gradient(NamedTuple):
    strength: FloatImage  # (H, W), ≥ 0
    angle: FloatImage  # (H, W), −π/2…π/2


def _gradient(image: FloatImage) -> _Gradient:
    x, y = sobel(image)  # Xydeas & Petrović 2000, eqs. 1, 2
    return _Gradient(np.sqrt(x * x + y * y), np.arctan(y / np.where(x == 0, _TINY, x)))


def _alignment(source: _Gradient, fused: _Gradient) -> FloatImage:
    """1 where the edges are parallel, 0 where they stand at a right angle (eq. 4, angles modulo π)."""
    return np.abs(np.abs(source.angle - fused.angle) - np.pi / 2) * (2 / np.pi)


def _logistic(x: FloatImage, slope: float, middle: float) -> FloatImage:
    return 1 / (1 + np.exp(-slope * (x - middle)))


def _q_g_toolbox(a: FloatImage, b: FloatImage, fused: FloatImage) -> float:
    f = _gradient(fused)
    strength_f = f.strength
    weighted, weights = np.zeros_like(fused), np.zeros_like(fused)
    for source in (a, b):  # in this order: the zeros of strength_f are replaced in the first round
        s = _gradient(source)
        weaker_f = s.strength > strength_f
        strength_s = np.where(s.strength == 0, _TINY, s.strength)
        fall = strength_f / strength_s
        strength_f = np.where(strength_f == 0, _TINY, strength_f)
        ratio = np.where(weaker_f, fall, strength_s / strength_f)  # eq. 3
        quality = _logistic(ratio, 10, 0.5) * _logistic(_alignment(s, f), 20, 0.75)
        weighted += quality * strength_s
        weights += strength_s
    return float((weighted / weights).mean())


def _q_g_xydeas(a: FloatImage, b: FloatImage, fused: FloatImage) -> float:
    f = _gradient(fused)
    weighted = weights = 0.0
    for source in (a, b):
        s = _gradient(source)
        larger = np.maximum(s.strength, f.strength)
        ratio = np.minimum(s.strength, f.strength) / np.where(larger == 0, 1.0, larger)  # eq. 3
        # eqs. 5–7
        quality = 0.9994 * _logistic(ratio, 15, 0.5) * 0.9879 * _logistic(_alignment(s, f), 22, 0.8)
        weighted += float((quality * s.strength).sum())
        weights += float(s.strength.sum())
    return weighted / weights if weights > 0 else 0.0  # eq. 8, with L = 1
