"""Names of files: they may hold anything, and numbers in them count as numbers.

`stack.tif[3]` is the fourth plane of that TIFF.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["file_of", "natural", "plane_name", "plane_of", "visible"]

_PLANE = re.compile(r"(.+)\[(\d{1,6})\]")


def visible(text: str) -> str:
    """Return text with control characters, direction marks and lone surrogates escaped; lines stay lines."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key in which numbers count as numbers: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), p) if p.isdecimal() and p.isascii() else (1, 0, p.casefold()) for p in parts if p]


def plane_of(photo: Path) -> tuple[Path, int | None]:
    """Return the file that holds a photo, and which plane of it the photo is; None where it is all of it.

    A file of just that name is a photo itself.
    """
    found = _PLANE.fullmatch(photo.name)
    if found is None or os.path.lexists(photo):
        return photo, None
    return photo.with_name(found[1]), int(found[2])


def file_of(photo: Path) -> Path:
    """Return the file that holds a photo."""
    return plane_of(photo)[0]


def plane_name(stack: Path, plane: int) -> Path:
    """Return what `plane_of` understands."""
    return stack.with_name(f"{stack.name}[{plane}]")
