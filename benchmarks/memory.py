"""Peak memory of `mffsr fuse` against the size of its tiles, to check the bytes per pixel in `plan_tiles`.

    python benchmarks/memory.py

Every run is a process of its own on a drawn pair of 1200×900, with the program's own handling of freed
memory; printed is its peak resident memory in each step above that of a run with the smallest tile, per
pixel of the largest tile with its halo. Linux alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import mffsr
from mffsr.model import FapnConfig, SrnConfig
from mffsr.model.joint import DECODER_REACH

HALO = {"focus": FapnConfig().halo, "render": SrnConfig(scale=2).reach + DECODER_REACH}  # the same at ×4
SMALL, LARGE = 64, 512


CODE = """
import re, sys
from pathlib import Path
from mffsr import allocator
allocator.tune_malloc()
allocator.keep_few_kernels()
import mffsr.engine as engine

def peak():
    found = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    Path("/proc/self/clear_refs").write_text("5")  # from here on anew
    return found

def watched(render):
    def run(*args, **named):
        print(peak())
        return render(*args, **named)
    return run

folder, tile, scale, precision = sys.argv[1:]
engine.plan_tiles = lambda *a: engine.Plan(focus=int(tile), render=int(tile))
engine.render = watched(engine.render)
photos = [f"{folder}/a.png", f"{folder}/b.png"]
engine.fuse(photos, scale=int(scale), precision=precision, align=False, clear_halos=False)
print(peak())
"""


def peaks(folder: Path, tile: int, scale: int, precision: str) -> tuple[int, int]:
    """Return the peak resident bytes of one run, while it finds focus and while it enlarges."""
    command = [sys.executable, "-c", CODE, str(folder), str(tile), str(scale), precision]
    focus, render = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(focus), int(render)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        for photo in "ab":
            pixels = rng.integers(0, 256, (900, 1200, 3)).astype(np.uint8)
            mffsr.write_photo(mffsr.Photo(pixels=pixels), folder / f"{photo}.png")
        print("precision scale  bytes per pixel: focus   render")
        for precision in ("bf16", "fp32"):
            for scale in (2, 4):
                base, large = (peaks(folder, tile, scale, precision) for tile in (SMALL, LARGE))
                focus, render = (
                    (most - least) / (LARGE + 2 * halo) ** 2
                    for most, least, halo in zip(large, base, HALO.values(), strict=True)
                )
                print(f"{precision:>9} {scale:>5}  {focus:22.0f} {render:8.0f}", flush=True)


if __name__ == "__main__":
    main()
