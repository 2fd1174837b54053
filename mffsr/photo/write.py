"""Photo → file: JPEG, PNG, TIFF or WebP by the extension, whole or not at all.

16-bit pixels stay 16-bit in PNG and TIFF and are rounded to 8 bits for JPEG and WebP. Profile, EXIF and
XMP go into every format, the resolution into all but WebP, which has no field of its own for it. See
`atomic_output` for how a file is put in place.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mffsr.errors import PhotoError, UsageError

from . import _jpeg, _png
from ._atomic import atomic_output, resolve_target
from ._blocks import parsed_exif
from ._colour import SPACES, gray_to_srgb, usable_icc
from ._decoded import Warn, guarded, join_alpha, to_8_bit
from ._ifd import build_exif
from .images import Photo

__all__ = ["OUTPUT_EXTENSIONS", "check_target", "supported_depth", "write_photo"]


class _Format(NamedTuple):
    """What a format can hold; `write_photo` has a case for each."""

    name: str
    depth: int  # bits per channel
    alpha: bool
    iptc: bool
    gray: bool = True
    largest_side: int | None = None  # pixels


_JPEG = _Format("JPEG", depth=8, alpha=False, iptc=True, largest_side=65_500)  # libjpeg's
_PNG = _Format("PNG", depth=16, alpha=True, iptc=False, largest_side=1_000_000)  # libpng's
_TIFF = _Format("TIFF", depth=16, alpha=True, iptc=True)
_WEBP = _Format("WebP", depth=8, alpha=True, iptc=False, gray=False, largest_side=16_383)  # 14 bits
_FORMATS = {".jpg": _JPEG, ".jpeg": _JPEG, ".png": _PNG, ".tif": _TIFF, ".tiff": _TIFF, ".webp": _WEBP}
OUTPUT_EXTENSIONS = tuple(_FORMATS)

_LARGEST_EXIF = _jpeg.LARGEST_SEGMENT - len(_jpeg.EXIF_NAME)
_LARGEST_XMP = _jpeg.LARGEST_SEGMENT - len(_jpeg.XMP_NAME)
_LARGEST_IPTC = _jpeg.LARGEST_SEGMENT - len(_jpeg.IPTC_HEAD) - 5  # its length, and a byte to make it even


def _format(path: Path) -> _Format:
    form = _FORMATS.get(path.suffix.lower())
    if form is None and path.is_dir():
        raise UsageError(f"{path}: is a folder; expected a file in it, such as {path / 'fused.tif'}")
    if form is None:
        raise UsageError(
            f"{path}: unknown output format {path.suffix or '(no extension)'}; "
            f"use one of {' '.join(OUTPUT_EXTENSIONS)}"
        )
    return form


def supported_depth(path: str | os.PathLike[str]) -> int:
    """Bits per channel, 8 or 16, that the format of `path` can hold; `UsageError` if it is unknown."""
    return _format(Path(path)).depth


def check_target(
    path: str | os.PathLike[str], *, size: tuple[int, int] | None = None, overwrite: bool = False
) -> None:
    """Everything about an output that can be known before the work begins.

    `size` is (width, height) in pixels. Raises `UsageError` for an unknown extension, `PhotoError`
    if the format cannot hold the size or the file could not be created.
    """
    path = Path(path)
    form = _format(path)
    limit = form.largest_side
    if size is not None and limit is not None and max(size) > limit:
        other = "a PNG or TIFF" if form.name != "PNG" else "a TIFF"
        raise PhotoError(
            f"{path}: {size[0]}×{size[1]} pixels do not fit into a {form.name}, "
            f"whose sides end at {limit}; write {other}"
        )
    resolve_target(path, overwrite=overwrite)


def write_photo(
    photo: Photo,
    path: str | os.PathLike[str],
    *,
    quality: int = 95,
    overwrite: bool = False,
    warn: Warn | None = None,
) -> None:
    """Write a photo; the extension of `path` chooses the format.

    `quality` (1..100) is that of JPEG and WebP. An existing file is refused unless `overwrite`; a
    symbolic link is followed and the file it names replaced (that it is no input, the caller checks).
    `warn` is called with one line for every part of the metadata that the format cannot hold.
    Raises `PhotoError`, `UsageError` for an unknown extension or what is no `Photo`, or ValueError for
    another quality; then the target is as it was.
    """
    path = Path(path)
    if not isinstance(photo, Photo):
        raise UsageError(
            f"{path}: {type(photo).__name__} given, expected a Photo; of an array, Photo(pixels=array)"
        )
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be 1..100, not {quality}")
    check_target(path, size=photo.size, overwrite=overwrite)
    form = _format(path)

    def tell(text: str) -> None:
        if warn is not None:
            warn(f"{path}: {text}")

    with atomic_output(path, overwrite=overwrite) as stream, guarded(path, doing="cannot be written"):
        icc = usable_icc(photo.icc, SPACES[photo.pixels.shape[2]], tell, then="; it is left out")
        pixels, alpha = photo.pixels, photo.alpha
        if not form.gray and pixels.shape[2] == 1:
            pixels, icc = gray_to_srgb(pixels, icc)
        if form.depth == 8:
            pixels, alpha = to_8_bit(pixels), None if alpha is None else to_8_bit(alpha)
        if not form.alpha and alpha is not None:
            tell(f"{form.name} holds no transparency, which is left out; write PNG, TIFF or WebP to keep it")
            alpha = None
        if not form.iptc and photo.iptc is not None:
            tell(f"{form.name} holds no IPTC data, which is left out; write JPEG or TIFF to keep it")
        joined = np.ascontiguousarray(join_alpha(pixels, alpha))
        match form.name:
            case "JPEG":
                exif, xmp, iptc = _fit_jpeg(photo, tell)
                _jpeg.encode(
                    stream, joined, quality=quality, icc=icc, exif=exif, xmp=xmp, iptc=iptc, dpi=photo.dpi
                )
            case "WebP":
                from . import _pillow

                _pillow.encode_webp(stream, joined, quality=quality, icc=icc, exif=photo.exif, xmp=photo.xmp)
            case "PNG":
                _png.encode(stream, joined, icc=icc, exif=photo.exif, xmp=photo.xmp, dpi=photo.dpi)
            case "TIFF":
                from . import _tiff

                _tiff.encode(
                    stream,
                    joined,
                    alpha=alpha is not None,
                    icc=icc,
                    exif=parsed_exif(photo.exif, tell),
                    xmp=photo.xmp,
                    iptc=photo.iptc,
                    dpi=photo.dpi,
                )
            case _:
                raise NotImplementedError(f"nothing writes {form.name} yet")


def _fit_jpeg(photo: Photo, warn: Warn) -> tuple[bytes | None, bytes | None, bytes | None]:
    """EXIF, XMP and IPTC within the 64 KiB of a JPEG segment."""
    exif, xmp, iptc = photo.exif, photo.xmp, photo.iptc
    if exif is not None and len(exif) > _LARGEST_EXIF:
        parsed = parsed_exif(exif, warn)
        exif = None
        if parsed is not None:
            for values in (parsed.exif, parsed.main):  # maker notes, previews and the like go first
                for tag in [tag for tag, value in values.items() if len(value.data) > 4096]:
                    del values[tag]
            rest = build_exif(parsed)
            exif = rest if len(rest) <= _LARGEST_EXIF else None
        kept = "its large parts are" if exif else "it is"
        warn(f"the EXIF data is too large for a JPEG; {kept} left out")
    if xmp is not None and len(xmp) > _LARGEST_XMP:
        warn("the XMP data is too large for a JPEG and left out")
        xmp = None
    if iptc is not None and len(iptc) > _LARGEST_IPTC:
        warn("the IPTC data is too large for a JPEG and left out")
        iptc = None
    return exif, xmp, iptc
