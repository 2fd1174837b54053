"""JPEG, WebP, AVIF and HEIF through Pillow, one plug-in for one file.

The plug-in is called by its class, not through `Image.open`: whatever a file claims, no other decoder
(nor Ghostscript) is ever asked, and the caller's own pixel limit applies instead of Pillow's global one.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, cast

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, WebPImagePlugin

from . import _colour
from ._decoded import Decoded, Header, Pixels, UnsupportedError, Warn, like_srgb

__all__ = ["check_boxes", "decode", "decode_small", "encode_webp", "header"]


def _open(stream: BinaryIO, form: str) -> ImageFile.ImageFile:
    stream.seek(0)
    match form:
        case "JPEG":
            return JpegImagePlugin.jpeg_factory(stream)
        case "WebP":
            _check_riff(stream)
            return WebPImagePlugin.WebPImageFile(stream)
        case "AVIF":
            check_boxes(stream)
            return _open_avif(stream)
        case _:
            check_boxes(stream)
            return _open_heif(stream)


def _open_avif(stream: BinaryIO) -> ImageFile.ImageFile:
    try:
        from PIL import AvifImagePlugin, features
    except ImportError:
        raise UnsupportedError("AVIF needs Pillow 11.3 or newer: pip install -U pillow") from None
    if not features.check("avif"):
        raise UnsupportedError("this build of Pillow cannot read AVIF: pip install -U pillow")
    return AvifImagePlugin.AvifImageFile(stream)


def _open_heif(stream: BinaryIO) -> ImageFile.ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise UnsupportedError("HEIC needs an extra package: pip install 'mffsr[heic]'") from None
    return cast("ImageFile.ImageFile", HeifImageFile(stream))


def _check_riff(stream: BinaryIO) -> None:
    """A WebP states its length: a cut one is known without decoding."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(4)
    stated = int.from_bytes(stream.read(4), "little") + 8
    stream.seek(0)
    if stated > size + 1:  # some writers count a padding byte that they do not write
        raise ValueError(f"cut short: {size} of {stated} bytes")


def check_boxes(stream: BinaryIO) -> None:
    """AVIF and HEIF are boxes with stated lengths; decoders fill a cut file up with wrong pixels."""
    size = stream.seek(0, io.SEEK_END)
    position = 0
    while position < size:
        stream.seek(position)
        head = stream.read(16)
        if len(head) < 8:
            raise ValueError("cut short inside a box")
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            break  # the last box, up to the end of the file
        if length < 8 or position + length > size:
            raise ValueError(f"cut short: box {head[4:8]!r} reaches beyond the end")
        position += length
    stream.seek(0)


def _webp_size(stream: BinaryIO) -> tuple[int, int, bool]:
    """Width, height and alpha from the first chunk (WebP container specification)."""
    stream.seek(12)
    head = stream.read(30)
    kind, body = head[:4], head[8:]
    if kind == b"VP8X":
        width, height = (int.from_bytes(body[at : at + 3], "little") + 1 for at in (4, 7))
        return width, height, bool(body[0] & 0x10)
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:10])
        return width & 0x3FFF, height & 0x3FFF, False
    raise ValueError("the WebP header is damaged")


def header(stream: BinaryIO, form: str) -> tuple[Header, bytes | None, bytes | None]:
    """The header as stored in the file, with the EXIF and XMP blocks that may turn the picture."""
    if form == "WebP":
        _check_riff(stream)
        width, height, alpha = _webp_size(stream)
        exif, xmp = _riff_metadata(stream)
        head = Header(width=width, height=height, bit_depth=8, channels=3, format=form, has_alpha=alpha)
        return head, exif, xmp
    image = _open(stream, form)
    head = Header(
        width=image.width,
        height=image.height,
        bit_depth=8,
        channels=1 if image.mode in ("1", "L", "LA", "I;16") else 3,
        format=form,
        has_alpha=image.has_transparency_data,
    )
    return head, image.info.get("exif"), image.info.get("xmp")


def _riff_metadata(stream: BinaryIO) -> tuple[bytes | None, bytes | None]:
    """The EXIF and XMP chunks of a WebP."""
    size = stream.seek(0, io.SEEK_END)
    position, found = 12, {}
    while position + 8 <= size:
        stream.seek(position)
        kind, length = struct.unpack("<4sI", stream.read(8))
        if kind in (b"EXIF", b"XMP ") and position + 8 + length <= size:
            found[kind] = stream.read(length)
        position += 8 + length + length % 2
    return found.get(b"EXIF"), found.get(b"XMP ")


def decode(stream: BinaryIO, form: str, warn: Warn) -> Decoded:
    """Decode the first picture of the file; raises for anything cut short."""
    image = _open(stream, form)
    info = image.info
    if "mp" in info:
        warn("further pictures in the file (gain map, preview or second view) are not used")
    elif getattr(image, "n_frames", 1) > 1:
        warn("an animation or a series: only its first picture is used")
    if form in ("AVIF", "HEIF"):
        _tell_of_losses(stream, warn)
    image.load()
    icc = _colour.usable_icc(info.get("icc_profile") or None, _space(image.mode), warn)
    pixels, icc = _unpack(image, icc)
    orientation = info.get("original_orientation") if form == "HEIF" else None
    return Decoded(
        pixels=pixels,
        icc=icc,
        exif=info.get("exif"),
        xmp=info.get("xmp"),
        iptc=_iptc(info.get("photoshop")),
        dpi=_density(info.get("dpi") if info.get("jfif_unit") in (1, 2) else None),
        orientation=1 if orientation is not None else None,  # libheif has turned the picture already
    )


def decode_small(stream: BinaryIO, side: int) -> Pixels:
    """A JPEG as H×W gray pixels, reduced by up to 8 as long as no side falls below `side`; not turned."""
    image = _open(stream, "JPEG")
    image.draft("L", (side, side))
    image.load()
    return np.asarray(image.convert("L"))


def _tell_of_losses(stream: BinaryIO, warn: Warn) -> None:
    """Warn where the boxes of an AVIF or HEIF promise more than 8-bit sRGB gives."""
    stream.seek(0)
    head = stream.read(65536)
    av1, hevc = head.find(b"av1C"), head.find(b"hvcC")
    deep = 0 <= av1 < len(head) - 6 and head[av1 + 6] & 0x40  # AV1 in ISOBMFF, section 2.3.3
    deep = deep or (0 <= hevc < len(head) - 21 and head[hevc + 21] & 7)  # ISO/IEC 14496-15, 8.3.3.1
    if deep:
        warn("its 10 or 12 bits per channel are read as 8")
    at = head.find(b"colrnclx")  # ISO/IEC 14496-12, 12.1.5
    points = [int.from_bytes(head[start : start + 2], "big") for start in (at + 8, at + 10)]
    if at >= 0 and not like_srgb(*points) and b"colrprof" not in head:
        warn("its colours are not those of sRGB, yet it has no ICC profile; they will look duller")


def _iptc(resources: object) -> bytes | None:
    """The IPTC records among Photoshop's image resources of a JPEG."""
    found = resources.get(0x0404) if isinstance(resources, dict) else None
    return found if isinstance(found, bytes) else None


def _density(dpi: object) -> tuple[float, float] | None:
    if not isinstance(dpi, tuple) or len(dpi) != 2:
        return None
    across, down = (float(value) for value in dpi)
    return (across, down) if 1 < across < 1e6 and 1 < down < 1e6 else None


def _space(mode: str) -> str:
    return {"1": "GRAY", "L": "GRAY", "LA": "GRAY", "CMYK": "CMYK"}.get(mode, "RGB")


def _unpack(image: Image.Image, icc: bytes | None) -> tuple[Pixels, bytes | None]:
    """A decoded Pillow image as H×W×(1..4) uint8 pixels, with the profile that then fits."""
    if image.mode == "CMYK":
        pixels = _array(_colour.to_srgb(image, icc))
        return pixels, _colour.srgb_profile() if icc else None
    if image.mode not in ("L", "RGB", "LA", "RGBA"):
        gray = image.mode in ("1", "La")
        alpha = image.has_transparency_data
        image = image.convert({(0, 0): "RGB", (0, 1): "RGBA", (1, 0): "L", (1, 1): "LA"}[gray, alpha])
    return _array(image), icc


def _array(image: Image.Image) -> Pixels:
    """The pixels in a writable array, copied by strips: a whole copy would take the memory thrice."""
    image.load()
    height, step = image.height, 512
    first = np.asarray(image.crop((0, 0, image.width, min(step, height))))
    pixels = np.empty((height, *first.shape[1:]), first.dtype)
    pixels[:step] = first
    for top in range(step, height, step):
        pixels[top : top + step] = np.asarray(image.crop((0, top, image.width, min(top + step, height))))
    return pixels


def encode_webp(
    stream: BinaryIO,
    pixels: Pixels,
    *,
    quality: int,
    icc: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
) -> None:
    """Write H×W×3 or H×W×4 uint8 pixels as lossy WebP."""
    blocks = {"icc_profile": icc, "exif": exif, "xmp": xmp}
    options = {name: block for name, block in blocks.items() if block}
    memory = io.BytesIO()  # Pillow hides the reason when a disk is full
    Image.fromarray(pixels).save(memory, "WEBP", quality=quality, method=4, exact=True, **options)
    stream.write(memory.getbuffer())
