"""What a camera noted about a shot, read from the file's metadata without decoding its pixels.

read_capture(path) → Capture      camera, time, exposure, and its place in an in-camera focus bracket
thumbnail(path)    → 32×32 gray   small enough that focus hardly shows, for comparing shots
"""

from __future__ import annotations

import contextlib
import io
import struct
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mffsr.errors import PhotoError

from . import _blocks, _png, _sniff
from ._decoded import guarded, open_photo, to_8_bit
from ._ifd import Exif, IfdError, TiffReader, Value, parse_exif
from .images import MAX_PIXELS, check_pixels, read_header, read_photo

__all__ = ["SUFFIXES", "Capture", "read_capture", "similarity", "thumbnail"]

_NAMES = "jpg jpeg png tif tiff webp pnm ppm pgm heic heif hif avif"
SUFFIXES = _sniff.RAW_SUFFIXES | {f".{name}" for name in _NAMES.split()}
_OLYMPUS = (b"OLYMPUS\0", b"OM SYSTEM\0\0\0")  # then byte order and version, then the first directory
SIDE = 32  # of a thumbnail, pixels: a blur of 1 % of the photo's width is a third of one


@dataclass(frozen=True, kw_only=True)
class Capture:
    """A shot. Fields that the file does not tell are None."""

    path: Path
    camera: str | None = None  # make, model and serial number
    time: float | None = None  # seconds on the camera's clock, from an arbitrary start
    # exposure time in s, f-number, focal length in mm
    settings: tuple[float | None, ...] = (None, None, None)
    sequence: int | None = None  # number of the shot in a focus bracket, as the camera counted


def read_capture(path: Path) -> Capture:
    """Return what is known of a shot; raises PhotoError for what is no photo or cannot be read."""
    with open_photo(path) as stream, guarded(path):
        exif = _exif(stream, _sniff.sniff(stream, path))
    if exif is None:
        return Capture(path=path)
    names = [_text(exif.main, 0x010F), _text(exif.main, 0x0110), _text(exif.exif, 0xA431)]
    settings = tuple(exif.first_ratio(exif.exif, tag) for tag in (0x829A, 0x829D, 0x920A))
    return Capture(
        path=path,
        camera=" ".join(name for name in names if name) or None,
        time=_time(exif),
        settings=settings,
        sequence=_focus_sequence(exif),
    )


def _exif(stream: BinaryIO, form: str) -> Exif | None:
    """The EXIF directories of a photo, or None."""
    with contextlib.suppress(IfdError):
        match form:
            case "TIFF":
                return parse_exif(TiffReader(stream), largest=1 << 18)
            case "RAW":
                from .raw import exif_of_raw

                block = exif_of_raw(stream)
            case "PNG":
                block = _png.header(stream)[1]
            case "PNM":
                block = None
            case _:
                from . import _pillow

                block = _pillow.header(stream, form)[1]
        block = _blocks.strip_exif_prefix(block)
        return parse_exif(block) if block else None
    return None


def _text(values: dict[int, Value], tag: int) -> str:
    value = values.get(tag)
    return "" if value is None else value.data.split(b"\0")[0].decode("latin-1").strip()


def _time(exif: Exif) -> float | None:
    """DateTimeOriginal with its fraction of a second, or None."""
    try:
        moment = datetime.strptime(_text(exif.exif, 0x9003), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    fraction = _text(exif.exif, 0x9291)
    seconds = (moment - datetime(1970, 1, 1)).total_seconds()
    return seconds + (float(f"0.{fraction}") if fraction.isascii() and fraction.isdecimal() else 0.0)


def _focus_sequence(exif: Exif) -> int | None:
    """The shot's number in an in-camera focus bracket, where the maker's note says so plainly, or None.

    Panasonic: BurstMode (0x2A) 3, or a step in FocusBracket (0xBD), and SequenceNumber (0x2B).
    Olympus, OM System: DriveMode (0x600) of the CameraSettings (0x2020): mode, number of the shot, kinds of
    bracket as bits. Other makers encrypt these fields, do not tell a focus bracket from others (Fujifilm), or
    keep no number of the shot (Canon). After the ExifTool tag tables.
    """
    if (value := exif.exif.get(0x927C)) is None:
        return None
    note = value.data
    if note.startswith(b"Panasonic\0"):
        found = _integers(note, 12, exif.order)
        bracketed = found.get(0x2A) == (3,) or any(found.get(0xBD, ()))
        return (found.get(0x2B, (0,))[0] or None) if bracketed else None
    for head in _OLYMPUS:
        if note.startswith(head):
            order = ">" if note[len(head) :].startswith(b"MM") else "<"
            (at, *_) = _integers(note, len(head) + 4, order).get(0x2020, (0,))
            drive = _integers(note, at, order).get(0x600, ()) if at else ()
            focus = len(drive) >= 3 and drive[0] == 5 and drive[2] >> 6 & 1
            return (drive[1] or None) if focus else None
    return None


def _integers(note: bytes, start: int, order: str) -> dict[int, tuple[int, ...]]:
    """The fields of 1 to 64 whole numbers of a directory in a maker's note; offsets count from its start."""
    found: dict[int, tuple[int, ...]] = {}
    with contextlib.suppress(struct.error):
        (count,) = struct.unpack_from(order + "H", note, start)
        for entry in range(start + 2, start + 2 + 12 * min(count, 500), 12):
            tag, kind, number = struct.unpack_from(order + "HHI", note, entry)
            code = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I"}.get(kind)
            if code is None or not 0 < number <= 64:
                continue
            layout = f"{order}{number}{code}"
            at = entry + 8
            if struct.calcsize(layout) > 4:
                (at,) = struct.unpack_from(order + "I", note, at)
            with contextlib.suppress(struct.error):  # beyond the note: another field may be inside
                found[tag] = struct.unpack_from(layout, note, at)
    return found


def thumbnail(path: Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.float32] | None:
    """Return a shot as 32×32 gray values of mean 0 and norm 1.

    None where it cannot be read, is flat, or has more than `max_pixels` pixels.
    """
    try:
        gray = _small(path, max_pixels)
    except PhotoError:
        return None
    rows = np.linspace(0, gray.shape[0], SIDE + 1).astype(int)[:-1]
    columns = np.linspace(0, gray.shape[1], SIDE + 1).astype(int)[:-1]
    if min(gray.shape) < SIDE:
        return None
    small = np.add.reduceat(np.add.reduceat(gray, rows, axis=0), columns, axis=1)
    small /= np.outer(np.diff([*rows, gray.shape[0]]), np.diff([*columns, gray.shape[1]]))
    small -= small.mean()
    norm = float(np.linalg.norm(small))
    return (small / norm).astype(np.float32) if norm > 1e-3 * SIDE else None


def _small(path: Path, max_pixels: int) -> NDArray[np.float32]:
    """The gray picture, of a JPEG at an eighth of its size, of a RAW from its preview where there is one."""
    check_pixels(read_header(path), path, max_pixels)
    with open_photo(path) as stream, guarded(path):
        form = _sniff.sniff(stream, path)
        data: BinaryIO | None = stream if form == "JPEG" else None
        if form == "RAW":
            from .raw import preview

            found = preview(stream)
            data = io.BytesIO(found) if found is not None else None
        if data is not None:
            from . import _pillow

            return _pillow.decode_small(data, 8 * SIDE).astype(np.float32)
    return to_8_bit(read_photo(path, max_pixels=max_pixels).pixels).mean(axis=2, dtype=np.float32)


def similarity(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the normalised correlation of two thumbnails, −1 … 1."""
    return float((one * other).sum())
