"""Generated photos and brackets, without a line of the program that is tested."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

cv2.setNumThreads(1)
Picture = NDArray[np.uint8]


def textured(size: tuple[int, int], seed: int = 0) -> Picture:
    """Return a colour picture (height × width × 3) with detail everywhere."""
    width, height = size
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for step in (1, 3, 9, 27):
        small = rng.uniform(0, 1, (height // step + 2, width // step + 2, 3)).astype(np.float32)
        image += cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) * step**0.5
    spread = float(image.max() - image.min()) or 1.0
    scaled: Picture = ((image - image.min()) / spread * 215 + 20).round().astype(np.uint8)
    return scaled


def bracket(size: tuple[int, int], seed: int = 0, count: int = 2) -> list[Picture]:
    """Return photos of one scene, each sharp in one upright stripe of it."""
    sharp = textured(size, seed)
    soft = cv2.GaussianBlur(sharp, (0, 0), 2.0)
    edges = np.linspace(0, size[0], count + 1).round().astype(int)
    frames = []
    for left, right in pairwise(edges):
        frame = soft.copy()
        frame[:, left:right] = sharp[:, left:right]
        frames.append(frame.astype(np.uint8))
    return frames


def write(path: Path, pixels: Picture, **options: object) -> Path:
    """Write pixels (RGB or gray) with Pillow."""
    if path.suffix in (".jpg", ".jpeg"):
        options = {"quality": 95, "subsampling": 0} | options
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def write_bracket(
    folder: Path, size: tuple[int, int], seed: int = 0, names: Sequence[str] = ("a.jpg", "b.jpg")
) -> list[Path]:
    """Write a bracket into a folder, which is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = bracket(size, seed, len(names))
    return [write(folder / name, frame) for name, frame in zip(names, frames, strict=True)]


def write_photos(folder: Path, count: int, size: tuple[int, int] = (160, 120)) -> Path:
    """Write sharp photos of different scenes into a new folder: 0.png, 1.png …"""
    folder.mkdir()
    for number in range(count):
        write(folder / f"{number}.png", textured(size, number))
    return folder


def write_folders(root: Path, count: int, size: tuple[int, int] = (80, 64)) -> Path:
    """Write `count` brackets, each in a folder of its own: b01, b02 …"""
    for number in range(1, count + 1):
        write_bracket(root / f"b{number:0{len(str(count))}d}", size, seed=number)
    return root


def write_deep(path: Path, pixels: NDArray[np.uint16]) -> Path:
    """Write 16-bit RGB pixels as PNG or TIFF with OpenCV."""
    if not cv2.imwrite(str(path), np.ascontiguousarray(pixels[:, :, ::-1])):
        raise OSError(f"{path} was not written")
    return path


def psnr(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Return the peak signal-to-noise ratio of two pictures of values 0…1 in dB."""
    error = float(np.mean((one - other) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))
