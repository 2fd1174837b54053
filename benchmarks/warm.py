"""How fast a bracket is fused once everything is loaded: in one process, the last of a few times.

    python benchmarks/warm.py [--megapixels 24] [--frames 2] [--scale 2] [--runs 3] [--device cuda]

Drawn frames as in `speed.py`, read from PNG, registered, fused and written as JPEG. `network` is the time of
a graphics card's kernels, copies left out (on a CPU: of the stages that run the networks), `share` the
multiply–adds that `speed.py` counts, over those that a plain matrix product does in that time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from speed import best_seconds, multiply_adds, write_frames
from torch.profiler import ProfilerActivity, profile

import mffsr
from mffsr.checkpoint import load_model
from mffsr.device import Runtime, choose
from mffsr.engine import fuse_bracket
from mffsr.model import JointModel


def matrix_rate(runtime: Runtime, side: int) -> float:
    """Return the multiply–adds a second of a plain product of side×side matrices."""
    a, b = (torch.randn(side, side, device=runtime.device).to(runtime.dtype) for _ in range(2))
    return side**3 / best_seconds(lambda: a @ b, runtime)


def kernel_seconds(photos: list[Path], model: JointModel, runtime: Runtime) -> float:
    """Return how long the kernels of one fusion take on a graphics card, copies left out."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        fuse_bracket(photos, model, runtime)
        torch.cuda.synchronize()
    kernels = [e for e in found.key_averages() if not e.key.startswith(("Memcpy", "Memset"))]
    return sum(float(e.self_device_time_total) for e in kernels) / 1e6


def main() -> None:
    """Print a line per run, and the share of the matrix rate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megapixels", type=float, default=24)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    runtime = choose(options.device)
    on_cuda = runtime.device.type == "cuda"
    rate = matrix_rate(runtime, 8192 if on_cuda else 2048)
    print(f"{runtime.reason}; a plain matrix product does {rate / 1e12:.2f} T multiply–adds/s")
    model = runtime.place(load_model(options.scale, "photo")[0])
    with tempfile.TemporaryDirectory() as name:
        photos = write_frames(Path(name), options.megapixels, options.frames)
        network = 0.0
        for run in range(options.runs):
            started = time.perf_counter()
            fusion = fuse_bracket(photos, model, runtime)
            fused = time.perf_counter()
            mffsr.write_photo(fusion.photo, Path(name) / f"{run}.jpg")
            ended = time.perf_counter()
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in fusion.seconds.items())
            print(f"run {run + 1}: {ended - started:.2f} s: {stages}, write {ended - fused:.2f}", flush=True)
            network = fusion.seconds["focus"] + fusion.seconds["enlarge"]
        if on_cuda:
            print(f"peak memory of the card {torch.cuda.max_memory_allocated() / 2**20:.0f} MB")
            network = kernel_seconds(photos, model, runtime)
        height, width = fusion.labels.shape
    fapn, srn = multiply_adds(options.scale)
    needed = height * width * (fapn * (options.frames - 1) + (srn if options.scale > 1 else 0)) / rate
    print(f"network {network:.2f} s, share of the matrix rate {needed / network:.0%}")


if __name__ == "__main__":
    main()
