"""Where the frames of a bracket are kept: few and small ones in memory, many or large ones in a file.

    store[i][rows, columns]     the part of a frame that a tile needs, an ordinary array

Memory hardly grows with the number of frames: a bracket above `IN_MEMORY` bytes lies in one temporary file,
of which plain reads take the rows that are asked for (mapped pages would count as this process's memory). On
POSIX the file has no name from the start, so that nothing is left behind however the process ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from mffsr.errors import PhotoError
from mffsr.photo import Pixels

__all__ = ["CodedFrame", "Frame", "FrameStore", "disk_needed", "row_blocks"]

IN_MEMORY = 64 << 20  # bytes that all frames of a bracket may take together before they go to a file
BLOCK = 8 << 20  # bytes handled at once where a whole frame is walked through


class StoredFrame:
    """A frame H×W×C in the store's file: `frame[rows, columns]` reads that part, as of an array."""

    def __init__(self, file: IO[bytes], offset: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]):
        self.shape = shape
        self.dtype = dtype
        self._file, self._offset = file, offset

    @property
    def nbytes(self) -> int:
        """Bytes of the frame."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __getitem__(self, part: tuple[slice, slice]) -> Pixels:
        first, last, step = part[0].indices(self.shape[0])
        if step != 1:
            raise ValueError("rows must be consecutive")
        line = self.nbytes // self.shape[0]
        out: Pixels = np.empty((max(0, last - first), *self.shape[1:]), self.dtype)
        self._file.seek(self._offset + first * line)
        _read(self._file, out)
        columns = out[:, part[1]]
        return columns if columns.shape == out.shape else np.ascontiguousarray(columns)


class CodedFrame:
    """A frame H×W×C of other values: for each of its own the one that stands there in `table`."""

    def __init__(self, frame: Frame, table: Pixels) -> None:
        self.shape: tuple[int, ...] = frame.shape
        self.dtype: np.dtype[Any] = table.dtype
        self._frame, self._table = frame, table

    def __getitem__(self, part: tuple[slice, slice]) -> Pixels:
        found: Pixels = self._table[self._frame[part]]
        return found


Frame = Pixels | StoredFrame | CodedFrame  # H×W×C, uint8 or uint16


class FrameStore:
    """Frames by number, each put once or more; a context manager, whose end removes the file.

    `count` frames are expected; `folders` are those where the file may lie, best first (the system's for
    temporary files where none is given). Raises PhotoError where no disk has room for them and for what is
    still to come `beside` them, in another store.
    """

    def __init__(
        self,
        count: int,
        *,
        folders: Sequence[Path] = (),
        beside: FrameStore | None = None,
    ) -> None:
        self._count = count
        self._folders = folders
        self._beside = beside
        self._frames: dict[int, Frame] = {}
        self._room: dict[int, tuple[int, int]] = {}  # offset and bytes that a frame has in the file
        self._file: IO[bytes] | None = None
        self._end = 0
        self._expected = 0  # bytes of the file when all frames are there

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(self, *raised: object) -> None:
        self._frames.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Frame:
        return self._frames[index]

    def whole(self, index: int) -> Pixels:
        """Return all of a frame as an array; it may be the store's own and is not to be written to."""
        frame = self._frames[index]
        return frame if isinstance(frame, np.ndarray) else frame[:, :]

    def put(self, index: int, pixels: Pixels, *, borrowed: bool = False) -> None:
        """Keep a frame (H×W×C) under `index`, in place of an earlier one.

        A `borrowed` array lives elsewhere anyway and is only referred to.
        """
        if borrowed or self._count * pixels.nbytes <= IN_MEMORY:
            self._frames[index] = pixels
            return
        if self._file is None:
            self._expected = self._count * pixels.nbytes
            to_come = 0 if self._beside is None else self._beside.to_come
            self._file = _scratch(self._expected + to_come, self._folders)
        offset, room = self._room.get(index, (self._end, 0))
        if room < pixels.nbytes:
            offset, room = self._end, pixels.nbytes
            self._end += room
        self._room[index] = offset, room
        self._file.seek(offset)
        try:
            _write(self._file, pixels)
        except OSError as error:
            raise PhotoError(
                f"the frames cannot be kept on disk: {error.strerror or error}\n"
                f"about {self._count * pixels.nbytes >> 20} MB are needed; TMPDIR names another folder"
            ) from None
        self._frames[index] = StoredFrame(self._file, offset, pixels.shape, pixels.dtype)

    @property
    def to_come(self) -> int:
        """Bytes that the file is still to take."""
        return max(0, self._expected - self._end)


def disk_needed(count: int, plane: int, channels: int, *, alpha: bool) -> int:
    """Return the bytes on disk that `count` frames take while they are fused, `plane` bytes a channel."""
    stores = (count * plane * channels, count * plane * alpha)
    return sum(nbytes for nbytes in stores if nbytes > IN_MEMORY)


def row_blocks(shape: tuple[int, ...], itemsize: int = 1, *, least: int = 1) -> Iterator[slice]:
    """Cut the rows of a frame of `shape` into blocks of about `BLOCK` bytes, but of `least` rows."""
    step = max(least, BLOCK // max(1, int(np.prod(shape[1:])) * itemsize))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def _scratch(needed: int, folders: Sequence[Path]) -> IO[bytes]:
    """Open a temporary file in the first folder that has room and may be written to."""
    choice = [Path(os.environ["TMPDIR"])] if os.environ.get("TMPDIR") else []
    refused: dict[Path | None, str] = {}
    for folder in (*choice, *folders, None):
        place = folder
        try:
            place = place or Path(tempfile.gettempdir())  # only now: it fails where the system has none
            if place in refused:
                continue
            free = shutil.disk_usage(place).free
            if free >= needed:
                return tempfile.TemporaryFile(prefix=".mffsr-", dir=place, buffering=0)
            refused[place] = f"{place} has {free >> 20} MB free"
        except OSError as error:
            refused[place] = f"{place or 'the system'}: {error.strerror or error}"
    raise PhotoError(
        f"the frames cannot be kept on disk: {needed >> 20} MB are needed, "
        f"but {', '.join(refused.values())}\n"
        "let TMPDIR name a folder with more room that may be written to"
    )


def _write(file: IO[bytes], pixels: Pixels) -> None:
    view = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data
    while len(view):
        view = view[file.write(view) :]


def _read(file: IO[bytes], out: Pixels) -> None:
    view = out.reshape(-1).view(np.uint8).data
    while len(view):
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise OSError("the temporary file of the frames ended early")
        view = view[count:]
