"""What commands write: its names and formats, and that none of it replaces an input or another output."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mffsr.errors import UsageError
from mffsr.text import file_of

__all__ = [
    "aligned_names",
    "check_outputs",
    "default_output",
    "default_suffix",
    "free_name",
    "numbered_files",
    "preview_name",
    "with_preview",
]


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse an output that is an input or another output of the command, by whatever name; UsageError."""
    read = {mark for path in inputs for mark in _marks(file_of(path))}
    written: set[object] = set()
    for path in outputs:
        marks = _marks(path)
        if marks & read:
            raise UsageError(
                f"{path}: is one of the inputs, which are never overwritten\nchoose another name for it"
            )
        if marks & written:
            raise UsageError(f"{path}: is another file of this command already\nchoose another name for it")
        written |= marks


def _marks(path: Path) -> set[object]:
    """Return what a file is known by: its real path and, as it may have several, its number on the disk."""
    marks: set[object] = {os.path.normcase(os.path.realpath(path))}
    with contextlib.suppress(OSError, ValueError):  # it need not exist
        status = os.stat(path)
        marks.add((status.st_dev, status.st_ino))
    return marks


def default_output(first: Path, scale: int, depth: int) -> Path:
    """Return the name beside the first photo, of a format that holds `depth` bits."""
    return first.with_name(f"{file_of(first).stem}-fused-x{scale}{default_suffix(first, depth)}")


def default_suffix(first: Path, depth: int) -> str:
    """Return the first photo's own extension if that format is written and holds `depth` bits, else .tif."""
    from mffsr.photo import OUTPUT_EXTENSIONS, supported_depth

    first = file_of(first)
    suffix = first.suffix.lower()
    return suffix if suffix in OUTPUT_EXTENSIONS and supported_depth(first) >= depth else ".tif"


def free_name(target: Path, files: Callable[[Path], Sequence[Path]] = lambda path: (path,)) -> Path:
    """Return the name itself, or the first with a number, none of whose `files` exists."""
    candidate, number = target, 2
    while any(os.path.lexists(file) for file in files(candidate)):
        candidate = _numbered(target, number)
        number += 1
    return candidate


def numbered_files(
    target: Path, files: Callable[[Path], Sequence[Path]] = lambda path: (path,)
) -> list[Path]:
    """Return the `files` of all names with a number that `free_name` may have given; some may not exist."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # no such folder: nothing was written there
        names = os.listdir(target.parent)
    found = (re.match(re.escape(target.stem) + r"-([0-9]+)", name) for name in names)
    numbers = {int(match[1]) for match in found if match}
    return [file for number in sorted(numbers) if number > 1 for file in files(_numbered(target, number))]


def _numbered(target: Path, number: int) -> Path:
    return target.with_name(f"{target.stem}-{number}{target.suffix}")


def aligned_names(photos: Sequence[Path], folder: Path) -> list[Path]:
    """Return where registered photos go: numbered, as PNG where they are such, else as TIFF."""
    suffixes = [".png" if photo.suffix.lower() == ".png" else ".tif" for photo in photos]
    return [
        folder / f"{number:03d}-{file_of(photo).stem}{suffix}"
        for number, (photo, suffix) in enumerate(zip(photos, suffixes, strict=True), 1)
    ]


def preview_name(path: Path) -> Path:
    """Return where the colour preview of a focus map goes."""
    return path.with_name(f"{path.stem}-preview{path.suffix}")


def with_preview(path: Path) -> tuple[Path, Path]:
    """Return the files of a focus map: itself and its preview."""
    return path, preview_name(path)
