"""One network against two: `fuse_bracket` on a pair, and a small super-resolution network on both its photos.

    python benchmarks/two_steps.py [--megapixels 2] [--scale 2]

The small network has the layers of IMDN (Hui et al., "Lightweight image super-resolution with information
multi-distillation network", ACM MM 2019; 0.69 M multiply–adds per pixel at ×2), untrained, tiles of 512 with
the same device, precision and memory layout. Its time does not include the fusion that would have to follow.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from speed import write_frames
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import mffsr
from mffsr.allocator import tune_malloc
from mffsr.checkpoint import load_model
from mffsr.compare import to_tensor
from mffsr.device import Runtime, choose
from mffsr.engine import fuse_bracket
from mffsr.tiles import tiles

HALO = 30
TILE = 512


class Distillation(nn.Module):
    """Four 3×3 convolutions, a quarter of whose channels is kept each time, and channel attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(64, 64, 3, padding=1)
        self.second = nn.Conv2d(48, 64, 3, padding=1)
        self.third = nn.Conv2d(48, 64, 3, padding=1)
        self.fourth = nn.Conv2d(48, 16, 3, padding=1)
        self.squeeze = nn.Sequential(nn.Conv2d(64, 4, 1), nn.ReLU(True), nn.Conv2d(4, 64, 1), nn.Sigmoid())
        self.fuse = nn.Conv2d(64, 64, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = [], x
        for layer in (self.first, self.second, self.third):
            part, rest = F.leaky_relu(layer(rest), 0.05).split((16, 48), 1)
            kept.append(part)
        out = torch.cat((*kept, self.fourth(rest)), 1)
        contrast = out.std((2, 3), keepdim=True) + out.mean((2, 3), keepdim=True)
        fused: Tensor = self.fuse(out * self.squeeze(contrast))
        return fused + x


class Small(nn.Module):
    """Six distillation blocks and a pixel shuffle."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 64, 3, padding=1)
        self.blocks = nn.ModuleList(Distillation() for _ in range(6))
        self.gather = nn.Sequential(nn.Conv2d(384, 64, 1), nn.LeakyReLU(0.05))
        self.tail = nn.Conv2d(64, 64, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(64, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, image: Tensor) -> Tensor:
        head = self.head(image)
        x, found = head, []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        out: Tensor = self.up(self.tail(self.gather(torch.cat(found, 1))) + head)
        return out


def clock(runtime: Runtime) -> float:
    """Return the time in seconds, once a graphics card has done all that it was given."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)
    return time.perf_counter()


def main() -> None:
    """Print both times and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--megapixels", type=float, default=2)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    tune_malloc()
    runtime = choose()
    model = runtime.place(load_model(options.scale, "photo")[0])
    small = runtime.place(Small(options.scale).eval())
    image = torch.rand(1, 3, 64, 64, device=runtime.device)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        small(image)
    print(
        f"{runtime.reason}; the small network does {counter.get_total_flops() / 2e6 / 64**2:.2f} M "
        "multiply–adds a pixel"
    )
    with tempfile.TemporaryDirectory() as name:
        photos = [mffsr.read_photo(p).pixels for p in write_frames(Path(name), options.megapixels, 2)]
    for _ in range(options.runs):
        started = clock(runtime)
        fuse_bracket(photos, model, runtime, align=False)
        ours = clock(runtime) - started
        started = clock(runtime)
        for photo in photos:
            for part in tiles(*photo.shape[:2], TILE, HALO):
                with torch.inference_mode(), runtime.autocast():
                    small(to_tensor(photo[part.outer], runtime))
        theirs = clock(runtime) - started
        print(
            f"one network {ours:.2f} s, small network on both {theirs:.2f} s: {ours / theirs:.2f} ×",
            flush=True,
        )


if __name__ == "__main__":
    main()
