"""The joint network: FAPN finds the focus, SRN enlarges the sources, FN fuses their features.

    photos ─┬─ FAPN ─ maps ─ HF (14) ─ Resize ─┐
            └─ SRN of each ─ F̄^SRN ────────────┴─ mask-weighted sum (15) ─ D2 (16) ─ fused enlargement

`focus` and `render` are the two halves; between them stands the whole image's label map, where holes are
filled (`mffsr.regions`). Reference: section III-C.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mffsr.model.blocks import crop, scaled, start_of, whole, widened, within
from mffsr.model.fapn import FAPN, FocusMaps
from mffsr.model.onednn import working_type
from mffsr.model.resize import enlarge_bilinear
from mffsr.model.srn import SRN, Decoder, SourceFeatures, SrnConfig
from mffsr.tiles import Region, covering

__all__ = ["DECODER_REACH", "FN", "JointModel", "decide"]

DECODER_REACH = 2  # of Resize and D2, in low-resolution pixels, rounded up


def decide(maps: FocusMaps) -> Tensor:
    """Return the binary decision M1 ≥ M2, float32 (B, 1, h, w)."""
    return (maps.m1 >= maps.m2).float()


class FN(nn.Module):
    """Fusion network: SRN of every source, mask-weighted sum of their features, decoder D2."""

    def __init__(self, config: SrnConfig) -> None:
        super().__init__()
        self.config = config
        self.srn = SRN(config)
        self.d2 = Decoder(config.features + 1)

    @property
    def reach(self) -> int:
        """Radius in low-resolution pixels beyond which neither a source nor a mask influences a pixel."""
        return self.config.reach + DECODER_REACH

    def forward(
        self, sources: Sequence[Tensor], masks: Tensor, wanted: Region | None = None, *, gate: bool = False
    ) -> Tensor:
        """Return the fused enlargement (B, 3, s·h, s·w), float32, not clipped.

        `sources`: n images (B, 3, h, w) in [0, 1]; `masks`: (B, n, h, w), M^pred of each source, summing
        to 1. A source whose mask is zero everywhere may be left out: the result is the same. With a `wanted`
        region of the sources only its enlargement is returned, and with `gate` SRN runs of each source only
        where its mask is not zero: the same, for less work.
        """
        if masks.shape[1] != len(sources):
            raise ValueError(f"{len(sources)} sources but {masks.shape[1]} masks")
        region, inner = widened(wanted or whole(masks), DECODER_REACH, masks)
        # One source alone has mask 1 throughout.
        fused = (
            self.srn.features(sources[0], region)
            if len(sources) == 1
            else self._weighted_sum(sources, masks, region, gate=gate)
        )
        image = fused.base + self.d2(fused.features).float()  # (16)
        rows, columns = scaled(inner, self.config.scale)
        return image[:, :, rows, columns]

    def _weighted_sum(
        self, sources: Sequence[Tensor], masks: Tensor, region: Region, *, gate: bool
    ) -> SourceFeatures:
        """Return the mask-weighted sum of the sources' features and bases in a region, equation (15)."""
        scale = self.config.scale
        own = crop(masks, region)
        weights = enlarge_bilinear(own.float(), scale)
        total = self._blank(own)  # first of all, or it would lie amid the memory of a source
        for index, source in enumerate(sources):
            for part in self._parts(masks[:, index], region) if gate else [region]:
                found = self.srn.features(source, part)
                rows, columns = scaled(within(part, region), scale)
                weight = weights[:, index : index + 1, rows, columns]
                for into, one in zip(total, found, strict=True):
                    into[:, :, rows, columns].addcmul_(weight.to(one.dtype), one)
        return total

    def _blank(self, masks: Tensor) -> SourceFeatures:
        """Return zeros where the features of sources with such masks (B, n, h, w) may be added up."""
        batch, _, height, width = masks.shape
        size = height * self.config.scale, width * self.config.scale

        def zeros(channels: int, dtype: torch.dtype) -> Tensor:
            shape = (batch, channels, *size)
            channels_last = torch.channels_last
            return torch.empty(shape, dtype=dtype, device=masks.device, memory_format=channels_last).zero_()

        features = zeros(self.config.features + 1, working_type(next(self.d2.parameters())))
        base = zeros(3, torch.float32)
        return SourceFeatures(features, base)

    def _parts(self, mask: Tensor, region: Region) -> list[Region]:
        """Return rectangles of `region` outside which a source's mask (B, h, w), once resized, is zero."""
        there = F.max_pool2d(mask.amax(0, keepdim=True), 3, 1, 1)[0] > 0  # Resize reaches one pixel further
        found = covering(region, there.cpu().numpy(), self.config.mean_reach, start=start_of(mask.device))
        return [part.core for part in found]


class JointModel(nn.Module):
    """FAPN and FN together; at scale 1 there is no FN and the sources themselves are fused.

    There is no `forward`: between `focus` and `render` the whole photo's label map is made.
    """

    def __init__(self, fapn: FAPN, fn: FN | None) -> None:
        super().__init__()
        self.fapn, self.fn = fapn, fn

    @property
    def scale(self) -> int:
        """Enlargement: 1 (fusion alone), 2, 3 or 4."""
        return self.fn.config.scale if self.fn is not None else 1

    @property
    def reach(self) -> int:
        """Radius in source pixels beyond which neither a source nor a mask influences a pixel of `render`."""
        return self.fn.reach if self.fn is not None else 0

    def focus(self, image1: Tensor, image2: Tensor, wanted: Region | None = None) -> FocusMaps:
        """Return M1 and M2, (B, 1, h, w) in [0, 1], of two images (B, 3, h, w) in [0, 1].

        See `FAPN.forward` for `wanted`.
        """
        maps: FocusMaps = self.fapn(image1, image2, wanted)
        return maps

    def render(
        self, sources: Sequence[Tensor], masks: Tensor, wanted: Region | None = None, *, gate: bool = False
    ) -> Tensor:
        """Return the fused image (B, 3, s·h, s·w), float32; see `FN.forward` for the arguments."""
        if self.fn is None:
            parts = [m * s for m, s in zip(masks.float().split(1, 1), sources, strict=True)]
            image = torch.stack(parts).sum(0)
            return image if wanted is None else image[:, :, wanted[0], wanted[1]]
        out: Tensor = self.fn(sources, masks, wanted, gate=gate)
        return out
