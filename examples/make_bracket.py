"""Make a two-photo focus bracket out of one sharp photo.

    python examples/make_bracket.py photo.png folder --ellipse 280 220 205 168 --ellipse 290 112 122 96

Inside the ellipses (centre x, centre y, half axes; pixels) lies the foreground. `near.jpg` is focused on it,
`far.jpg` on the rest. A defocused foreground spreads over the background, as it does behind a lens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

import mffsr
from mffsr.photo import with_depth
from mffsr.training.synth import defocus, kernel

RADIUS = 4.0  # of the blur discs, pixels
MARGIN = 16


def make(photo: Path, folder: Path, ellipses: list[tuple[int, int, int, int]]) -> list[Path]:
    """Write near.jpg and far.jpg and return their paths."""
    read = with_depth(mffsr.read_photo(photo), 8)
    pixels = read.pixels
    mask = np.zeros(pixels.shape[:2], np.uint8)
    for x, y, across, down in ellipses:
        cv2.ellipse(mask, (x, y), (across, down), 0, 0, 360, 255, -1, cv2.LINE_AA)
    padded = np.pad(pixels, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), mode="reflect")
    image = torch.from_numpy(padded.astype(np.float32) / 255).permute(2, 0, 1)[None]
    near = torch.from_numpy(np.pad(mask, MARGIN, mode="edge").astype(np.float32) / 255)[None, None]
    sharp, blurred = (torch.from_numpy(kernel(r, disc=True, size=2 * MARGIN - 1)) for r in (0.0, RADIUS))
    kernels = torch.stack((torch.stack((sharp, blurred)), torch.stack((blurred, sharp))))[:, :, None]
    radii = torch.tensor([[[0.0], [RADIUS]], [[RADIUS], [0.0]]])
    made = defocus(image, torch.cat((near, 1 - near), 1), kernels, radii, torch.tensor([True]))
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "near.jpg", folder / "far.jpg"]
    for path, frame in zip(paths, made.frames, strict=True):
        inner = frame[0, :, MARGIN:-MARGIN, MARGIN:-MARGIN].clamp(0, 1).permute(1, 2, 0).numpy()
        array = np.ascontiguousarray((inner * 255).round().astype(np.uint8))
        mffsr.write_photo(mffsr.Photo(pixels=array, icc=read.icc), path, quality=92)
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a focus bracket out of one sharp photo.")
    parser.add_argument("photo", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ellipse", type=int, nargs=4, action="append", required=True)
    given = parser.parse_args()
    for written in make(given.photo, given.folder, [tuple(e) for e in given.ellipse]):
        print(written)
