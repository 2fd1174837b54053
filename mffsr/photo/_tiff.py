"""TIFF and BigTIFF through tifffile: 8 and 16 bits, every layout and compression of photographs.

Pillow would turn 16-bit colour into 8 bits without a word. Before tifffile allocates anything, the
directory is checked: sizes within the limit, every strip and tile inside the file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import numpy as np
import tifffile
from PIL import Image

from . import _colour
from ._blocks import resolution_of
from ._decoded import Decoded, Header, Pixels, UnsupportedError, Warn
from ._description import is_stack, noted_resolution
from ._ifd import Exif, IfdError, TiffReader, UnknownTypeError, Value, append_to_tiff, build_exif, parse_exif

__all__ = ["check_segments", "decode", "descriptive", "encode", "header", "orientation", "planes"]

_BIG = 3_800_000_000  # bytes of pixels from which classic TIFF's 32-bit offsets may not suffice
_ICC, _XMP, _IPTC = 34675, 700, 33723
_DESCRIPTION = 270
_KIND = 254  # NewSubfileType; bit 0: a smaller copy of another picture in the file
_NOTES = (34118, 34680, 34682)  # of electron microscopes, by Zeiss and FEI
_PLANES = 33629  # one number for each plane of a MetaMorph stack
_MOST_PAGES = 10_000
_AXES = {"C": "channels", "Z": "planes", "T": "times"}
_RESOLUTION = (282, 283, 296)
_STRIPS, _TILES = (273, 279), (324, 325)  # tags of offsets and byte counts

# Fields that describe the pixels of the file itself and must not travel into another file: layout,
# orientation, codecs, YCbCr, sub-directories, XMP.
_STRUCTURAL = {
    *range(254, 260), 262, 263, 264, 265, 266, 273, 274, *range(277, 282), 284, *range(288, 294), 297, 301,
    *range(317, 348), *range(512, 533), 700,
}  # fmt: skip
# Most private fields do, too: stacks and calibrations of microscopes, maps, CFA and DNG data. Only these
# pass: copyright, EXIF (but for TIFF/EP's pixels of the sensor and place of the subject), what Windows
# notes, PrintImageMatching.
_PRIVATE = 32768
_DESCRIPTIVE = {
    33432, 33434, 33437, *range(34850, 34870), *range(36864, 37390), *range(37393, 37396),
    *range(37397, 37523), *range(37888, 37894), *range(40091, 40096), *range(40960, 42083), 42240, 50341,
}  # fmt: skip


def descriptive(tag: int) -> bool:
    """Whether a field of the main directory tells of the photo rather than of the file's layout."""
    return tag in _DESCRIPTIVE if tag >= _PRIVATE else tag not in _STRUCTURAL


def check_segments(reader: TiffReader, offset: int) -> None:
    """Raise `IfdError` if a strip or tile of the directory lies beyond the end of the file."""
    entries = reader.directory(offset).entries
    for places, lengths in (_STRIPS, _TILES):
        if places in entries and lengths in entries:
            starts = np.array(reader.integers(entries[places]), np.float64)
            counts = np.array(reader.integers(entries[lengths]), np.float64)
            if len(starts) != len(counts):
                raise IfdError("as many strips as strip lengths were expected")
            if np.any(starts + counts > reader.size) or np.any(starts < 0) or np.any(counts < 0):
                raise IfdError("cut short: some of the pixels lie beyond the end of the file")


def _check_page(reader: TiffReader) -> None:
    """Refuse a first page that is a thumbnail, or points beyond the end of the file (`IfdError`)."""
    main = reader.directory(reader.first)
    if main.next and _KIND in main.entries and any(kind & 1 for kind in reader.integers(main.entries[_KIND])):
        raise UnsupportedError("begins with a thumbnail of the photo; save it as a TIFF of one page")
    for entry in main.entries.values():
        with contextlib.suppress(UnknownTypeError):
            if entry.position + reader.length(entry) > reader.size:
                raise IfdError("cut short: some of its fields lie beyond the end of the file")
    check_segments(reader, reader.first)


class _Layout:
    """The few fields of the first page that decide whether and how it is read."""

    def __init__(self, page: tifffile.TiffPage) -> None:
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        self.samples = int(page.samplesperpixel)
        self.photometric = int(page.photometric) if page.photometric is not None else 1
        self.jpeg = int(page.compression) in (6, 7, 34892)
        self.bits = int(page.bitspersample)
        kind = int(page.sampleformat) if page.sampleformat is not None else 1
        if min(self.width, self.height, self.samples, self.bits) < 1:
            raise ValueError(
                f"a TIFF of {self.width}×{self.height}×{self.samples} pixels of {self.bits} bits"
            )
        if int(page.imagedepth or 1) != 1:
            raise UnsupportedError("is a volume of several layers; a plain picture was expected")
        if kind not in (1, 4) or self.bits > 16:
            what = {2: "signed integer", 3: "floating point", 5: "complex", 6: "complex"}.get(kind, "integer")
            raise UnsupportedError(f"has {self.bits}-bit {what} pixels; save it as unsigned 16-bit TIFF")
        self.base = self._base_channels()
        if self.samples < self.base or self.samples > self.base + 4:
            raise UnsupportedError(f"has {self.samples} channels; gray or colour with one alpha was expected")
        self.alpha = 0  # 1 associated, 2 not, 0 none
        self.kept = list(range(self.base))  # channels: colour, and the first that is alpha
        extra = [] if self.photometric == 3 else [int(kind) for kind in page.extrasamples]
        for channel, kind in enumerate(extra[: self.samples - self.base], self.base):
            if kind in (1, 2) and not self.alpha:
                self.alpha = kind
                self.kept.append(channel)

    def _base_channels(self) -> int:
        """Colour channels by PhotometricInterpretation (TIFF 6.0, section 8)."""
        if self.photometric in (0, 1, 3):
            return 1
        if self.photometric == 2 or (self.photometric == 6 and self.jpeg):
            return 3
        if self.photometric == 5 and self.bits == 8:
            return 4
        names = {5: "16-bit CMYK", 6: "uncompressed YCbCr", 8: "Lab", 32803: "camera sensor"}
        raise UnsupportedError(f"has {names.get(self.photometric, 'unknown')} colours; save it as RGB TIFF")

    def header(self) -> Header:
        return Header(
            width=self.width,
            height=self.height,
            bit_depth=16 if self.bits > 8 and self.photometric != 3 else 8,
            channels=1 if self.base == 1 and self.photometric != 3 else 3,
            format="TIFF",
            has_alpha=self.alpha > 0,
        )


def header(stream: BinaryIO) -> tuple[Header, bytes | None]:
    """The header as stored in the file, with its XMP; that or `orientation` may turn the picture."""
    reader = TiffReader(stream)
    _check_page(reader)
    stream.seek(0)
    with tifffile.TiffFile(stream) as tiff:
        layout = _Layout(cast("tifffile.TiffPage", tiff.pages[0]))
    return layout.header(), _field(reader, _XMP)


def orientation(stream: BinaryIO) -> int | None:
    """The orientation field of the first page."""
    reader = TiffReader(stream)
    entry = reader.directory(reader.first).entries.get(274)
    with contextlib.suppress(IfdError, IndexError):
        if entry is not None and entry.number == 1:
            return reader.integers(entry)[0]
    return None


def _field(reader: TiffReader, tag: int) -> bytes | None:
    entry = reader.directory(reader.first).entries.get(tag)
    with contextlib.suppress(IfdError):
        if entry is not None and reader.length(entry) <= 16 << 20:
            return reader.raw(entry).rstrip(b"\0") if tag == _XMP else reader.raw(entry)
    return None


def planes(stream: BinaryIO) -> int:
    """How many planes the stack has that the file is; 1 where it is a picture, with others beside it or not.

    Raises for stacks of more than one dimension, and of channels.
    """
    reader = TiffReader(stream)
    _check_page(reader)
    if not _several(reader):
        return 1
    with _stack(stream, reader) as tiff:
        count = _planes(tiff.series[0])
    if count == 1 and not reader.directory(reader.first).next:
        raise IfdError("cut short: planes that it tells of lie beyond the end of the file")
    return count


def _several(reader: TiffReader) -> bool:
    """Whether there is more than one picture."""
    main = reader.directory(reader.first)
    noted = main.entries[_PLANES].number if _PLANES in main.entries else 1
    return main.next > 0 or noted > 1 or is_stack(_field(reader, _DESCRIPTION) or b"")


def _check_chain(reader: TiffReader) -> None:
    """Refuse pages that go round in circles, or are too many (`IfdError`)."""
    place, seen = reader.first, set[int]()
    while place:
        if place in seen or len(seen) == _MOST_PAGES:
            raise IfdError(f"its pages go round in circles, or are more than {_MOST_PAGES}")
        seen.add(place)
        place = reader.directory(place).next


@contextlib.contextmanager
def _stack(stream: BinaryIO, reader: TiffReader) -> Iterator[tifffile.TiffFile]:
    """The file with all of its like pictures in one series."""
    _check_chain(reader)
    stream.seek(0)
    with tifffile.TiffFile(stream) as tiff:
        one_by_one = tiff.is_shaped and len(tiff.pages) > 1 and _planes(tiff.series[0]) == 1
        if not one_by_one:
            yield tiff
    if one_by_one:  # tifffile wrote page after page, and noted that each is a series of its own
        stream.seek(0)
        with tifffile.TiffFile(stream, is_shaped=False) as tiff:
            yield tiff


def _planes(series: tifffile.TiffPageSeries) -> int:
    """How many pictures a series has along its one dimension."""
    sides = dict(zip(series.axes, series.shape, strict=True))
    sides = {axis: side for axis, side in sides.items() if axis not in "YXS" and side > 1}
    if "C" in sides or len(sides) > 1:
        what = " and ".join(f"{side} {_AXES.get(axis, 'pictures')}" for axis, side in sides.items())
        raise UnsupportedError(f"is a stack of {what}; save one that has planes of focus alone")
    return int(next(iter(sides.values()), 1))


def _plane(tiff: tifffile.TiffFile, reader: TiffReader, plane: int) -> np.ndarray:
    """File values of a plane of a stack; raises where it has no such one."""
    series, first = tiff.series[0], cast("tifffile.TiffPage", tiff.pages[0])
    count = _planes(series)
    if (series.keyframe.shape, series.keyframe.dtype) != (first.shape, first.dtype):
        raise UnsupportedError("is of another kind than the first picture; save the stack as a plain TIFF")
    if plane >= count:
        raise UnsupportedError(f"is not there: the file has {count}, counted from 0")
    if len(series.pages) == count:
        page = series.pages[plane]
        if page is None:
            raise UnsupportedError("lies in another file; save the stack as one")
        check_segments(reader, page.offset)
        return np.asarray(page.asarray())
    if series.dataoffset is None:  # of large stacks ImageJ describes the first plane; the others follow it
        raise UnsupportedError("lies where it cannot be found; save the stack as a plain TIFF")
    kind = np.dtype(series.dtype).newbyteorder(tiff.byteorder)
    size = series.keyframe.size * kind.itemsize
    tiff.filehandle.seek(series.dataoffset + plane * size)
    data = tiff.filehandle.read(size)
    if len(data) < size:
        raise IfdError("cut short: some of the pixels lie beyond the end of the file")
    return np.frombuffer(data, kind).reshape(series.keyframe.shape).copy()


def decode(stream: BinaryIO, warn: Warn, plane: int | None = None) -> Decoded:
    """Decode the first page, or a plane of a stack, whose first page tells of all.

    Raises for damage and for kinds that are no photographs.
    """
    reader = TiffReader(stream)
    _check_page(reader)
    if plane is None and _several(reader):
        warn("several pages: only the first is used")
    stream.seek(0)
    with tifffile.TiffFile(stream) if plane is None else _stack(stream, reader) as tiff:
        page = cast("tifffile.TiffPage", tiff.pages[0])
        layout = _Layout(page)
        pixels = np.asarray(page.asarray()) if plane is None else _plane(tiff, reader, plane)
        colormap = page.colormap
    if len(layout.kept) < layout.samples:
        warn("channels beside colour and transparency are left out")
    if int(page.planarconfig or 1) == 2 and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, 2)
    pixels = pixels.reshape(layout.height, layout.width, layout.samples)
    space = "CMYK" if layout.photometric == 5 else _colour.SPACES[layout.header().channels]
    icc = _colour.usable_icc(_field(reader, _ICC), space, warn)
    upright = _interpret(pixels, layout, colormap)
    if layout.photometric == 5:
        inks = cast("Pixels", np.ascontiguousarray(upright[:, :, :4]))
        colour = np.array(_colour.to_srgb(Image.fromarray(inks, "CMYK"), icc))
        upright = np.concatenate([colour, upright[:, :, 4:]], axis=2)
        icc = _colour.srgb_profile() if icc else None
    exif = None
    with contextlib.suppress(IfdError):
        block = parse_exif(reader, keep=descriptive, largest=1 << 16)
        if block.exif or block.gps or set(block.main) - set(_RESOLUTION):  # more than the resolution
            exif = build_exif(block)
    return Decoded(
        pixels=cast("Pixels", upright),
        icc=icc,
        exif=exif,
        xmp=_field(reader, _XMP),
        iptc=_field(reader, _IPTC),
        dpi=_resolution(reader),
        orientation=orientation(stream),
    )


def _interpret(pixels: np.ndarray, layout: _Layout, colormap: np.ndarray | None) -> np.ndarray:
    """File values → H×W×C uint8 or uint16 over the full range, black at 0, alpha unassociated."""
    if layout.photometric == 3:
        if colormap is None:
            raise ValueError("a palette TIFF without its palette")
        table = colormap if colormap.max() < 256 else colormap >> 8  # some writers leave out the shift
        return np.ascontiguousarray(table.astype(np.uint8).T[pixels[:, :, 0].astype(np.intp)])
    if len(layout.kept) < layout.samples:
        pixels = pixels[:, :, layout.kept]
    pixels = np.ascontiguousarray(pixels)
    bits, full = layout.bits, 255 if layout.bits <= 8 else 65535
    if pixels.dtype == bool or bits not in (8, 16):
        wide = pixels.astype(np.uint32) * full
        pixels = ((wide + ((1 << bits) - 1) // 2) // ((1 << bits) - 1)).astype(
            np.uint8 if full == 255 else np.uint16
        )
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if layout.photometric == 0:
        pixels[:, :, 0] = full - pixels[:, :, 0]
    if layout.alpha == 1:
        colour, alpha = pixels[:, :, :-1].astype(np.uint32), pixels[:, :, -1:].astype(np.uint32)
        restored = np.minimum((colour * full + alpha // 2) // np.maximum(alpha, 1), full)
        pixels[:, :, :-1] = restored
    return pixels


def _resolution(reader: TiffReader) -> tuple[float, float] | None:
    """Dots per inch by an electron microscope's notes, else by XResolution, YResolution, ResolutionUnit."""
    for tag in _NOTES:
        if (notes := _field(reader, tag)) and (calibrated := noted_resolution(notes)):
            return calibrated
    with contextlib.suppress(IfdError):
        found = parse_exif(reader, keep=_RESOLUTION.__contains__)
        return resolution_of(found)
    return None


def encode(
    stream: BinaryIO,
    pixels: Pixels,
    *,
    alpha: bool,
    icc: bytes | None,
    exif: Exif | None,
    xmp: bytes | None,
    iptc: bytes | None,
    dpi: tuple[float, float] | None,
) -> None:
    """Write H×W or H×W×(2..4) pixels, uint8 or uint16, deflated with the horizontal predictor."""
    colour = pixels.ndim == 3 and pixels.shape[2] >= 3
    exif = exif or Exif()
    with tifffile.TiffWriter(stream, bigtiff=pixels.nbytes > _BIG, byteorder=exif.order) as writer:
        writer.write(
            pixels,
            photometric="rgb" if colour else "minisblack",
            planarconfig="contig" if pixels.ndim == 3 else None,
            extrasamples=["unassalpha"] if alpha else None,
            compression="zlib",
            predictor=True,
            resolution=dpi or (72, 72),
            resolutionunit="inch" if dpi else "none",
            metadata=None,
            software=False,
        )
    extra = []
    if icc:
        extra.append((_ICC, Value(7, len(icc), icc)))
    if xmp:
        extra.append((_XMP, Value(1, len(xmp), xmp)))
    if iptc:
        extra.append((_IPTC, Value(7, len(iptc), iptc)))
    exif.main = {tag: value for tag, value in exif.main.items() if descriptive(tag)}
    if not dpi:  # a resolution without a unit, or in one of the ImageDescription
        extra += [(tag, exif.main[tag]) for tag in _RESOLUTION if tag in exif.main]
    append_to_tiff(stream, exif, extra)
