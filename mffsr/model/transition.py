"""From binary masks to weights: how one source passes into another at a border.

Over two pixels, so that Resize makes no stairs; where the picture is plain on both sides, over thirty. There
a narrow border shows as a line, since the blur of things nearby tints one source and not the other, and
there is no detail that a wide one could soften or double.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mffsr.model.blocks import gradient_map

__all__ = ["TRANSITION_REACH", "WIDE_REACH", "soft_transition", "transition"]

STEPS = (1, 2, 4, 8)  # pixels between those that a wide transition weights 1-2-1, pass by pass
WIDE_REACH = sum(STEPS)
PLAIN = 5 / 255  # a gradient map below this is plain; from twice as much on it is not
APART = 6  # pixels: detail that is nearer is seen
TRANSITION_REACH = 2 + 1 + 1 + 2 + APART + sum(STEPS[:-1])  # of `transition`, by `_plainness`


def soft_transition(masks: Tensor) -> Tensor:
    """Soften binary masks (B, n, h, w) over two pixels; sums are kept.

    A binomial 5×5 filter: two passes of 1-2-1 in each direction.
    """
    return _spread(_spread(masks, 1), 1)


def transition(masks: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Soften the binary masks (B, n, h, w) of sources (B, 3, h, w) in [0, 1]: widely where these are plain.

    float32; sums are kept. What is farther than `TRANSITION_REACH` does not count. A source's weight is 0
    farther than `WIDE_REACH` from its mask.
    """
    narrow = soft_transition(masks)
    plain = _plainness(masks, sources)
    if not plain.any():
        return narrow
    wide = masks
    for step in STEPS:
        wide = _spread(wide, step)
    return torch.lerp(narrow, wide, plain)


def _plainness(masks: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return where the picture that the masks choose has no detail nearby: (B, 1, h, w), 0 (detail) … 1."""
    detail: Any = 0
    for mask, source in zip(masks.split(1, 1), sources, strict=True):
        smooth = soft_transition(source.mean(1, keepdim=True))
        edges = gradient_map(_padded(smooth, 1))[:, :, 1:-1, 1:-1].abs()
        detail = detail + mask * edges
    detail = _spread(_spread(detail, 1), 2)
    window = 2 * APART + 1
    most = F.max_pool2d(detail, (window, 1), 1, (APART, 0))
    most = F.max_pool2d(most, (1, window), 1, (0, APART))
    plain = (2 - most / PLAIN).clamp(0, 1)
    for step in STEPS[:-1]:
        plain = _spread(plain, step)
    return plain


def _spread(x: Tensor, step: int) -> Tensor:
    """Weight pixels `step` apart 1-2-1, in each direction; at its edge the image is continued."""
    x = _padded(x, step)
    x = torch.add(x[:, :, : -2 * step] + x[:, :, 2 * step :], x[:, :, step:-step], alpha=2)
    x = torch.add(x[..., : -2 * step] + x[..., 2 * step :], x[..., step:-step], alpha=2)
    return x / 16


def _padded(x: Tensor, pixels: int) -> Tensor:
    return F.pad(x, (pixels,) * 4, mode="replicate")
