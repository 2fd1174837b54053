"""Photographs: files → pixels with everything that belongs to them.

    read_header(path) → Header     size, depth and format, without decoding
    read_photo(path)  → Photo      H×W×C pixels, upright, alpha apart, profile and metadata as bytes

The content decides what a file is, never its name. Whatever a hostile or damaged file makes a decoder
do, the caller sees a `PhotoError` that names file and cause.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mffsr.errors import BracketError, PhotoError
from mffsr.limits import MAX_MEGAPIXELS
from mffsr.text import plane_name, plane_of

from . import _blocks, _png, _pnm, _sniff
from ._decoded import (
    Decoded,
    Header,
    Pixels,
    UnsupportedError,
    Warn,
    guarded,
    open_photo,
    split_alpha,
    to_8_bit,
)

__all__ = [
    "MAX_PIXELS",
    "Photo",
    "check_pixels",
    "check_planes",
    "check_registrable",
    "planes_of",
    "read_header",
    "read_photo",
    "with_depth",
]

IPTC_START = b"\x1c"  # of every record
MAX_PIXELS = MAX_MEGAPIXELS * 1_000_000
MAX_REGISTERED_SIDE = 32_766  # OpenCV holds coordinates of a warp in 16 bits


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """One photograph, upright.

    pixels  H×W×1 (gray) or H×W×3 (RGB), uint8 or uint16, C-contiguous, full range
    alpha   H×W of the same type, not premultiplied; None if opaque
    icc     profile of the pixels' colour space; None means sRGB
    exif    TIFF-structured block without the "Exif\\0\\0" prefix, orientation 1
    xmp     XMP packet
    iptc    IPTC-IIM records
    dpi     dots per inch, across and down
    path, format  where it was read from and as what

    Raises ValueError if the arrays do not fit together.
    """

    pixels: Pixels
    alpha: Pixels | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    path: Path | None = None
    format: str | None = None
    iptc: bytes | None = None

    def __post_init__(self) -> None:
        pixels, alpha = self.pixels, self.alpha
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or min(pixels.shape) < 1:
            raise ValueError(f"pixels must be H×W×1 or H×W×3, not {pixels.shape}")
        if pixels.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be uint8 or uint16, not {pixels.dtype}")
        if not pixels.flags.c_contiguous:
            raise ValueError("pixels must be C-contiguous")
        if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
            raise ValueError(
                f"alpha must be {pixels.shape[:2]} of {pixels.dtype}, not {alpha.shape} of {alpha.dtype}"
            )

    @property
    def bit_depth(self) -> int:
        """8 or 16."""
        return self.pixels.dtype.itemsize * 8

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]


def with_depth(photo: Photo, bit_depth: int) -> Photo:
    """The photo with 8 or 16 bits per channel: 8 → 16 is exact (times 257), 16 → 8 rounds."""
    if bit_depth not in (8, 16):
        raise ValueError(f"bit depth must be 8 or 16, not {bit_depth}")
    if bit_depth == photo.bit_depth:
        return photo

    def convert(values: Pixels) -> Pixels:
        return to_8_bit(values) if bit_depth == 8 else values.astype(np.uint16) * np.uint16(257)

    alpha = None if photo.alpha is None else convert(photo.alpha)
    return replace(photo, pixels=convert(photo.pixels), alpha=alpha)


def read_header(path: str | os.PathLike[str]) -> Header:
    """What the file's header says, in milliseconds and without decoding a pixel.

    Raises `PhotoError` if the file is no readable photo of a supported format, as far as can be told.
    """
    path = Path(path)
    with open_photo(path) as stream, guarded(path):
        return _header(stream, _sniff.sniff(stream, path))


def planes_of(path: str | os.PathLike[str]) -> list[Path]:
    """The planes of a TIFF that is a stack, each by a name that `read_photo` takes; else `path` alone.

    Raises `PhotoError` for a stack of channels or of more than one dimension, and for what cannot be read.
    """
    path = Path(path)
    if plane_of(path)[1] is not None:
        return [path]
    with open_photo(path) as stream, guarded(path):
        if _sniff.sniff(stream, path) != "TIFF":
            return [path]
        from . import _tiff

        count = _tiff.planes(stream)
    return [plane_name(path, plane) for plane in range(count)] if count > 1 else [path]


def check_planes(photos: Sequence[Path]) -> None:
    """Raise `PhotoError` for a plane that is not there, before anything is decoded."""
    counts: dict[Path, int] = {}
    for photo in photos:
        file, plane = plane_of(photo)
        if plane is None:
            continue
        if file not in counts:
            counts[file] = len(planes_of(file))
        if plane >= counts[file]:
            raise PhotoError(f"{photo}: is not there: the file has {counts[file]}, counted from 0")


def read_photo(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, warn: Warn | None = None
) -> Photo:
    """Read one photo: JPEG, PNG, TIFF, WebP, PNM, camera RAW, AVIF, HEIC.

    16-bit files stay 16-bit. Palette, CMYK, bilevel and YCbCr become RGB or gray; of several pictures
    in a file the first is taken, or of a TIFF the one that a name such as `stack.tif[3]` says, counted from
    0. `warn` is called with one line for everything that had to be left out (a damaged profile, further
    pages). Raises `PhotoError` for whatever cannot be read completely, and for more than `max_pixels` pixels
    before any is decoded.
    """
    path = Path(path)

    def tell(text: str) -> None:
        if warn is not None:
            warn(f"{path}: {text}")

    with open_photo(path) as stream:
        with guarded(path):
            form = _sniff.sniff(stream, path)
            header = _header(stream, form)
        check_pixels(header, path, max_pixels)
        with guarded(path):
            decoded = _decode(stream, form, tell, plane_of(path)[1])
            return _finish(decoded, path, form, tell)


def check_pixels(header: Header, path: Path, max_pixels: int = MAX_PIXELS) -> None:
    """Raise `PhotoError` for more than `max_pixels` pixels."""
    pixels = header.width * header.height
    if pixels > max_pixels:
        raise PhotoError(
            f"{path}: has {header.width}×{header.height} = {_millions(pixels)} million pixels; "
            f"the limit is {_millions(max_pixels)} million\n"
            "fuse and batch take more with --max-megapixels"
        )


def check_registrable(size: tuple[int, int], name: object) -> None:
    """Raise `BracketError` for a size (width, height) that registration cannot warp."""
    if max(size) > MAX_REGISTERED_SIDE:
        raise BracketError(
            f"{name}: {size[0]}×{size[1]} pixels: photos with a side above {MAX_REGISTERED_SIDE} pixels "
            "cannot be registered\nuse --no-align (in Python align=False)"
        )


def _millions(pixels: int) -> str:
    """Return millions to the last pixel, lest a number just above the limit read as the limit."""
    return f"{pixels / 1e6:.6f}".rstrip("0").rstrip(".")


def _header(stream: BinaryIO, form: str) -> Header:
    """The header with the upright size."""
    turned: int | None = None
    exif: bytes | None
    xmp: bytes | None
    match form:
        case "PNG":
            header, exif, xmp = _png.header(stream)
        case "PNM":
            header, exif, xmp = _pnm.header(stream), None, None
        case "TIFF":
            from . import _tiff

            header, xmp = _tiff.header(stream)
            exif, turned = None, _tiff.orientation(stream)
        case "RAW":
            from . import raw

            return raw.header(stream)
        case _:
            from . import _pillow

            header, exif, xmp = _pillow.header(stream, form)
            turned = 1 if form == "HEIF" else None
    if _orientation(turned, exif, xmp) >= _SIDEWAYS:
        header = replace(header, width=header.height, height=header.width)
    return header


def _decode(stream: BinaryIO, form: str, warn: Warn, plane: int | None) -> Decoded:
    if plane is not None and form != "TIFF":
        raise UnsupportedError("is not there: no TIFF, so it has no planes")
    match form:
        case "PNG":
            return _png.decode(stream, warn)
        case "PNM":
            return _pnm.decode(stream)
        case "TIFF":
            from . import _tiff

            return _tiff.decode(stream, warn, plane)
        case "RAW":
            from . import raw

            return raw.decode(stream, warn)
        case _:
            from . import _pillow

            return _pillow.decode(stream, form, warn)


def _orientation(stated: int | None, exif: bytes | None, xmp: bytes | None) -> int:
    """1..8: of the file itself, else of EXIF, else of XMP."""
    for value in (stated, _blocks.exif_orientation(exif), _blocks.xmp_orientation(xmp)):
        if value is not None and 1 <= value <= 8:
            return value
    return 1


_SIDEWAYS = 5  # from this EXIF orientation on, rows are stored as columns
# EXIF orientation → what makes the picture upright (EXIF 2.32, 4.6.4): flip rows, flip columns, transpose.
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def _finish(decoded: Decoded, path: Path, form: str, warn: Warn) -> Photo:
    """Turn the pixels upright, part the alpha, and bring the metadata into agreement with them."""
    exif = _blocks.strip_exif_prefix(decoded.exif)
    xmp = decoded.xmp or None
    orientation = _orientation(decoded.orientation, exif, xmp)
    sideways = orientation >= _SIDEWAYS
    pixels, alpha = split_alpha(_UPRIGHT[orientation](decoded.pixels))
    icc = decoded.icc
    if icc is not None and form == "PNG":
        from ._colour import SPACES, usable_icc

        icc = usable_icc(icc, SPACES[pixels.shape[2]], warn)
    if icc is None and _blocks.says_adobe_rgb(exif):
        warn("by its EXIF data it is Adobe RGB, but no profile is embedded; it is read as sRGB")
    dpi = decoded.dpi or _blocks.exif_resolution(exif)
    if dpi is not None and sideways:
        dpi = dpi[1], dpi[0]
    return Photo(
        pixels=pixels,
        alpha=alpha,
        icc=icc,
        exif=_blocks.upright_exif(exif, warn, sideways=sideways),
        xmp=_blocks.upright_xmp(xmp),
        dpi=dpi,
        path=path,
        format=form,
        iptc=decoded.iptc if decoded.iptc and decoded.iptc.startswith(IPTC_START) else None,
    )
