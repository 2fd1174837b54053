"""What a `fuse` is asked for, checked from names and headers before anything is computed."""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, overload

import typer

from mffsr.cli.console import Console
from mffsr.errors import BracketError, PhotoError, UsageError

if TYPE_CHECKING:
    from mffsr.photo import Photo

__all__ = [
    "Depth",
    "Framing",
    "Job",
    "Lazy",
    "Motion",
    "OnBadFrame",
    "OnExists",
    "Prefer",
    "aligned_name",
    "check_aligned",
    "check_focus_map",
    "default_output",
    "expand",
    "free_name",
    "natural",
    "parse_memory",
    "parse_tile",
    "prepare",
    "preview_name",
]


class Lazy(Sequence["Photo"]):
    """Photos that are read when they are asked for, and not kept."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Photo]) -> None:
        self._paths, self._read = paths, read

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Photo: ...
    @overload
    def __getitem__(self, index: slice) -> Lazy: ...
    def __getitem__(self, index: int | slice) -> Photo | Lazy:
        if isinstance(index, slice):
            return Lazy(self._paths[index], self._read)
        return self._read(self._paths[index])


class OnExists(str, Enum):
    """What to do where the output exists."""

    error = "error"
    skip = "skip"
    rename = "rename"
    overwrite = "overwrite"


class Depth(str, Enum):
    """Bits per channel of the output."""

    auto = "auto"
    eight = "8"
    sixteen = "16"


class OnBadFrame(str, Enum):
    """What to do with a frame that does not belong."""

    fail = "fail"
    drop = "drop"


class Prefer(str, Enum):
    """Which of two frames to take where both are equally sharp."""

    near = "near"
    far = "far"


class Motion(str, Enum):
    """What the frames may do to each other."""

    similarity = "similarity"
    affine = "affine"
    homography = "homography"


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How the frames are brought together."""

    crop: bool = True
    on_bad_frame: str = "fail"
    prefer: str | None = None
    model: str = "similarity"
    save_aligned: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything about one `fuse` that is known before any computing."""

    photos: list[Path]
    output: Path
    size: tuple[int, int]  # of the photos, width and height
    depth: int  # of the output
    scale: int
    overwrite: bool
    max_pixels: int  # that a photo may have
    source_depth: int = 8  # of the deepest photo
    framing: Framing = Framing()

    def open(self, console: Console, read: Callable[..., Photo] | None = None) -> Lazy:
        """Return the photos; `read` replaces `read_photo` where they are read ahead."""
        from mffsr.photo import read_photo

        def read_one(path: Path) -> Photo:
            if read is not None:
                return read(path, warn=console.warning)
            return read_photo(path, max_pixels=self.max_pixels, warn=console.warning)

        return Lazy(self.photos, read_one)


def expand(arguments: list[str]) -> list[Path]:
    """Return the files that the arguments stand for: paths, globs, @list files, - for stdin.

    Given files keep their order, those of a glob are sorted naturally (2 before 10).
    """
    found: list[Path] = []
    for argument in arguments:
        if argument == "-":
            found += [Path(line) for line in sys.stdin.read().splitlines() if line.strip()]
        elif argument.startswith("@") and not os.path.lexists(argument):
            listed = Path(argument[1:])
            try:
                lines = listed.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"{listed}: the list cannot be read ({error})") from None
            found += [Path(line) for line in lines if line.strip()]
        elif any(c in argument for c in "*?[") and not os.path.lexists(argument):
            matches = sorted(glob.glob(argument), key=natural)
            if not matches:
                raise PhotoError(f"{argument}: no photo matches")
            found += [Path(match) for match in matches]
        else:
            found.append(Path(argument))
    return found


def natural(name: str) -> list[int | str]:
    """Return a sort key in which numbers count as numbers."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)]


def prepare(
    paths: list[Path],
    output: Path | None,
    scale: int,
    depth: Depth,
    on_exists: OnExists,
    max_pixels: int,
    console: Console,
) -> Job:
    """Check everything that can be known from headers and folders; read no pixels, compute nothing."""
    from mffsr.photo import check_pixels, check_target, read_header, supported_depth

    if len(paths) < 2:
        raise UsageError(f"{len(paths)} photo given, expected at least 2: a bracket of one scene")
    headers = [read_header(path) for path in paths]
    for index, path in enumerate(paths):
        for other in paths[:index]:
            if os.path.samefile(path, other):
                raise UsageError(f"{path}: given twice")
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        check_pixels(header, path, max_pixels)
        if (header.width, header.height) != (first.width, first.height):
            raise BracketError(
                f"{path}: {header.width}×{header.height}, but {paths[0]} is {first.width}×{first.height}\n"
                "the photos of a bracket must have one size"
            )
    deepest = max(header.bit_depth for header in headers)
    target = output if output is not None else default_output(paths[0], scale, deepest)
    size = (first.width * scale, first.height * scale)
    for path in paths:
        if os.path.exists(target) and os.path.samefile(target, path):
            raise UsageError(
                f"{target}: is one of the inputs, which are never overwritten\nchoose another -o"
            )
    if os.path.lexists(target) and on_exists is OnExists.rename:
        target = free_name(target)
    if os.path.lexists(target) and on_exists is OnExists.skip:
        console.message(f"{target}: exists, skipped")
        console.result(str(target), {"output": str(target), "skipped": True})
        raise typer.Exit(0)
    check_target(target, size=size, overwrite=on_exists is OnExists.overwrite)
    able = supported_depth(target)
    bits = int(depth.value) if depth is not Depth.auto else min(deepest, able)
    if bits > able:
        raise UsageError(
            f"{target}: this format holds {able} bits a channel, not {bits}\nwrite a TIFF or PNG"
        )
    if depth is Depth.auto and deepest > able:
        console.warning(
            f"{target.name}: 16-bit photos, but the format holds 8 bits; write a TIFF or PNG to keep them"
        )
    _check_disk(target, size, bits)
    return Job(
        photos=paths,
        output=target,
        size=(first.width, first.height),
        depth=bits,
        scale=scale,
        overwrite=on_exists is OnExists.overwrite,
        max_pixels=max_pixels,
        source_depth=deepest,
    )


def default_output(first: Path, scale: int, depth: int) -> Path:
    """Return the name beside the first photo, of a format that holds what the photos hold."""
    from mffsr.photo import OUTPUT_EXTENSIONS

    suffix = first.suffix.lower()
    suffix = (
        suffix
        if suffix in OUTPUT_EXTENSIONS and (depth == 8 or suffix in (".png", ".tif", ".tiff"))
        else ".tif"
    )
    return first.with_name(f"{first.stem}-fused-x{scale}{suffix}")


def free_name(target: Path) -> Path:
    """Return the first name with a number that nothing has."""
    number = 2
    while True:
        candidate = target.with_name(f"{target.stem}-{number}{target.suffix}")
        if not os.path.lexists(candidate):
            return candidate
        number += 1


def _check_disk(target: Path, size: tuple[int, int], bits: int) -> None:
    """Refuse where the disk cannot take even a well compressed picture; raises PhotoError."""
    needed = size[0] * size[1] * 3 * bits // 8 // (1 if bits == 16 else 10)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise PhotoError(
            f"{target}: No space left: about {needed >> 20} MB are needed, {free >> 20} MB are free\n"
            "free some, or write to another disk"
        )


def check_focus_map(path: Path, photos: list[Path], job: Job) -> None:
    """Refuse a focus map that cannot be written; raises UsageError or PhotoError."""
    from mffsr.photo import check_target

    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: the focus map is a PNG file")
    if os.path.exists(path) and any(os.path.samefile(path, photo) for photo in photos):
        raise UsageError(f"{path}: is one of the inputs, which are never overwritten")
    for target in (path, preview_name(path)):
        check_target(target, overwrite=job.overwrite)


def check_aligned(job: Job, align: bool) -> None:
    """Refuse a folder for registered photos that cannot be written to; raises UsageError or PhotoError."""
    from mffsr.photo import check_target

    folder = job.framing.save_aligned
    if folder is None:
        return
    if not align:
        raise UsageError("--save-aligned: nothing is registered with --no-align")
    if not folder.is_dir():
        if os.path.lexists(folder):
            raise UsageError(f"{folder}: is no folder")
        if not folder.parent.is_dir():
            raise PhotoError(f"{folder}: the folder above it does not exist")
        return
    for index in range(len(job.photos)):
        check_target(aligned_name(job, index), overwrite=job.overwrite)


def aligned_name(job: Job, index: int) -> Path:
    """Return where a registered photo goes: numbered, as PNG where it is one, else as TIFF."""
    photo = job.photos[index]
    suffix = ".png" if photo.suffix.lower() == ".png" else ".tif"
    return (job.framing.save_aligned or photo.parent) / f"{index + 1:03d}-{photo.stem}{suffix}"


def preview_name(path: Path) -> Path:
    """Return where the colour preview of a focus map goes."""
    return path.with_name(f"{path.stem}-preview{path.suffix}")


def parse_tile(text: str) -> int | None:
    """Return the side of a tile in pixels, None for auto; raises UsageError."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"tile {text}: expected auto or a number of pixels")
    return int(text)


def parse_memory(text: str) -> int | None:
    """Return bytes for something like 4G, None for nothing; raises UsageError."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)i?B?", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"max-memory {text}: expected something like 4G or 800M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
