"""PNG: every chunk's checksum is verified before a pixel is believed; 16 bits stay 16 bits.

libpng gets only the chunks that make pixels. The metadata chunks are read and written here, so that
none can inflate without bound or spoil the picture. Reference: PNG specification, third edition.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO, NamedTuple, cast

import imagecodecs
import numpy as np

from ._decoded import Decoded, Header, Pixels, Warn, like_srgb

__all__ = ["decode", "encode", "header"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LARGEST_METADATA = 16 << 20
_XMP_KEYWORD = b"XML:com.adobe.xmp"
_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}
_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
# gAMA and cHRM of sRGB, in 1/100000; programs round them in different places.
_SRGB_GAMMA = (45455,)
_SRGB_CHROMATICITIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
_ROUNDED = 500
# Adam7: first column, first row, column step, row step of each pass (PNG, section 8.2).
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class _Ihdr(NamedTuple):
    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool


class _Chunk(NamedTuple):
    kind: bytes
    data: bytes


def _ihdr(data: bytes) -> _Ihdr:
    if len(data) != 13:
        raise ValueError("the PNG header has a wrong length")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", data)
    if not (0 < width < 2**31 and 0 < height < 2**31):
        raise ValueError(f"a PNG of {width}×{height} pixels")
    if depth not in _DEPTHS.get(colour, set()) or compression or filtering or interlace > 1:
        raise ValueError("the PNG header names an unknown kind of PNG")
    return _Ihdr(width, height, depth, colour, bool(interlace))


def _read_chunk(stream: BinaryIO, remaining: int) -> _Chunk:
    head = stream.read(8)
    if len(head) < 8:
        raise ValueError("the PNG is cut short")
    length = int.from_bytes(head[:4], "big")
    if length + 12 > remaining:
        raise ValueError("the PNG is cut short")
    data, checksum = stream.read(length), stream.read(4)
    if len(data) != length or len(checksum) != 4:
        raise ValueError("the PNG is cut short")
    if zlib.crc32(data, zlib.crc32(head[4:])) != int.from_bytes(checksum, "big"):
        raise ValueError(f"the checksum of a PNG chunk ({head[4:].decode('latin-1')!r}) is wrong")
    return _Chunk(head[4:], data)


def _rewind(stream: BinaryIO) -> int:
    size = stream.seek(0, 2)
    stream.seek(0)
    if stream.read(8) != SIGNATURE:
        raise ValueError("the PNG signature is damaged")
    return size - 8


def header(stream: BinaryIO) -> tuple[Header, bytes | None, bytes | None]:
    """The header as stored in the file, with the EXIF and XMP blocks that may turn the picture.

    Steps over the pixels without reading them.
    """
    remaining = _rewind(stream)
    first = _read_chunk(stream, remaining)
    if first.kind != b"IHDR":
        raise ValueError("the PNG does not begin with its header")
    ihdr = _ihdr(first.data)
    remaining -= 25
    kind, alpha, found = b"", ihdr.colour in (4, 6), Decoded(pixels=np.zeros((1, 1, 1), np.uint8))
    while kind != b"IEND":
        head = stream.read(8)
        kind, length = head[4:], int.from_bytes(head[:4], "big")
        if len(head) < 8 or length + 12 > remaining:
            raise ValueError("the PNG is cut short")
        remaining -= length + 12
        alpha = alpha or kind == b"tRNS"
        if kind in (b"eXIf", b"iTXt", b"zTXt"):
            _take_metadata(_Chunk(kind, stream.read(length)), found, lambda _text: None)
            stream.seek(4, 1)
        else:
            stream.seek(length + 4, 1)
    return _as_header(ihdr, alpha), found.exif, found.xmp


def _as_header(ihdr: _Ihdr, alpha: bool) -> Header:
    return Header(
        width=ihdr.width,
        height=ihdr.height,
        bit_depth=16 if ihdr.depth == 16 else 8,
        channels=_CHANNELS[ihdr.colour],
        format="PNG",
        has_alpha=alpha,
    )


def decode(stream: BinaryIO, warn: Warn) -> Decoded:
    """Decode the first picture of a PNG; raises for anything damaged."""
    chunks, trailing = _chunks(stream)
    ihdr = _ihdr(chunks[0].data)
    if any(chunk.kind == b"acTL" for chunk in chunks):
        warn("an animation: only its first picture is used")
    if trailing:
        warn(f"{trailing} bytes after the end of the PNG are not used")
    needed = [chunk for chunk in chunks if chunk.kind in (b"PLTE", b"tRNS")]
    packed = b"".join(chunk.data for chunk in chunks if chunk.kind == b"IDAT")
    if not packed:
        raise ValueError("the PNG has no pixels")
    result = Decoded(
        pixels=_decode_adam7(ihdr, needed, packed) if ihdr.interlaced else _decode(ihdr, needed, packed)
    )
    for chunk in chunks:
        _take_metadata(chunk, result, warn)
    if _has_colours_of_its_own(chunks):
        warn("its colours are described by gAMA and cHRM instead of a profile; they are read as sRGB")
    return result


def _chunks(stream: BinaryIO) -> tuple[list[_Chunk], int]:
    remaining = _rewind(stream)
    chunks: list[_Chunk] = []
    while not chunks or chunks[-1].kind != b"IEND":
        chunk = _read_chunk(stream, remaining)
        remaining -= len(chunk.data) + 12
        if not chunks and chunk.kind != b"IHDR":
            raise ValueError("the PNG does not begin with its header")
        if chunk.kind[:1].isupper() and chunk.kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            raise ValueError(f"an unknown critical PNG chunk ({chunk.kind!r})")
        chunks.append(chunk)
    return chunks, remaining


def _pack(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def _decode(ihdr: _Ihdr, needed: list[_Chunk], packed: bytes) -> Pixels:
    """Let libpng decode a PNG made of the pixel chunks alone, not interlaced."""
    parts = [SIGNATURE, _pack(b"IHDR", struct.pack(">IIBBBBB", *ihdr[:4], 0, 0, 0))]
    parts += [_pack(chunk.kind, chunk.data) for chunk in needed]
    step = 1 << 30  # a chunk holds less than 2 GiB
    parts += [_pack(b"IDAT", packed[start : start + step]) for start in range(0, len(packed), step)]
    pixels = imagecodecs.png_decode(b"".join([*parts, _pack(b"IEND", b"")]))
    if pixels.shape[:2] != (ihdr.height, ihdr.width):
        raise ValueError("the PNG decoder returned another size than the header says")
    return cast("Pixels", pixels)


def _decode_adam7(ihdr: _Ihdr, needed: list[_Chunk], packed: bytes) -> Pixels:
    """Interlaced: the seven passes are seven small PNGs, each scattered to its pixels."""
    bits = ihdr.depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[ihdr.colour]
    passes = []
    for left, top, across, down in _PASSES:
        width = -(-(ihdr.width - left) // across)
        height = -(-(ihdr.height - top) // down)
        if width > 0 and height > 0:
            passes.append((left, top, across, down, width, height, (1 + -(-width * bits // 8)) * height))
    total = sum(one[-1] for one in passes)
    lines = zlib.decompressobj().decompress(packed, total)
    if len(lines) != total:
        raise ValueError("the PNG holds too few pixels")
    result: Pixels | None = None
    start = 0
    for left, top, across, down, width, height, length in passes:
        part = zlib.compress(lines[start : start + length], 0)
        start += length
        pixels = _decode(ihdr._replace(width=width, height=height), needed, part)
        if result is None:
            result = np.zeros((ihdr.height, ihdr.width, *pixels.shape[2:]), pixels.dtype)
        result[top::down, left::across] = pixels
    assert result is not None  # noqa: S101 - the first pass always holds a pixel
    return result


def _inflate_metadata(data: bytes) -> bytes:
    result = zlib.decompressobj().decompress(data, _LARGEST_METADATA + 1)
    if len(result) > _LARGEST_METADATA:
        raise ValueError(f"it inflates to more than {_LARGEST_METADATA >> 20} MiB")
    return result


def _take_metadata(chunk: _Chunk, result: Decoded, warn: Warn) -> None:
    """Fill in what one ancillary chunk tells; a fault costs the chunk, not the photo."""
    kind, data = chunk
    try:
        if kind == b"iCCP":
            result.icc = _inflate_metadata(data[data.index(b"\0", 0, 80) + 2 :])
        elif kind == b"eXIf":
            result.exif = data
        elif kind == b"iTXt" and data.startswith(_XMP_KEYWORD + b"\0"):
            result.xmp = _international_text(data)
        elif kind == b"zTXt" and data.startswith(b"Raw profile type exif\0") and result.exif is None:
            result.exif = _raw_profile(_inflate_metadata(data[data.index(b"\0") + 2 :]))
        elif kind == b"pHYs" and len(data) == 9:
            across, down, unit = struct.unpack(">IIB", data)
            if unit == 1 and across and down:
                result.dpi = (across * 0.0254, down * 0.0254)
        elif kind == b"cICP" and not like_srgb(data[0], data[1]):
            warn("its colours are described by code points instead of a profile; they are read as sRGB")
    except (ValueError, IndexError, zlib.error) as fault:
        warn(f"the metadata chunk {kind.decode('latin-1')} is damaged and left out ({fault})")


def _has_colours_of_its_own(chunks: list[_Chunk]) -> bool:
    """Whether gAMA or cHRM differ from sRGB's, and no chunk stands above them (PNG 4.3)."""
    if {b"cICP", b"iCCP", b"sRGB"} & {chunk.kind for chunk in chunks}:
        return False
    for kind, data in chunks:
        usual = {b"gAMA": _SRGB_GAMMA, b"cHRM": _SRGB_CHROMATICITIES}.get(kind, ())
        if usual and len(data) == 4 * len(usual):
            stated = struct.unpack(f">{len(usual)}I", data)
            if any(abs(one - other) > _ROUNDED for one, other in zip(stated, usual, strict=True)):
                return True
    return False


def _international_text(data: bytes) -> bytes:
    start = len(_XMP_KEYWORD) + 1
    compressed, method = data[start], data[start + 1]
    text = data.split(b"\0", 1)[1][2:].split(b"\0", 2)[2]  # after language tag and translated keyword
    if compressed and method == 0:
        return _inflate_metadata(text)
    return text


def _raw_profile(text: bytes) -> bytes:
    """ImageMagick's older way to keep EXIF in a PNG: name, length and hexadecimal digits."""
    _, _, rest = text.lstrip(b"\n").partition(b"\n")
    _, _, digits = rest.strip().partition(b"\n")
    return bytes.fromhex(digits.decode("ascii"))


def encode(
    stream: BinaryIO,
    pixels: Pixels,
    *,
    icc: bytes | None,
    exif: bytes | None,
    xmp: bytes | None,
    dpi: tuple[float, float] | None,
) -> None:
    """Write H×W or H×W×(2..4) pixels, uint8 or uint16, as a PNG with its metadata."""
    # Level 6 takes 1.3 to 4 times as long and makes photographs 1 to 5 % smaller.
    png = imagecodecs.png_encode(np.ascontiguousarray(pixels), level=3)
    stream.write(png[:33])  # signature and header
    if icc:
        stream.write(_pack(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc, 9)))
    if dpi:
        across, down = (min(max(round(value / 0.0254), 1), 2**31 - 1) for value in dpi)
        stream.write(_pack(b"pHYs", struct.pack(">IIB", across, down, 1)))
    if exif:
        stream.write(_pack(b"eXIf", exif))
    if xmp:
        stream.write(_pack(b"iTXt", _XMP_KEYWORD + b"\0\0\0\0\0" + xmp))
    stream.write(memoryview(png)[33:])
