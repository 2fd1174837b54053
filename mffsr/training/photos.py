"""The training photographs: decoded once, kept as uint8 on the device, with a map of where they are sharp."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from mffsr.errors import PhotoError, TrainingError, UsageError
from mffsr.photo import read_photo, with_depth
from mffsr.photo.capture import SUFFIXES

__all__ = ["Crop", "Photos", "find_photos", "hold_out", "load_photos", "sharp_blocks", "upload"]

BLOCK = 32  # side of the blocks whose sharpness is judged, pixels
REDUCED = (0.6,)  # sizes at which each photograph is trained on as well: details of other sizes
FEWEST = 2  # photographs a folder must hold: one to train on, one to validate on
# Turns of a square of side n + 1: pixel (i, j) is taken from the row and the column n·a + i·b + j·c.
_TURNS = (
    ((0, 1, 0), (0, 0, 1)),
    ((0, 0, 1), (1, -1, 0)),
    ((1, -1, 0), (1, 0, -1)),
    ((1, 0, -1), (0, 1, 0)),
)


@dataclass(frozen=True)
class Crop:
    """A square of one photo and one of the eight ways to turn and flip it."""

    photo: int
    top: int
    left: int
    turn: int  # 0…7


def upload(values: NDArray[Any], device: torch.device) -> Tensor:
    """Copy numbers drawn on the host to the device, without waiting for what the device still has to do."""
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def sharp_blocks(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grade each 32×32 block of an image (H, W, 3): 1 sharp, 0 defocused, 0.5 flat; (H // 32, W // 32).

    Compares the finest detail (lost by a Gaussian of σ 0.8) with the next coarser one (σ 0.8 … 2): what is
    defocused has little of the former for its share of the latter. Measured on sharp photographs the ratio
    is above 0.5 in 90–99 % of the blocks, after a Gaussian blur of σ 1 below 0.5 in 75 %, of σ 1.5 in 99 %.
    Flat blocks teach little, but what flat areas look like has to be learnt too.
    """
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = cv2.GaussianBlur(gray, (0, 0), 0.8)
    coarse = cv2.GaussianBlur(fine, (0, 0), 1.8)
    rows, columns = gray.shape[0] // BLOCK, gray.shape[1] // BLOCK

    def energy(x: NDArray[np.float32]) -> NDArray[np.float32]:
        blocks = np.abs(x)[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
        return np.asarray(blocks.mean((1, 3)))

    detail, structure = energy(gray - fine), energy(fine - coarse)
    return np.where(structure < 0.6, 0.5, detail > 0.5 * structure).astype(np.float32)


class Photos:
    """All training photographs of a folder on one device, in one piece of memory.

    One piece, so that the crops of a whole batch are one gather instead of a few kernels each. The list
    `images`, (3, H, W) uint8 each, is emptied: no more than one of them is ever there twice.
    """

    def __init__(
        self, images: list[Tensor], sharp: Sequence[NDArray[np.float32]], names: Sequence[str]
    ) -> None:
        self.names = list(names)
        self.sharp = list(sharp)
        self._pixels, self.images, self._starts = _pack(images)
        area = np.array([image.shape[1] * image.shape[2] for image in self.images], np.float64)
        self._odds = np.cumsum(np.sqrt(area)) / np.sqrt(area).sum()  # large photos repeat themselves

    @property
    def device(self) -> torch.device:
        """Where the photos are."""
        return self._pixels.device

    def __len__(self) -> int:
        return len(self.images)

    @property
    def megapixels(self) -> float:
        """Pixels of all photos together, in millions."""
        return sum(image.shape[1] * image.shape[2] for image in self.images) / 1e6

    def fingerprint(self) -> str:
        """Return a short digest of the photos' names and sizes: a run resumes on the same ones."""
        sizes = [f"{Path(n).name} {tuple(i.shape)}" for n, i in zip(self.names, self.images, strict=True)]
        return hashlib.sha256("\n".join(sizes).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def choose(self, size: int, rng: Generator) -> Crop:
        """Draw a size×size crop whose blocks are mostly sharp; after 12 tries the sharpest one drawn."""
        best, best_share = None, -1.0
        for _ in range(12):
            photo = int(np.searchsorted(self._odds, rng.random()))
            height, width = self.images[photo].shape[1:]
            crop = Crop(
                photo,
                int(rng.integers(height - size + 1)),
                int(rng.integers(width - size + 1)),
                int(rng.integers(8)),
            )
            blocks = self.sharp[photo][
                crop.top // BLOCK : -(-(crop.top + size) // BLOCK),
                crop.left // BLOCK : -(-(crop.left + size) // BLOCK),
            ]
            share = float(blocks.mean()) if blocks.size else 0.0
            if share > best_share:
                best, best_share = crop, share
            if share >= 0.7:
                break
        assert best is not None  # noqa: S101 - the loop ran
        return best

    def cut(self, crops: Sequence[Crop], size: int) -> Tensor:
        """Return the crops as (B, 3, size, size), float32 in [0, 1], on the photos' device."""
        plan = np.array([self._plan(crop, size) for crop in crops], np.int64).reshape(-1, 4, 1, 1, 1)
        first, down, right, plane = upload(plan, self.device).unbind(1)
        line = torch.arange(size, device=self.device)
        colours = torch.arange(3, device=self.device)[:, None, None]
        index = first + plane * colours + (down * line[:, None] + right * line)
        return self._pixels[index].float() / 255

    def _plan(self, crop: Crop, size: int) -> tuple[int, int, int, int]:
        """Return where a crop's first pixel is, and how far to the next one down, right and in colour.

        A crop is turned by quarters (turn % 4, counter-clockwise), then flipped left to right (turn ≥ 4).
        """
        height, width = self.images[crop.photo].shape[1:]
        first, down, right = crop.top * width + crop.left, 0, 0
        for stride, (n, i, j) in zip((width, 1), _TURNS[crop.turn % 4], strict=True):
            n_, j_ = (n + j, -j) if crop.turn >= 4 else (n, j)
            first, down, right = first + stride * n_ * (size - 1), down + stride * i, right + stride * j_
        return self._starts[crop.photo] + first, down, right, height * width


def _pack(images: list[Tensor]) -> tuple[Tensor, list[Tensor], list[int]]:
    """Move images (3, H, W) into one buffer; returns it, the images as views of it, and where each begins.

    Empties the list as it goes, so that no more than one image is there twice.
    """
    starts = [0, *np.cumsum([image.numel() for image in images]).tolist()]
    pixels = torch.empty(starts[-1], dtype=torch.uint8, device=images[0].device)
    views = []
    for start in starts[:-1]:
        image = images.pop(0)
        views.append(pixels[start : start + image.numel()].view(image.shape))
        views[-1].copy_(image)
    return pixels, views, starts[:-1]


def find_photos(folder: Path, fewest: int = 1) -> list[Path]:
    """List the photographs below `folder`, sorted; raises UsageError where there are fewer than `fewest`.

    Hidden files and folders, as file managers put them beside photos, are left out. Files that differ in
    their suffix alone, as the RAW and the JPEG of a shot, are one photograph, else it might be trained on and
    validated on: the last one counts.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder of photographs")
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    found = list({path.with_suffix(""): path for path in files}.values())
    if len(found) < fewest:
        number = {0: "no photographs", 1: "only one photograph"}.get(len(found), f"{len(found)} photographs")
        raise UsageError(
            f"{folder}: {number}, training needs at least {fewest}\n"
            "looked for .jpg, .png, .tif and others that mffsr reads, in sub-folders too"
        )
    return found


def hold_out(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Split photographs into those to train on and, a quarter but at most four, those to validate on."""
    count = min(4, max(1, len(paths) // 4))
    held_out = list(paths[:: len(paths) // count][:count])
    return [path for path in paths if path not in held_out], held_out


def load_photos(
    paths: Sequence[Path],
    device: torch.device,
    *,
    smallest: int,
    reduced: Sequence[float] = (),
    purpose: str = "training",
    instead: str = "",
    progress: Callable[[], None] | None = None,
) -> Photos:
    """Decode the photos to uint8 tensors on `device`.

    Each is there once more, so much smaller, for every factor in `reduced` that leaves it large enough.
    Every fault is collected and named before training starts: TrainingError for photos that cannot be
    read, UsageError for those with a side shorter than the `smallest` pixels that the `purpose` needs, with
    what may be done `instead` of removing them.
    """

    def load(path: Path) -> list[tuple[Tensor, NDArray[np.float32]]] | _Fault:
        try:
            photo = read_photo(path)
        except PhotoError as error:
            return _Fault(str(error).splitlines()[0], damaged=True)
        width, height = photo.size
        if min(width, height) < smallest:
            text = f"{path}: {width}×{height} pixels, {purpose} needs at least {smallest}×{smallest}"
            return _Fault(text, damaged=False)
        pixels = with_depth(photo, 8).pixels.astype(np.uint8, copy=False)
        pixels = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels
        copies = [
            np.asarray(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)
            for factor in reduced
            if min(width, height) * factor >= smallest
        ]
        return [(_planes(image).to(device), sharp_blocks(image)) for image in (pixels, *copies)]

    with ThreadPoolExecutor() as pool:
        results = []
        for result in pool.map(load, paths):
            results.append(result)
            if progress:
                progress()
    faults = sorted(
        (item for item in results if isinstance(item, _Fault)), key=lambda fault: not fault.damaged
    )
    if faults:
        more = f"\n… and {len(faults) - 3} more" if len(faults) > 3 else ""
        text = "\n".join(fault.text for fault in faults[:3]) + more
        if faults[0].damaged:
            raise TrainingError(f"{text}\nremove these photographs and start again")
        raise UsageError(f"{text}\nremove these photographs{instead}")
    loaded = [item for item in results if not isinstance(item, _Fault)]
    del results
    names = [str(path) for path, copies in zip(paths, loaded, strict=True) for _ in copies]
    flat = [item for copies in loaded for item in copies]
    del loaded
    sharp = [item[1] for item in flat]
    images = [flat.pop(0)[0] for _ in range(len(flat))]
    return Photos(images, sharp, names)


def _planes(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


@dataclass(frozen=True)
class _Fault:
    """Why a photo cannot be trained on."""

    text: str
    damaged: bool  # or else too small
