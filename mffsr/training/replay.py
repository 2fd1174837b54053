"""What keeps a GPU busy: a training step as one CUDA graph, and the next batch made while it runs.

A step is a thousand small kernels, which the host cannot start as fast as the GPU ends them. Recorded once,
they are started together. Drawing a batch is the host's work as well; a thread does it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["Ahead", "Replay"]

WARM_UP = 3  # steps taken one by one: compilers and cuDNN choose their kernels in them

T = TypeVar("T", bound=tuple[Tensor, ...])


class Replay(Generic[T]):
    """Calls `work` with a batch: the first few times as it is, then recorded as a CUDA graph and replayed.

    All batches are of one shape. `work` may allocate, but what it changes (parameters, moments, sums) must
    stay in the same memory, it must not look at a value, and its numbers are those of the recording: what
    changes from step to step has to be a tensor. Used on one stream, which is not the default one.
    """

    def __init__(self, work: Callable[[T], None]) -> None:
        self._work = work
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: T | None = None

    @property
    def recorded(self) -> bool:
        """Whether the next call replays."""
        return self._graph is not None

    def __call__(self, batch: T) -> None:
        """Do the work on the current stream."""
        self._calls += 1
        if self._calls <= WARM_UP:
            self._work(batch)
            return
        if self._graph is None or self._batch is None:
            self._batch = type(batch)(*(tensor.clone() for tensor in batch))
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream()):
                self._work(self._batch)
        for mine, given in zip(self._batch, batch, strict=True):
            mine.copy_(given)
        self._graph.replay()


class Ahead(Generic[T]):
    """Returns `make(step)`, and makes the next step's meanwhile, in a thread and on a stream of its own."""

    def __init__(self, make: Callable[[int], T], device: torch.device) -> None:
        self._make = make
        self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # the photographs arrive on this one
        self._thread = ThreadPoolExecutor(1, "batches")
        # The step of the batch that is being made, the batch, and when its stream will have made it.
        self._next: tuple[int, Future[tuple[T, torch.cuda.Event]]] | None = None

    def __call__(self, step: int) -> T:
        """Return the step's batch, ready for what the current stream is given from now on."""
        waiting = self._next
        future = waiting[1] if waiting and waiting[0] == step else self._thread.submit(self._run, step)
        batch, ready = future.result()
        self._next = (step + 1, self._thread.submit(self._run, step + 1))
        stream = torch.cuda.current_stream(self._stream.device)
        stream.wait_event(ready)
        for tensor in batch:
            tensor.record_stream(stream)
        return batch

    def _run(self, step: int) -> tuple[T, torch.cuda.Event]:
        with torch.cuda.stream(self._stream):
            return self._make(step), self._stream.record_event()

    def close(self) -> None:
        """End the thread; a batch that nobody asked for is dropped."""
        self._thread.shutdown(cancel_futures=True)
