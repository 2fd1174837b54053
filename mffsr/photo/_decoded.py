"""What every decoder hands over, and the care that every decoder needs."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from mffsr.errors import PhotoError
from mffsr.text import file_of

__all__ = [
    "Decoded",
    "Header",
    "Pixels",
    "UnsupportedError",
    "Warn",
    "guarded",
    "join_alpha",
    "like_srgb",
    "open_photo",
    "split_alpha",
    "to_8_bit",
]

Pixels: TypeAlias = NDArray[np.uint8 | np.uint16]
Warn: TypeAlias = Callable[[str], None]


class UnsupportedError(ValueError):
    """An undamaged file of a kind that is not read; the text completes "PATH: ..."."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a photo before its pixels are decoded.

    `width` and `height` are those of the upright picture, in pixels; `channels` is 1 (gray) or
    3 (colour) without the alpha channel; `bit_depth` is that of `Photo.pixels`, 8 or 16.
    """

    width: int
    height: int
    bit_depth: int
    channels: int
    format: str
    has_alpha: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.width, self.height


@dataclass(kw_only=True)
class Decoded:
    """Pixels as they lie in the file, not yet upright: H×W×C, C in 1..4 with alpha last if there is one."""

    pixels: Pixels
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    orientation: int | None = None  # EXIF numbering; None: take it from the metadata


def split_alpha(pixels: Pixels) -> tuple[Pixels, Pixels | None]:
    """H×W or H×W×(1..4) → contiguous, writable (H×W×1 or H×W×3, alpha H×W or None)."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    channels = pixels.shape[2]
    alpha = None
    if channels in (2, 4):
        alpha = np.ascontiguousarray(pixels[:, :, -1])
        pixels = pixels[:, :, :-1]
    return np.require(pixels, requirements=["C", "W"]), alpha


def join_alpha(pixels: Pixels, alpha: Pixels | None) -> Pixels:
    """H×W×C and H×W → H×W for gray, else H×W×(2..4), as the encoders want them."""
    if alpha is not None:
        return np.concatenate([pixels, alpha[:, :, None]], axis=2)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def like_srgb(primaries: int, transfer: int) -> bool:
    """Whether colours of these code points (ITU-T H.273) can be read as sRGB.

    BT.709's primaries and its curve, sRGB's, that of gamma 2.2, or unspecified; not PQ, HLG or linear light.
    """
    return primaries in (1, 2) and transfer in (1, 2, 4, 6, 13, 14, 15)


_DIVIDED_BY_257 = ((np.arange(65536, dtype=np.uint32) + 128) // 257).astype(np.uint8)


def to_8_bit(pixels: Pixels) -> NDArray[np.uint8]:
    """uint16 → uint8, rounded to the nearest: 65535 is 255. uint8 stays as it is."""
    return _DIVIDED_BY_257[pixels] if pixels.dtype == np.uint16 else cast("NDArray[np.uint8]", pixels)


@contextlib.contextmanager
def open_photo(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; pipes, devices, folders and empty files are refused at once.

    Of a plane of a stack, that is the stack's file.
    """
    try:
        file = file_of(path)
        _refuse_special(path, os.stat(file))
        stream = open(file, "rb", opener=_open_at_once)  # noqa: SIM115 - closed below
    except OSError as fault:
        raise PhotoError(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    except ValueError as fault:  # a NUL character in the name
        raise PhotoError(f"{str(path)!r}: cannot be read: {fault}") from fault
    with stream:
        _refuse_special(path, os.fstat(stream.fileno()))
        yield stream


def _open_at_once(path: str, flags: int) -> int:
    """Non-blocking, lest a pipe that took the file's place since the first look makes us wait."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse_special(path: Path, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise PhotoError(f"{path}: is a folder; a photo file was expected")
    if not stat.S_ISREG(status.st_mode):
        raise PhotoError(f"{path}: is a pipe or a device; a photo file was expected")
    if status.st_size == 0:
        raise PhotoError(f"{path}: is empty; copy the photo again")


_READING = "cannot be read"
_quiet = threading.Lock()
_quiet_users = 0
_quiet_state = warnings.catch_warnings()


def _nothing(_record: logging.LogRecord) -> bool:
    return False


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the codecs' warnings and log records in, for several threads at once.

    The filters of `warnings` belong to the process: the first thread in sets them, the last restores.
    """
    global _quiet_users, _quiet_state  # noqa: PLW0603 - counted by all threads
    logger = logging.getLogger("tifffile")
    with _quiet:
        if _quiet_users == 0:
            _quiet_state = warnings.catch_warnings()
            _quiet_state.__enter__()
            warnings.simplefilter("ignore")
            logger.addFilter(_nothing)
        _quiet_users += 1
    try:
        yield
    finally:
        with _quiet:
            _quiet_users -= 1
            if _quiet_users == 0:
                logger.removeFilter(_nothing)
                _quiet_state.__exit__(None, None, None)


@contextlib.contextmanager
def guarded(path: Path, *, doing: str = _READING) -> Iterator[None]:
    """Run a codec: its warnings and log records stay inside, its faults become `PhotoError`.

    Codecs report hostile files with ValueError, TypeError, RuntimeError, SyntaxError, KeyError,
    struct.error and more; a list would never be complete.
    """
    try:
        with _silence():
            yield
    except PhotoError:
        raise
    except UnsupportedError as fault:
        raise PhotoError(f"{path}: {fault}") from fault
    except MemoryError as fault:
        raise PhotoError(f"{path}: {doing}: there is not enough memory for its pixels") from fault
    except Exception as fault:
        advice = "; the file is damaged or unusual: copy it again or convert it"
        if doing != _READING or (isinstance(fault, OSError) and fault.errno):
            advice = ""
        raise PhotoError(f"{path}: {doing}: {_one_line(fault)}{advice}") from fault


def _one_line(fault: BaseException) -> str:
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    text = " ".join(str(fault).split()) or "no reason given"
    if isinstance(fault, (KeyError, IndexError, ZeroDivisionError, TypeError, struct.error)):
        text = f"{type(fault).__name__}: {text}"
    return text if len(text) <= 200 else text[:199] + "…"
