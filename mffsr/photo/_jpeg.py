"""Writing JPEG: libjpeg-turbo makes the picture, the metadata segments are put in front of it here.

Not through Pillow, whose buffer for optimised Huffman tables is too small for noisy photographs
(https://github.com/python-pillow/Pillow/issues/148). References: ITU T.81, Annex B; JFIF 1.02;
EXIF 2.32, 4.7.2; ICC.1:2010, B.4; XMP part 3, 1.1.3.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

import imagecodecs
import numpy as np

from ._decoded import Pixels

__all__ = ["EXIF_NAME", "IPTC_HEAD", "LARGEST_SEGMENT", "XMP_NAME", "encode"]

LARGEST_SEGMENT = 65_533  # bytes after the two of the length
EXIF_NAME = b"Exif\0\0"
XMP_NAME = b"http://ns.adobe.com/xap/1.0/\0"
# Photoshop's image resources, of which one, without a name, is the IPTC-IIM records; then their length.
IPTC_HEAD = b"Photoshop 3.0\0" + b"8BIM" + struct.pack(">H", 0x0404) + bytes(2)
_ICC_NAME = b"ICC_PROFILE\0"
_JFIF_END = 20  # SOI, then the JFIF segment


def encode(
    stream: BinaryIO,
    pixels: Pixels,
    *,
    quality: int,
    icc: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
    iptc: bytes | None,
    dpi: tuple[float, float] | None,
) -> None:
    """Write H×W or H×W×3 uint8 pixels as baseline JPEG without chroma subsampling.

    `quality` is 1..100. `exif`, `xmp` and `iptc` must fit into one segment each; a profile may take several.
    """
    jpeg = imagecodecs.jpeg8_encode(
        np.ascontiguousarray(pixels), level=quality, subsampling="444", optimize=True
    )
    if jpeg[2:4] != b"\xff\xe0" or jpeg[6:11] != b"JFIF\0":
        raise ValueError("the JPEG encoder wrote no JFIF header")
    head = bytearray(jpeg[:_JFIF_END])
    if dpi and max(dpi) < 65535:  # beyond, as of microscopes, EXIF alone states it
        across, down = (max(round(value), 1) for value in dpi)
        head[13:18] = struct.pack(">BHH", 1, across, down)  # 1: dots per inch
    stream.write(head)
    if exif:
        stream.write(_segment(0xE1, EXIF_NAME + exif))
    if xmp:
        stream.write(_segment(0xE1, XMP_NAME + xmp))
    if iptc:
        stream.write(_segment(0xED, IPTC_HEAD + struct.pack(">I", len(iptc)) + iptc + bytes(len(iptc) % 2)))
    room = LARGEST_SEGMENT - len(_ICC_NAME) - 2
    parts = [icc[start : start + room] for start in range(0, len(icc), room)] if icc else []
    for number, part in enumerate(parts, 1):
        stream.write(_segment(0xE2, _ICC_NAME + bytes([number, len(parts)]) + part))
    stream.write(memoryview(jpeg)[_JFIF_END:])


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data
