"""Trained networks that teach another one of their kind: what they say of a batch, on average.

The mean of a few networks' pictures, each of a photo turned another way, is better than any of theirs alone
(at ×2 by 0.05 dB and more), and free of what chance put into the truth. A network that learns it too comes
nearer to it than by the truth alone (knowledge distillation, G. Hinton et al., arXiv 1503.02531).

To ask two of them takes more than half as long as training itself, so their answers are kept: batches are
drawn for one round, and come again in later rounds, each time turned or flipped, answers and all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mffsr.checkpoint import load
from mffsr.device import Runtime
from mffsr.model import FN
from mffsr.training.batches import SuperResolutionBatch

__all__ = ["SHARE", "TaughtBatch", "Teachers"]

SHARE = 0.5  # of the loss that is taken to what they say instead of to the truth
KEPT = 1600 << 20  # bytes of answers that are kept: of 1896 batches of 16 patches of 48×48 at ×2
NEXT_TURN = 3  # of a square's eight, from round to round: turned and flipped by turns


class TaughtBatch(NamedTuple):
    """What SRN learns from where it has teachers."""

    low: Tensor  # (B, 3, p, p)
    high: Tensor  # (B, 3, s·p, s·p)
    taught: Tensor  # (B, 3, s·p, s·p): what the teachers make of `low`


class Teachers:
    """SRNs of one scale, asked together."""

    def __init__(self, paths: Sequence[Path], scale: int, runtime: Runtime) -> None:
        found = [load(path, kind="fn", scale=scale) for path in paths]
        self.sha256 = [one.sha256 for one in found]
        self._runtime = runtime
        self._networks = [runtime.place(one.network).eval() for one in found if isinstance(one.network, FN)]
        self._answers: dict[int, Tensor] = {}

    def batch(self, make: Callable[[int], SuperResolutionBatch], step: int, numbers: int) -> TaughtBatch:
        """Return the step's batch and their answer to it, which has so many numbers.

        `make` draws the batch of a step. The answers of a round are kept as float16.
        """
        in_round = max(1, KEPT // (2 * numbers))
        turns, step = divmod(step, in_round)
        low, high = make(step)
        if step not in self._answers:
            self._answers[step] = self.ask(low, step).half()
        turn = NEXT_TURN * turns % 8
        return TaughtBatch(*(_turned(x, turn) for x in (low, high, self._answers[step].float())))

    @torch.no_grad()
    def ask(self, low: Tensor, first_turn: int) -> Tensor:
        """Return the mean of their enlargements, (B, 3, s·h, s·w), of patches (B, 3, h, w).

        Each of them sees the patches turned: the first by as many quarters, the next by two more.
        """
        answers = []
        for i, network in enumerate(self._networks):
            quarters = first_turn + 2 * i
            turned = low.rot90(quarters, (2, 3)).contiguous(memory_format=torch.channels_last)
            with self._runtime.autocast():
                answers.append(network.srn(turned).rot90(-quarters, (2, 3)))
        return torch.stack(answers).mean(0)


def _turned(x: Tensor, turn: int) -> Tensor:
    """Turn squares (B, C, n, n) by turn % 4 quarters, then, where it is 4 or more, flip them."""
    x = x.rot90(turn % 4, (2, 3))
    return x.flip(3) if turn >= 4 else x
