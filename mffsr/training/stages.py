"""The paper's three stages as data; section III-E and IV-B, with what was changed and why.

The paper trains four pairs a step for hundreds of epochs at constant rates with one or two drops. Here
every stage warms up and follows a cosine to 1 % of the highest rate, and Muon takes Adam's place in the
convolutions, which reaches the same loss in a fraction of the steps; the weights' average over the steps
(EMA) is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["STAGES", "Stage"]

StageName = Literal["fapn", "srn", "joint"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of training: what is trained, how long, on what size of patch, how fast."""

    name: StageName
    steps: int
    batch: int
    patch: int  # low-resolution pixels a side
    rate: float  # highest learning rate
    warmup: int = 100  # steps
    ema: float = 0.999  # share of the average kept each step
    clip: float = 0.5  # gradient norm, as the authors

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.patch) < 1:
            raise ValueError(
                f"steps, batch and patch are {self.steps}, {self.batch} and {self.patch}, expected at least 1"
            )


STAGES: tuple[Stage, ...] = (
    # 1. L_FAPN trains FAPN (18). Patches of 128 in the paper; sides are multiples of SAM's window.
    Stage(name="fapn", steps=20_000, batch=16, patch=96, rate=2e-3),
    # 2. FAPN is fixed; L^HR trains SRN and D1 (19). 128/t in the paper.
    Stage(name="srn", steps=100_000, batch=16, patch=48, rate=3e-3),
    # 3. L_fus^HR trains SRN and D2 jointly (20); D2 begins as a copy of D1.
    Stage(name="joint", steps=20_000, batch=8, patch=48, rate=2e-4),
)
