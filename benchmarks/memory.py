"""Peak memory of `mffsr fuse` against the size of its tiles, to check the bytes per pixel in `plan_tiles`.

    python benchmarks/memory.py

Every run is a process of its own on a drawn pair of 1200×900, with the program's own handling of freed
memory; printed is its peak resident memory above that of a run with the smallest tile, per pixel of the
largest tile with its halo.
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


def peak(folder: Path, scale: int, focus: int, render: int, precision: str) -> int:
    """Return the peak resident bytes of one run."""
    code = (
        "import resource; from mffsr import allocator as a; a.keep_freed_memory(); a.keep_few_kernels()\n"
        "import mffsr.engine as f\n"
        f"f.plan_tiles = lambda *a: f.Plan(focus={focus}, render={render})\n"
        f"f.fuse(['{folder}/a.png', '{folder}/b.png'], scale={scale}, precision='{precision}', align=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    return int(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )


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
                base = peak(folder, scale, SMALL, SMALL, precision)
                focus = (peak(folder, scale, LARGE, SMALL, precision) - base) / (
                    LARGE + 2 * HALO["focus"]
                ) ** 2
                render = (peak(folder, scale, SMALL, LARGE, precision) - base) / (
                    LARGE + 2 * HALO["render"]
                ) ** 2
                print(f"{precision:>9} {scale:>5}  {focus:22.0f} {render:8.0f}", flush=True)


if __name__ == "__main__":
    main()
