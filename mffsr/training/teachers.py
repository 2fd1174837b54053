"""Trained networks that teach another one of their kind: what they say of a batch, on average.

The mean of a few networks' pictures, each of a photo and of the photo turned, is better than any of theirs
alone (at ×2 by 0.05 dB and more), and free of what chance put into the truth. A network that learns it too
comes nearer to it than by the truth alone (knowledge distillation, G. Hinton et al., arXiv 1503.02531).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mffsr.checkpoint import load
from mffsr.device import Runtime
from mffsr.model import FN

__all__ = ["SHARE", "Teachers"]

SHARE = 0.5  # of the loss that is taken to what they say instead of to the truth
TURNS = 3  # quarter turns of the photo that each is asked about as well; patches are turned at random already


class Teachers:
    """SRNs of one scale, asked together."""

    def __init__(self, paths: Sequence[Path], scale: int, runtime: Runtime) -> None:
        found = [load(path, kind="fn", scale=scale) for path in paths]
        self.sha256 = [one.sha256 for one in found]
        self._runtime = runtime
        self._networks = [runtime.place(one.network).eval() for one in found if isinstance(one.network, FN)]

    @torch.no_grad()
    def __call__(self, low: Tensor) -> Tensor:
        """Return the mean of their enlargements, (B, 3, s·h, s·w), of patches (B, 3, h, w)."""
        turned = low.rot90(TURNS, (2, 3)).contiguous(memory_format=torch.channels_last)
        with self._runtime.autocast():
            straight = [network.srn(low) for network in self._networks]
            around = [network.srn(turned) for network in self._networks]
        return (sum(straight) + sum(around).rot90(-TURNS, (2, 3))) / (2 * len(self._networks))
