"""How busy the GPU is while it trains."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator

import torch

__all__ = ["Meter", "gpu_meter"]


class Meter(threading.Thread):
    """Asks the driver's own tool every other second, beside the training, which it never stops."""

    def __init__(self, command: list[str], pause: float = 2.0) -> None:
        super().__init__(daemon=True)
        self.command, self.pause = command, pause
        self._samples: list[float] = []
        self._ended = threading.Event()

    def run(self) -> None:
        """Sample until stopped, or until the tool fails once."""
        while not self._ended.is_set():
            try:
                answer = subprocess.run(self.command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
                self._samples.append(float(answer.stdout.split()[0]) / 100)
            except (OSError, subprocess.SubprocessError, ValueError, IndexError):
                return  # no tool, or a GPU that does not tell
            self._ended.wait(self.pause)

    def read(self) -> float | None:
        """Return the busy share (0…1) since the last call, None where nothing was measured."""
        samples, self._samples = self._samples, []
        return sum(samples) / len(samples) if samples else None

    def stop(self) -> None:
        """End the sampling."""
        self._ended.set()


@contextlib.contextmanager
def gpu_meter(device: torch.device) -> Iterator[Meter | None]:
    """Measure how busy a CUDA device is while the block runs; None for other devices."""
    tool = shutil.which("nvidia-smi") if device.type == "cuda" else None
    if tool is None:
        yield None
        return
    card = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--id={card}"]
    meter = Meter([tool, *query])
    meter.start()
    try:
        yield meter
    finally:
        meter.stop()
