"""SRN, the super-resolution network: one photo (B, 3, h, w) in [0, 1] → features of its enlargement.

    I ─ conv ─ F^l ─ SRB ×10 ─ global fusion ─ F^h ─┬─ attention (10) ─ deconv (11) ─ F^SRN ─┐
                        ↑ embedded at every depth   │                          Resize(∇I) ───┴─ F̄^SRN (12)
    ∇I ─ conv ─────── GEB ×10 ───────────────── ∇F^h ┘                                             ↓
                                                                                     D1 (13) ─ I^HR

Reference: section III-B of the paper, equations (10)–(13). Decoders return a residual: the enlarged photo
is the bicubic enlargement plus D1 (or, of the fused features, plus D2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mffsr.limits import SCALES
from mffsr.model.blocks import (
    LEAK,
    MOST_BLOCKS,
    WIDEST,
    Stack,
    check_sizes,
    check_switches,
    concatenate,
    conv,
    conv_stack,
    convolve,
    crop,
    gradient_map,
    narrowed,
    scaled,
    whole,
    widened,
)
from mffsr.model.dense import DenseResidualBlock
from mffsr.model.resize import enlarge, enlarge_bilinear
from mffsr.tiles import Region

__all__ = ["LIFTED_REACH", "SRN", "STEPS", "Decoder", "SourceFeatures", "SrnConfig"]

LIFTED_REACH = 2  # of the deconvolutions and the bicubic enlargement, in low-resolution pixels
NARROW_EVERY = 2  # blocks: oneDNN first makes code for every size that it convolves
STEPS = {2: (2,), 3: (3,), 4: (2, 2)}  # by scale: the strides of the deconvolutions, one after the other


class SourceFeatures(NamedTuple):
    """What SRN knows of one source at high resolution."""

    features: Tensor  # (B, features + 1, s·h, s·w): F̄^SRN of equation (12)
    base: Tensor  # (B, 3, s·h, s·w): the bicubic enlargement that the decoder's residual is added to


@dataclass(frozen=True, kw_only=True)
class SrnConfig:
    """The shape of an SRN; the defaults are the paper's (widths from the authors' implementation)."""

    scale: int
    features: int = 32
    growth: int = 32
    blocks: int = 10
    gradient_embedding: bool = True  # False: Table II without GEB
    shallow_deep: bool = True  # False: Table II without SDFC

    def __post_init__(self) -> None:
        check_sizes(self, ("scale", "features", "growth"), WIDEST)
        check_sizes(self, ("blocks",), MOST_BLOCKS)
        check_switches(self, ("gradient_embedding", "shallow_deep"))
        if self.scale not in SCALES:
            raise ValueError(f"scale is {self.scale}, expected one of {SCALES}")

    @property
    def reach(self) -> int:
        """Radius in low-resolution pixels beyond which an input pixel cannot influence a pixel's features."""
        heads = 1 + 1  # the gradient map and its head, or the two shallow convolutions
        return heads + self.trunk_reach(0)

    def trunk_reach(self, depth: int) -> int:
        """The part of `reach` that comes after `depth` blocks."""
        blocks = self.blocks - depth
        dense = 3 * (blocks + 1) if blocks else 0  # a GEB block feeds the SRB block of its depth
        return dense + 1 + self.upward_reach  # 1: global fusion

    @property
    def upward_reach(self) -> int:
        """The part of `reach` that comes after F^h."""
        return 3 + 2 + LIFTED_REACH  # attention, two 3×3 convolutions

    @property
    def mean_reach(self) -> int:
        """How many pixels around those wanted SRN works on, about: fewer the nearer it comes to its end."""
        return (self.reach + self.upward_reach) // 2


class Decoder(nn.Module):
    """D1 or D2: features at high resolution (B, inputs, H, W) → residual image (B, 3, H, W).

    The authors decode three channels by one convolution, too thin for 32 features: here two 3×3
    convolutions with 32 channels between them, whatever the trunk's width.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.layers = Stack(conv(inputs, 32), nn.LeakyReLU(LEAK), conv(32, 3))

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.layers(features)
        return out


class SRN(nn.Module):
    """Super-resolution network; one set of weights serves every source of a bracket."""

    def __init__(self, config: SrnConfig) -> None:
        super().__init__()
        self.config = config
        width, growth = config.features, config.growth
        embedded = width if config.gradient_embedding else 0
        self.shallow = conv(3, width)
        self.enter = conv(width, width)
        self.srb = nn.ModuleList(
            DenseResidualBlock(width + embedded, width, growth) for _ in range(config.blocks)
        )
        if config.gradient_embedding:
            self.gradient = conv(1, width)
            self.geb = nn.ModuleList(DenseResidualBlock(width, width, growth) for _ in range(config.blocks))
        # Global fusion of all depths: the 1×1 convolution over their concatenation, as a sum over depths.
        self.gather = nn.ModuleList(nn.Conv2d(width, width, 1, bias=i == 0) for i in range(config.blocks))
        self.global_fusion = conv(width, width)
        if config.shallow_deep:
            self.attention = Stack(conv(2 * width, width), nn.ReLU(), conv(width, 16), nn.ReLU(), conv(16, 1))
        # Equation (11) adds F^l to a concatenation twice as wide; a 1×1 convolution makes them fit.
        self.project = conv(width + embedded, width, 1)
        self.lift = conv_stack((width, width, width))
        steps = STEPS[config.scale]
        self.deconv = nn.Sequential(*(layer for step in steps for layer in _deconv(width, step)))
        self.d1 = Decoder(width + 1)

    def features(self, image: Tensor, wanted: Region | None = None) -> SourceFeatures:
        """Return F̄^SRN and the bicubic base of a source (B, 3, h, w) in [0, 1].

        With `wanted`, of that region alone: the same, for less work.
        """
        region, (image,) = narrowed(wanted or whole(image), self.config.reach, image)
        gradient = gradient_map(image)
        low = self.shallow(image)  # F^l
        deep, edges = self._trunk(self.enter(low), gradient, region)
        reach = self.config.trunk_reach(self.config.blocks)
        region, (image, gradient, low) = narrowed(region, reach, image, gradient, low)
        if self.config.shallow_deep:
            attention = torch.sigmoid(self.attention(torch.cat((low, deep), 1)))  # (10)
            lifted = attention * convolve(self.project, deep, *edges) + low  # (11)
        else:
            lifted = convolve(self.project, deep, *edges)
        region, (image, gradient, lifted) = narrowed(region, LIFTED_REACH, image, gradient, self.lift(lifted))
        up = self.deconv(lifted)  # (11), F^SRN
        resized = enlarge_bilinear(gradient, self.config.scale).to(up.dtype)
        rows, columns = scaled(region, self.config.scale)
        features = concatenate(up, resized)[:, :, rows, columns]  # (12)
        return SourceFeatures(features, enlarge(image, self.config.scale)[:, :, rows, columns])

    def _trunk(self, x: Tensor, gradient: Tensor, wanted: Region) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return F^h and, with GEB, (∇F^h,): the dense residual blocks of each branch and their fusion.

        From block to block on less of the image: on what the wanted region still depends on.
        """
        first, edge = x, self.gradient(gradient) if self.config.gradient_embedding else None
        total, region = None, wanted
        for depth, block in enumerate(self.srb):
            if depth % NARROW_EVERY == 0:
                outer, region = widened(region, self.config.trunk_reach(depth), x)
                x = crop(x, outer)
                edge, total = (None if y is None else crop(y, outer) for y in (edge, total))
            if edge is None:
                x = block(x, onto=x)
            else:
                edge = self.geb[depth](edge, onto=edge)
                x = block(x, edge, onto=x)
            total = convolve(self.gather[depth], x, onto=total)  # type: ignore[arg-type] # a list of modules
        reach = self.config.trunk_reach(self.config.blocks)
        _, (first,) = narrowed(wanted, reach, first)
        _, (total, *edges) = narrowed(region, reach, *(y for y in (total, edge) if y is not None))
        return convolve(self.global_fusion, total, onto=first), tuple(edges)

    def forward(self, image: Tensor) -> Tensor:
        """Return the enlarged source I^HR (B, 3, s·h, s·w), float32, not clipped."""
        source = self.features(image)
        return source.base + self.d1(source.features).float()  # (13)


def _deconv(width: int, step: int) -> tuple[nn.Module, nn.Module]:
    """Return a transposed convolution by `step` with its activation.

    The kernel is a multiple of the stride, so that every output pixel is made of equally many inputs
    (no checkerboard): the double, or the triple where the double cannot be centred.
    """
    kernel = 2 * step if step % 2 == 0 else 3 * step
    padding = (kernel - step) // 2
    return nn.ConvTranspose2d(width, width, kernel, step, padding), nn.LeakyReLU(LEAK, inplace=True)
