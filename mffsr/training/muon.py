"""Muon for the convolutions, Adam for the rest.

Muon (K. Jordan et al., 2024) makes every singular value of a layer's averaged gradient about 1 before it
takes the step, so that directions which few pixels ask for are learned as fast as those of the mean. Its step
is scaled to the size of Adam's (J. Liu et al., arXiv 2502.16982), so that both take one learning rate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Muon", "build_optimizers", "orthogonalise", "set_rate"]

SMALLEST = 8  # rows and columns from which a layer is worth orthogonalising
STEPS = 5  # of the iteration
QUINTIC = (3.4445, -4.7750, 2.0315)  # its polynomial, fastest for small singular values
RMS = 0.2  # of Adam's usual step, in learning rates


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return matrices (..., m, n), m ≤ n, with singular values of about 1 (0.7…1.2): Newton–Schulz."""
    a, b, c = QUINTIC
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).reshape(-1, *matrices.shape[-2:])
    for _ in range(STEPS):  # x ← a x + (b G + c G²) x, G = x xᵀ
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.reshape(matrices.shape)


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalised; a convolution is taken as a matrix (out, in·k·k)."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float | Tensor, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step along `grad` of every parameter that has one. `closure` must be None."""
        if closure is not None:
            raise ValueError("closure given, expected None")
        for group in self.param_groups:
            layers = [p for p in group["params"] if p.grad is not None]
            if not layers:
                continue
            for layer in layers:
                if not self.state[layer]:
                    self.state[layer]["momentum"] = torch.zeros_like(layer)
            momenta, gradients = [self.state[p]["momentum"] for p in layers], [p.grad for p in layers]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            alike: dict[torch.Size, list[int]] = defaultdict(list)
            for index, layer in enumerate(layers):
                alike[layer.shape].append(index)
            for shape, members in alike.items():  # layers of one shape at once
                stacked = torch.stack([ahead[i].flatten(1) for i in members])
                tall = stacked.shape[1] > stacked.shape[2]
                moves = orthogonalise(stacked.mT if tall else stacked)
                length = RMS * max(stacked.shape[1:]) ** 0.5
                moves = (moves.mT if tall else moves) * (group["lr"] * length)  # a rate may be a tensor
                torch._foreach_sub_([layers[i] for i in members], list(moves.reshape(-1, *shape)))


def build_optimizers(parameters: Sequence[nn.Parameter], rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for convolutions of some size and Adam for what is left; either only if it has work.

    For parameters on CUDA the rates are tensors there, so that a CUDA graph of a step can be given others.
    """
    layers = [p for p in parameters if p.ndim == 4 and min(p.shape[0], p[0].numel()) >= SMALLEST]
    chosen = {id(p) for p in layers}
    rest = [p for p in parameters if id(p) not in chosen]
    found: list[torch.optim.Optimizer] = []
    on_cuda = parameters[0].is_cuda

    def own() -> Any:
        return torch.tensor(rate, device=parameters[0].device) if on_cuda else rate

    if layers:
        found.append(Muon(layers, lr=own()))
    if rest:
        settings: dict[str, Any] = {"fused": True, "capturable": True} if on_cuda else {}
        found.append(torch.optim.Adam(rest, lr=own(), betas=(0.9, 0.99), **settings))
    return found


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of what is trained next; without waiting for the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
