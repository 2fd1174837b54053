"""How fast `mffsr fuse` is as a whole process, and how near to what the machine's convolutions can do.

    python benchmarks/speed.py [--megapixels 1 12 24] [--scales 1 2 4] [--frames 2 10] [--precision bf16]

Every line is a process of its own on drawn frames with soft-edged sharp areas. `network` is the time in FAPN
and SRN, `other` everything else from the start of the program to its end. `roofline` is what the networks'
multiply–adds take at the rate of a plain 3×3 convolution of 128 channels, measured first in this process,
over the time they took: every pixel once through FAPN for each frame after the first and once through SRN,
halos, coarse levels and the short cuts of the pyramid not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import mffsr
from mffsr.allocator import tune_malloc
from mffsr.checkpoint import load_model
from mffsr.device import Runtime, choose

SIDE = 64  # of the image whose multiply–adds are counted


def write_frames(folder: Path, megapixels: float, count: int) -> list[Path]:
    """Draw a photograph of 3:2 with detail of every size; frame i is sharp in the i-th of slanted bands."""
    width = round((megapixels * 1e6 * 1.5) ** 0.5)
    height = round(width / 1.5)
    rng = np.random.default_rng(0)
    sharp = np.zeros((height, width, 3), np.float32)
    for level in range(8):
        size = (max(2, width >> level), max(2, height >> level))
        detail = rng.standard_normal((size[1], size[0], 3)).astype(np.float32)
        sharp += cv2.resize(detail, (width, height), interpolation=cv2.INTER_CUBIC) * 5 * 1.5**level
    sharp = np.clip(sharp + 128, 0, 255)
    soft = cv2.GaussianBlur(sharp, (0, 0), width / 800)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    band = np.clip(((x + 0.3 * y) / 1.3 * count).astype(int), 0, count - 1)
    paths = []
    for index in range(count):
        mask = cv2.GaussianBlur((band == index).astype(np.float32), (0, 0), 2)[:, :, None]
        paths.append(folder / f"{index:02}.png")
        pixels = (sharp * mask + soft * (1 - mask)).round().astype(np.uint8)
        mffsr.write_photo(mffsr.Photo(pixels=pixels), paths[-1])
    return paths


def best_seconds(work: Callable[[], object], runtime: Runtime) -> float:
    """Return the shortest time of a few that `work` takes on the device."""
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        work()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def roofline(runtime: Runtime) -> float:
    """Return the multiply–adds a second of a plain convolution, the best of a few."""
    convolve = runtime.place(torch.nn.Conv2d(128, 128, 3, padding=1))
    image = torch.rand(1, 128, 384, 384, device=runtime.device).to(memory_format=torch.channels_last)
    with torch.inference_mode(), runtime.autocast():
        image = image.to(runtime.dtype)
        return 128 * 128 * 9 * 384 * 384 / best_seconds(lambda: convolve(image), runtime)


def multiply_adds(scale: int) -> tuple[float, float]:
    """Return the multiply–adds per source pixel of FAPN (a pair) and of FN (a source)."""
    model = load_model(scale, "photo")[0].to("meta")  # where no fused operator hides any
    image, mask = (torch.rand(1, channels, SIDE, SIDE, device="meta") for channels in (3, 1))
    found = []
    for work in (lambda: model.focus(image, image), lambda: model.render([image], mask)):
        with FlopCounterMode(display=False) as counter:
            work()
        found.append(counter.get_total_flops() / 2 / SIDE**2)
    return found[0], found[1]


def fuse(photos: list[Path], scale: int, options: list[str]) -> tuple[dict[str, Any], float, float]:
    """Run `mffsr fuse`; return its report, its wall time in seconds and its peak memory in bytes."""
    output = photos[0].with_name("fused.png")
    command = [sys.executable, "-m", "mffsr", "fuse", *map(str, photos), "-o", str(output)]
    command += ["--scale", str(scale), "--force", "--json", "--no-align", *options]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    text = process.stdout.read() if process.stdout else b""
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(text), time.perf_counter() - started, used.ru_maxrss * 1024.0


def line(photos: list[Path], megapixels: float, scale: int, rate: float, extra: list[str]) -> str:
    """Run one case and return its line; `rate` is the roofline."""
    told, wall, peak = fuse(photos, scale, extra)
    seconds, focus, source = told["seconds"], told["focus_tiles"], told["source_tiles"]
    network = seconds["focus"] + seconds["enlarge"]
    pixels = told["input"]["width"] * told["input"]["height"]
    fapn, srn = multiply_adds(scale)
    needed = pixels * (fapn * (len(photos) - 1) + (srn if scale > 1 else 0)) / rate
    return (
        f"{megapixels:5g} {len(photos):2} {scale:6} {wall:9.1f} {seconds['focus']:6.1f} "
        f"{seconds['enlarge']:8.1f} {wall - network:6.1f} {pixels * scale**2 / 1e6 / wall:10.2f} "
        f"{peak / 2**20:8.0f} {needed / network:9.0%} {focus['run']:>6}/{focus['all']:<5} "
        f"{source['run']}/{source['all']}"
    )


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megapixels", nargs="+", type=float, default=[1, 12, 24])
    parser.add_argument("--scales", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--frames", nargs="+", type=int, default=[2, 10])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    tune_malloc()
    runtime = choose(options.device, options.precision)
    rate = roofline(runtime)
    print(f"{runtime.reason}; a plain convolution does {rate / 1e9:.0f} G multiply–adds/s")
    print("   MP  N  scale   total s  focus  enlarge  other   MP out/s  peak MB  roofline   FAPN tiles  SRN")
    extra = ["--device", options.device, "--precision", options.precision]
    for megapixels in options.megapixels:
        for count in options.frames:
            with tempfile.TemporaryDirectory() as name:
                photos = write_frames(Path(name), megapixels, count)
                for scale in options.scales:
                    print(line(photos, megapixels, scale, rate, extra), flush=True)


if __name__ == "__main__":
    main()
