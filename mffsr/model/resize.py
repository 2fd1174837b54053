"""Enlargement by a whole factor: bicubic for images, bilinear for masks and the gradient map.

`F.interpolate` finds each pixel's place by a float32 product, which at ×3 rounds otherwise in every tile.
Here the weights, which recur every `scale` pixels, are found once: a pixel does not depend on where its tile
begins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["enlarge", "enlarge_bilinear"]

REACH = 2  # of the wider kernel, in pixels of what is enlarged

Taps = Sequence[tuple[int, float]]  # pixels from the one enlarged, and their weights


def enlarge(image: Tensor, scale: int) -> Tensor:
    """Return the bicubic enlargement (a = −0.5, as Pillow and MATLAB) of (B, C, h, w), in float32."""
    return _enlarged(image.float(), _taps(_cubic, scale))


def enlarge_bilinear(x: Tensor, scale: int) -> Tensor:
    """Return the bilinear enlargement of (B, C, h, w), in its own type."""
    return _enlarged(x, _taps(_linear, scale))


def _cubic(x: float) -> float:
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def _linear(x: float) -> float:
    return max(0.0, 1 - abs(x))


@cache
def _taps(kernel: Callable[[float], float], scale: int) -> list[Taps]:
    """Return what each of the `scale` pixels that one becomes is made of."""
    centres = [(i + 0.5) / scale - 0.5 for i in range(scale)]
    found = [[(at, kernel(at - centre)) for at in range(-REACH, REACH + 1)] for centre in centres]
    return [[(at, weight) for at, weight in taps if weight] for taps in found]


def _enlarged(x: Tensor, phases: list[Taps]) -> Tensor:
    for dim in (2, 3):
        edge = _along(x.new_ones(x.shape[dim]), 0, phases)  # less than 1 where the kernel lies partly outside
        shape = [1] * 4
        shape[dim] = -1
        x = _along(x, dim, phases).div_(edge.view(shape))
    return x


def _along(x: Tensor, dim: int, phases: list[Taps]) -> Tensor:
    """Enlarge along one dimension; outside is 0."""
    length = x.shape[dim]
    sides = [0, 0] * (x.ndim - dim - 1) + [REACH, REACH]
    padded = F.pad(x, sides)
    parts = []
    for taps in phases:
        (first, weight), *others = taps
        total = padded.narrow(dim, REACH + first, length) * weight
        for at, weight in others:
            total.add_(padded.narrow(dim, REACH + at, length), alpha=weight)
        parts.append(total)
    return torch.stack(parts, dim + 1).flatten(dim, dim + 1)
