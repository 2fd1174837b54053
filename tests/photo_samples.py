"""Photos and files for the tests, all made here."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import tifffile

from mffsr.photo import (
    Photo,
)
from mffsr.photo._colour import srgb_profile
from mffsr.photo._ifd import Exif, build_exif

LOSSLESS = (".png", ".tif")
FORMATS = (".jpg", ".png", ".tif", ".webp")


def smooth(height: int = 60, width: int = 80, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """Slow waves, which lossy formats keep within a few steps."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / 9 + k) * np.cos(y / 7 - k) * 0.4 + 0.5 for k in range(channels)]
    return np.round(np.stack(waves, axis=2) * np.iinfo(dtype).max).astype(dtype)


def noisy(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def camera_exif(orientation: int = 1) -> bytes:
    exif = Exif(order=">")
    exif.main[0x010F] = exif.text("Maker")
    exif.main[0x0112] = exif.integers(3, orientation)
    exif.exif[0x9003] = exif.text("2024:05:06 07:08:09")
    exif.gps[0x0000] = exif.integers(1, 2, 3, 0, 0)
    return build_exif(exif)


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"/>'
    b"</rdf:RDF></x:xmpmeta>"
)


def full_photo(**changes: object) -> Photo:
    photo = Photo(pixels=smooth(), icc=srgb_profile(), exif=camera_exif(), xmp=XMP, dpi=(300.0, 300.0))
    return replace(photo, **changes)  # type: ignore[arg-type]


def linear_gray_profile() -> bytes:
    """An ICC profile (v2) of gray pixels that count light."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)  # D50, in 1/65536
    curve = b"curv" + bytes(8)  # the identity
    tags = struct.pack(">I", 2) + struct.pack(">4sII4sII", b"wtpt", 156, 20, b"kTRC", 176, 12)
    head = struct.pack(">I4sI4s4s4s", 188, b"none", 0x02100000, b"mntr", b"GRAY", b"XYZ ") + bytes(12)
    return head + b"acsp" + bytes(28) + white[8:] + bytes(48) + tags + white + curve


def write_chunks(path: Path, chunks: list[tuple[bytes, bytes]]) -> None:
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_dng(path: Path, sensor: np.ndarray, orientation: int = 1) -> None:
    """A minimal DNG with an RGGB colour filter."""
    identity = tuple(v for x in (1, 0, 0, 0, 1, 0, 0, 0, 1) for v in (x, 1))
    tags = [
        (50706, 1, 4, bytes([1, 4, 0, 0]), True),
        (50707, 1, 4, bytes([1, 1, 0, 0]), True),
        (50708, 2, 0, "Test Camera", True),
        (271, 2, 0, "Test", True),
        (272, 2, 0, "Camera", True),
        (274, 3, 1, orientation, True),
        (33421, 3, 2, (2, 2), True),
        (33422, 1, 4, bytes([0, 1, 1, 2]), True),
        (50717, 4, 1, 65535, True),
        (50721, 10, 9, identity, True),
        (50728, 5, 3, (1, 1, 1, 1, 1, 1), True),
        (50778, 3, 1, 21, True),
    ]
    tifffile.imwrite(path, sensor, photometric=32803, extratags=tags, metadata=None, software=False)
