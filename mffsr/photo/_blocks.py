"""EXIF and XMP blocks as bytes: what they say of the picture, and bringing them upright with it."""

from __future__ import annotations

import contextlib
import io
import re

from ._decoded import Warn
from ._ifd import RATIONAL, Entry, Exif, IfdError, TiffReader, parse_exif

__all__ = [
    "exif_orientation",
    "exif_resolution",
    "parsed_exif",
    "resolution_of",
    "says_adobe_rgb",
    "strip_exif_prefix",
    "upright_exif",
    "upright_xmp",
    "xmp_orientation",
]

_ORIENTATION = 274
_EXIF = 0x8769  # pointer to the EXIF directory
_RESOLUTIONS, _FOCAL_PLANE_RESOLUTIONS = (282, 283), (0xA20E, 0xA20F)  # across and down
_FINEST = 1e9  # per inch or cm: pixels of a hundredth of a nanometre, less than any microscope tells apart
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|\s*>)\s*)([1-8])(?=\s*[\"'<])")


def strip_exif_prefix(block: bytes | None) -> bytes | None:
    """The TIFF structure alone; JPEG and some writers put "Exif\\0\\0" before it."""
    while block and block.startswith(b"Exif\0\0"):
        block = block[6:]
    return block or None


def parsed_exif(block: bytes | None, warn: Warn) -> Exif | None:
    """The block's fields; None, where it is damaged with a warning."""
    try:
        return parse_exif(block) if block is not None else None
    except IfdError as fault:
        warn(f"the EXIF data is damaged and left out ({fault})")
        return None


def exif_orientation(block: bytes | None) -> int | None:
    """The orientation that an EXIF block states, 1..8, or None."""
    value, _ = _find_orientation(strip_exif_prefix(block))
    return value


def _find_orientation(block: bytes | None) -> tuple[int | None, tuple[int, int] | None]:
    """The stated orientation and where its bytes are: (offset, length)."""
    if not block:
        return None, None
    try:
        reader = TiffReader(io.BytesIO(block))
        entry = reader.directory(reader.first).entries.get(_ORIENTATION)
        if entry is None or entry.number != 1:
            return None, None
        value = reader.integers(entry)[0]
        return (value if 1 <= value <= 8 else None), (entry.position, reader.length(entry))
    except IfdError:
        return None, None


def upright_exif(block: bytes | None, warn: Warn, *, sideways: bool) -> bytes | None:
    """The block with orientation 1 and not a byte changed elsewhere; None, with a warning, if unreadable.

    Where the stored picture lies `sideways`, what it states across and down changes places.
    """
    if not block:
        return None
    try:
        reader = TiffReader(io.BytesIO(block))
        main = reader.directory(reader.first).entries
    except IfdError as fault:
        warn(f"the EXIF data is damaged and left out ({fault})")
        return None
    upright = bytearray(block)
    if sideways:
        _swap(upright, reader, main, *_RESOLUTIONS)
        with contextlib.suppress(IfdError, IndexError, KeyError):
            inner = reader.directory(reader.integers(main[_EXIF])[0]).entries
            _swap(upright, reader, inner, *_FOCAL_PLANE_RESOLUTIONS)
    _, place = _find_orientation(block)
    if place is not None:
        one = (1).to_bytes(place[1], "little" if reader.order == "<" else "big")
        upright[place[0] : place[0] + place[1]] = one
    return bytes(upright)


def _swap(block: bytearray, reader: TiffReader, entries: dict[int, Entry], one: int, other: int) -> None:
    """Exchange the values of two fields, if both are a RATIONAL."""
    with contextlib.suppress(IfdError, KeyError):
        if entries[one][:2] == entries[other][:2] == (RATIONAL, 1):
            values = reader.raw(entries[one]), reader.raw(entries[other])
            for tag, value in zip((other, one), values, strict=True):
                block[entries[tag].position : entries[tag].position + len(value)] = value


def exif_resolution(block: bytes | None) -> tuple[float, float] | None:
    """Dots per inch by XResolution, YResolution and ResolutionUnit of the block."""
    if not block:
        return None
    try:
        return resolution_of(parse_exif(block, keep={282, 283, 296}.__contains__))
    except IfdError:
        return None


def says_adobe_rgb(block: bytes | None) -> bool:
    """Whether the block says, as cameras may that embed no profile, that it is Adobe RGB (DCF 2.0)."""
    parsed = parsed_exif(block, lambda _text: None)  # of damage `upright_exif` tells
    index = parsed.interop.get(1) if parsed is not None else None  # InteroperabilityIndex
    return index is not None and index.data.startswith(b"R03")


def resolution_of(exif: Exif) -> tuple[float, float] | None:
    """Dots per inch that a parsed block states, if it states a sane value."""
    unit = {2: 1.0, 3: 2.54}.get(exif.first_integer(exif.main, 296) or 2)
    across = exif.first_ratio(exif.main, 282)
    if unit is None or across is None:
        return None
    down = exif.first_ratio(exif.main, 283) or across
    return (across * unit, down * unit) if 1 < across < _FINEST and 1 < down < _FINEST else None


def xmp_orientation(packet: bytes | None) -> int | None:
    """The tiff:Orientation of an XMP packet, 1..8, or None."""
    match = _XMP_ORIENTATION.search(packet or b"")
    return int(match[2]) if match else None


def upright_xmp(packet: bytes | None) -> bytes | None:
    """The packet with tiff:Orientation 1, not a byte changed elsewhere."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet) if packet else None
