"""Whether a file still is what it was: its digest, and what the file system says of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mffsr.errors import PhotoError

from ._decoded import open_photo

__all__ = ["Content", "content", "unchanged"]

BLOCK = 1 << 20


class Content(NamedTuple):
    """The contents of a file at one moment."""

    sha256: str
    size: int
    status: tuple[int, ...]  # inode, size and time of the last change


def _status(path: Path) -> tuple[int, ...]:
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def content(path: Path, *, stop: Callable[[], bool] = lambda: False) -> Content:
    """Read a file and return its digest; raises PhotoError where it cannot be read.

    `stop` is asked after every MiB; where it says so, InterruptedError is raised.
    """
    sha = hashlib.sha256()
    with open_photo(path) as stream:
        try:
            status = _status(path)
            while block := stream.read(BLOCK):
                sha.update(block)
                if stop():
                    raise InterruptedError
        except InterruptedError:
            raise
        except OSError as fault:
            raise PhotoError(f"{path}: cannot be read: {fault.strerror or fault}") from fault
        return Content(sha.hexdigest(), stream.tell(), status)


def unchanged(path: Path, before: Content) -> bool:
    """Whether a file has not been written to since, as far as the file system tells.

    Of one that merely has another number, the contents tell: network folders may number files anew at any
    time, and a backup may have put the same file there again.
    """
    try:
        now = _status(path)
        if now[1:] != before.status[1:]:
            return False
        return now == before.status or content(path).sha256 == before.sha256
    except (OSError, PhotoError):
        return False
