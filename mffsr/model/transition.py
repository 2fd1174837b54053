"""From binary masks to weights: how one source passes into another at a border.

Detail does over sixteen pixels, in which a source weighs less the more contrast the chosen one has than it:
what is sharp stays so up to the border, and what both show as well is mixed. Where the picture is plain on
both sides, over thirty. There a narrow border shows as a line, since the blur of things nearby tints one
source and not the other, and there is no detail that a wide one could soften or double.

What is coarser than detail does over some forty pixels, more of them in a large photo, wherever it is visibly
another (two bands of a multiresolution spline, P. Burt and E. Adelson 1983, doi 10.1145/245.247). Around an
edge that a source blurs it shines as far as the blur reaches, beyond the narrow border, which else is the
outline of that shine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mffsr.model.blocks import gradient_map

__all__ = ["TRANSITION_REACH", "WIDE_REACH", "Bands", "transition"]

# Pixels between those that are weighted 1-2-1, pass by pass.
WINDOW = (1, 1)  # that contrast and detail are seen through: a binomial 5×5 filter
NARROW = (1, 2, 2, 3)
WIDER = 8  # of the pass that makes a narrow transition a wide one
BLEND = (1, 2, 4)  # from plain to not plain
WIDE_REACH = sum(NARROW) + WIDER
NOISE = 1 / 255  # a standard deviation; less contrast than that is none
NOTHING = 1e-20  # far below any sum of weights; that is 0 where no source has a mask nearby
PLAIN = 5 / 255  # a gradient map below this is plain; from twice as much on it is not
APART = 6  # pixels: detail that is nearer is seen
TRANSITION_REACH = sum(WINDOW) + 1 + 1 + 2 + APART + sum(BLEND)  # of `transition`, by `_plainness`
COARSE = (1, 2, 4, 8)  # of the coarse band of a photo whose shorter side is less than twice `SMALL`
SMALL = 1024
SEEN = 5 / 255  # a change of the coarse band by this is not seen, one of twice as much is


def transition(masks: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Return the weights of sources (B, 3, h, w) in [0, 1], of which binary masks (B, n, h, w) choose.

    float32; they sum to 1 as the masks do. What is farther than `TRANSITION_REACH` does not count. A source's
    weight is 0 farther than `WIDE_REACH` from its mask.
    """
    grays = [source.mean(1, keepdim=True) for source in sources]
    smooth = [_spread(gray, *WINDOW) for gray in grays]
    softened = _spread(masks, *NARROW)
    contrast = torch.cat([_contrast(*pair) for pair in zip(grays, smooth, strict=True)], 1)
    chosen = (_spread(masks, *WINDOW) * contrast).sum(1, keepdim=True)
    weights = softened * (contrast / chosen).clamp(max=1)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(NOTHING)
    return torch.lerp(weights, _spread(softened, WIDER), _plainness(masks, smooth))


class Bands(NamedTuple):
    """How the coarse bands of sources, (B, 3, h, w) in [0, 1] each, pass into each other."""

    steps: tuple[int, ...]  # pixels between those that are weighted 1-2-1 in a coarse band, pass by pass

    @classmethod
    def of(cls, height: int, width: int) -> Bands:
        """Return those of a photo of this size: blur is wider in a larger one."""
        octaves = max(1, min(height, width) // SMALL).bit_length() - 1
        return cls(COARSE + tuple(COARSE[-1] << octave for octave in range(1, octaves + 1)))

    @property
    def reach(self) -> int:
        """Radius in pixels beyond which neither a source nor a mask influences a pixel of `joined`."""
        return sum(self.steps) + self.steps[-1] + sum(BLEND)

    def coarse(self, source: Tensor) -> Tensor:
        """Return the coarse band of a source."""
        return _spread(source, *self.steps)

    def weights(self, masks: Tensor) -> Tensor:
        """Return the weights of all coarse bands in their sum, the common band, for masks (B, n, h, w)."""
        return _spread(masks, *self.steps, self.steps[-1])

    def joined(self, source: Tensor, coarse: Tensor, common: Tensor) -> Tensor:
        """Return a source with the common band, where that is seen, instead of its own.

        It stays as it is farther than `reach` from the mask of any other source.
        """
        change = common - coarse
        seen = (change.abs().amax(1, keepdim=True) / SEEN - 1).clamp(0, 1)
        return torch.addcmul(source, change, _spread(seen, *BLEND))


def _contrast(gray: Tensor, smooth: Tensor) -> Tensor:
    """Return the variance of a source around each pixel, and that of noise more."""
    return (_spread(gray * gray, *WINDOW) - smooth * smooth).clamp_min(0) + NOISE**2


def _plainness(masks: Tensor, smooth: Sequence[Tensor]) -> Tensor:
    """Return where the picture that the masks choose has no detail nearby: (B, 1, h, w), 0 (detail) … 1."""
    edges = [gradient_map(_padded(x, 1))[:, :, 1:-1, 1:-1].abs() for x in smooth]
    detail = _spread((masks * torch.cat(edges, 1)).sum(1, keepdim=True), 1, 2)
    window = 2 * APART + 1
    most = F.max_pool2d(detail, (window, 1), 1, (APART, 0))
    most = F.max_pool2d(most, (1, window), 1, (0, APART))
    return _spread((2 - most / PLAIN).clamp(0, 1), *BLEND)


def _spread(x: Tensor, *steps: int) -> Tensor:
    """Weight pixels so far apart 1-2-1 in each direction, pass by pass; the image goes on beyond its edge."""
    for step in steps:
        x = _padded(x, step)
        x = torch.add(x[:, :, : -2 * step] + x[:, :, 2 * step :], x[:, :, step:-step], alpha=2)
        x = torch.add(x[..., : -2 * step] + x[..., 2 * step :], x[..., step:-step], alpha=2) / 16
    return x


def _padded(x: Tensor, pixels: int) -> Tensor:
    return F.pad(x, (pixels,) * 4, mode="replicate")
