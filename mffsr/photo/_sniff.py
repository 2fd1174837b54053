"""Which format a file is, by its first bytes; a foreign one is refused by its name."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from mffsr.errors import PhotoError

from ._ifd import IfdError, TiffReader

__all__ = ["RAW_SUFFIXES", "sniff"]

_RAW_NAMES = """
    3fr arw cr2 cr3 crw dcr dng erf fff iiq k25 kdc mef mos mrw
    nef nrw orf pef raf raw rw2 rwl sr2 srf srw x3f
"""
RAW_SUFFIXES = frozenset("." + name for name in _RAW_NAMES.split())
_READABLE = "JPEG, PNG, TIFF, WebP, PNM, camera RAW, AVIF and HEIC can be read"

_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"8BPS", "Photoshop PSD"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL ", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"icns", "ICNS"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"<svg", "SVG"),
    (0, b"PK\3\4", "ZIP"),
)
_OURS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (8, b"WEBP", "WebP"),
    *((0, b"P%c%c" % (kind, space), "PNM") for kind in b"56" for space in b" \t\n\r#"),
    (6, b"HEAPCCDR", "RAW"),  # Canon CRW
    (0, b"FUJIFILMCCD-RAW", "RAW"),
    (0, b"\0MRM", "RAW"),  # Minolta
    (0, b"FOVb", "RAW"),  # Sigma
    (0, b"IIRO", "RAW"),  # Olympus
    (0, b"IIRS", "RAW"),
    (0, b"MMOR", "RAW"),
    (0, b"IIU\0", "RAW"),  # Panasonic
    (4, b"ftypcrx ", "RAW"),  # Canon CR3
)
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def sniff(stream: BinaryIO, path: Path) -> str:
    """One of JPEG, PNG, TIFF, WebP, PNM, RAW, AVIF, HEIF; raises `PhotoError` for anything else."""
    stream.seek(0)
    head = stream.read(64)
    for at, mark, form in _OURS:
        if head.startswith(mark, at):
            return form
    if head[4:8] == b"ftyp":
        return _boxed(head, path)
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "RAW" if _is_raw(stream, head, path) else "TIFF"
    for at, mark, name in _FOREIGN:
        if head.startswith(mark, at):
            raise PhotoError(f"{path}: {name} is not supported; {_READABLE}")
    if path.suffix.lower() in RAW_SUFFIXES:
        return "RAW"  # a few old RAWs have no mark at all; LibRaw knows them by their size
    raise PhotoError(f"{path}: is not a photo, or its beginning is damaged; {_READABLE}")


def _boxed(head: bytes, path: Path) -> str:
    """A file of boxes, by its brands (ISO/IEC 14496-12, 4.3)."""
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[at : at + 4] for at in (8, *range(16, length, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & _HEIF_BRANDS:
        return "HEIF"
    raise PhotoError(f"{path}: is a film or an unknown kind of boxed file; {_READABLE}")


def _is_raw(stream: BinaryIO, head: bytes, path: Path) -> bool:
    """Whether a TIFF holds sensor data: by its suffix, Canon's mark, DNG's version, or a CFA directory."""
    if path.suffix.lower() in RAW_SUFFIXES or head[8:10] == b"CR":
        return True
    try:
        reader = TiffReader(stream)
        main = reader.directory(reader.first).entries
        if 50706 in main:  # DNGVersion
            return True
        offsets = [reader.first]
        if 330 in main and main[330].number <= 16:  # SubIFDs
            offsets += reader.integers(main[330])
        for offset in offsets:
            field = reader.directory(offset).entries.get(262)
            if field is not None and reader.integers(field)[:1] == (32803,):  # colour filter array
                return True
    except IfdError:
        pass
    return False
