"""The state of a training run on disk: everything needed to go on as if nothing had happened.

One safetensors file, replaced atomically: network, its running average, the optimisers' moments, the step.
Random numbers need no state: every batch is a function of (seed, step).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from mffsr.checkpoint import digest, write_file
from mffsr.errors import TrainingError

__all__ = ["Average", "load_state", "read_info", "save_state"]

FORMAT = "mffsr-training-2"  # 1 had Adam alone
ANEW = "\nremove it to begin this stage anew, or choose another --out"


class Average:
    """The exponential moving average (EMA) of a network's tensors; the network must stay where it is."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        live = network.state_dict()  # the network's own memory, which training changes in place
        self.tensors = {name: value.detach().clone() for name, value in live.items()}
        moving = [name for name, value in live.items() if value.is_floating_point()]
        self._live, self._mine = [live[name] for name in moving], [self.tensors[name] for name in moving]
        self._counts = [(self.tensors[n], value) for n, value in live.items() if n not in set(moving)]
        self._share = torch.zeros((), device=next(iter(live.values())).device)

    def set_step(self, step: int) -> None:
        """Set how far `update` moves: the first steps count more, so that the beginning is forgotten."""
        self._share.fill_(1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the network."""
        way = torch._foreach_sub(self._live, self._mine)
        torch._foreach_mul_(way, self._share)
        torch._foreach_add_(self._mine, way)
        for mine, value in self._counts:
            mine.copy_(value)

    @torch.no_grad()
    def finite(self) -> bool:
        """Return whether every value is finite, in float16 too; waits for the device."""
        return bool(torch.stack([torch.isfinite(tensor.half()).all() for tensor in self._mine]).all())


def _prefix(optimizer: torch.optim.Optimizer) -> str:
    """Return what the names of an optimiser's tensors begin with."""
    return f"{type(optimizer).__name__.lower()}."


def save_state(
    path: Path,
    network: nn.Module,
    average: Average,
    optimizers: Sequence[torch.optim.Optimizer],
    info: Mapping[str, object],
) -> None:
    """Write the state; the file on disk is at any moment the old state or the new one."""
    tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in average.tensors.items()}
    for optimizer in optimizers:
        prefix = _prefix(optimizer)
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{prefix}{index}.{name}": value for name, value in slots.items()}
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    header = {"format": FORMAT, "sha256": digest(tensors), "info": json.dumps(info)}
    write_file(path, save(tensors, metadata=header))


def read_info(path: Path) -> dict[str, Any]:
    """Return what a state's header says of its run, without the tensors; raises TrainingError."""
    info: dict[str, Any] = json.loads(_read(path)[0]["info"])
    return info


def _read(path: Path, *, tensors: bool = False) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return a state's header and, if asked for, its tensors; raises TrainingError for what is no state."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in (file.keys() if tensors else ())}
    except Exception as error:  # noqa: BLE001 - the Rust library raises its own types
        raise TrainingError(f"{path}: cannot be read ({error}){ANEW}") from None
    if header.get("format") != FORMAT or (tensors and header.get("sha256") != digest(found)):
        raise TrainingError(f"{path}: damaged, or not the state of a training run{ANEW}")
    return header, found


def load_state(
    path: Path, network: nn.Module, average: Average, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, object]:
    """Restore a state into the given objects and return its `info`; raises TrainingError."""
    header, tensors = _read(path, tensors=True)

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        network.load_state_dict(part("model."), strict=True)
    except RuntimeError as error:
        raise TrainingError(f"{path}: the state of another network\n{str(error)[:200]}") from None
    for name, value in part("ema.").items():
        average.tensors[name].copy_(value)
    for optimizer in optimizers:
        slots: dict[int, dict[str, Tensor]] = {}
        for name, value in part(_prefix(optimizer)).items():
            index, slot = name.split(".", 1)
            slots.setdefault(int(index), {})[slot] = value
        optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    info: dict[str, object] = json.loads(header["info"])
    return info
