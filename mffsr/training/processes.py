"""Several processes that train together, one per GPU, as `torchrun` starts them; alone by default.

Every process makes its own share of the step's batch, gradients are averaged, and only rank 0 writes. Whether
to go on is agreed on before each step: a signal may reach one process only, and clocks differ.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mffsr.errors import MffsrError, TrainingError, UsageError

__all__ = ["Processes", "join"]


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train together."""

    rank: int = 0
    count: int = 1

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process; all have to ask."""
        if self.count == 1:
            return flag
        shared = torch.tensor([int(flag)])  # on the CPU: the GPU goes on working
        with _partners():
            dist.all_reduce(shared)
        return bool(shared)

    def average_gradients(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Replace gradients by their mean over all processes, in place; return that of the loss."""
        if self.count == 1:
            return loss
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients] + [loss.reshape(1)])
        with _partners():
            dist.all_reduce(flat)
        flat /= self.count
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()
        return flat[-1]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Run the block in every process; where it fails in one, every process fails with its message."""
        if self.count == 1:
            yield
            return
        failed: MffsrError | None = None
        try:
            yield
        except MffsrError as error:
            failed = error
        messages: list[tuple[bool, str] | None] = [None] * self.count
        mine = None if failed is None else (isinstance(failed, UsageError), str(failed))
        with _partners():
            dist.all_gather_object(messages, mine)
        if failed is not None:
            raise failed
        for message in messages:
            if message is not None:
                raise (UsageError if message[0] else TrainingError)(message[1])

    def leave(self) -> None:
        """Wait until all have come to this point (rank 0 may still be writing), and part."""
        if self.count > 1:
            with _partners():
                dist.barrier()
            dist.destroy_process_group()


@contextlib.contextmanager
def _partners() -> Iterator[None]:
    """Turn the end of another process into an error that says so."""
    try:
        yield
    except RuntimeError as error:
        if dist.is_initialized():
            dist.destroy_process_group()  # while Python runs: its threads free tensors
        raise TrainingError(
            f"another process of this training has ended ({str(error).splitlines()[0][:120]})\n"
            "its own message says why; what was saved last is kept, go on with --resume"
        ) from None


def join(device: torch.device) -> Processes:
    """Join the processes that torchrun started for this training, or stay alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Processes()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # An optimiser's first step imports this, and its functions' defaults keep the group that there is then.
    # That group's threads outlived `leave`: they free tensors, and where they did so while the interpreter
    # was ending, the process ended by SIGABRT.
    importlib.import_module("torch.distributed.nn")

    with _partners():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Processes(rank=int(os.environ["RANK"]), count=count)
