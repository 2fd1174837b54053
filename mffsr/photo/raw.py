"""Camera RAW through LibRaw: 16-bit sRGB, the camera's own white balance, no guessed brightness.

LibRaw fills up a cut RAW with black, gray or noise and reports nothing. So the file is looked at
first (every strip inside the file) and the sensor's rows afterwards (none without any noise).
rawpy is imported only when a RAW is opened.
"""

from __future__ import annotations

import contextlib
import io
from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from . import _colour
from ._decoded import Decoded, Header, Pixels, UnsupportedError, Warn
from ._ifd import Exif, IfdError, TiffReader, Value, build_exif, parse_exif
from ._tiff import check_segments, descriptive

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["decode", "exif_of_raw", "header", "preview"]

_SRGB_GAMMA = (2.4, 12.92)  # exponent and slope at black of IEC 61966-2-1; LibRaw's default is BT.709
_EMPTY_ROWS = 16  # so many rows on end without any noise are no photograph


def _open(stream: BinaryIO) -> Any:
    try:
        import rawpy
    except ImportError:
        raise UnsupportedError("camera RAW needs an extra package: pip install rawpy") from None
    stream.seek(0)
    try:
        return rawpy.imread(stream)
    except rawpy.LibRawFileUnsupportedError:
        raise UnsupportedError("is damaged, or a RAW of a camera that LibRaw does not know") from None


def header(stream: BinaryIO) -> Header:
    """Size as developed and upright; opens the RAW but leaves its pixels alone."""
    _check_structure(stream)
    with _open(stream) as raw:
        sizes = raw.sizes
        width, height, aspect = sizes.iwidth, sizes.iheight, sizes.pixel_aspect
        if aspect > 1:  # pixels that are not square are stretched, never shrunk
            width = int(width * aspect + 0.5)
        elif 0 < aspect < 1:
            height = int(height / aspect + 0.5)
        if sizes.flip & 4:
            width, height = height, width
    return Header(width=width, height=height, bit_depth=16, channels=3, format="RAW")


def decode(stream: BinaryIO, warn: Warn) -> Decoded:
    """Develop a RAW: H×W×3 uint16, upright already; raises for one that is cut or empty."""
    _check_structure(stream)
    with _open(stream) as raw:
        _check_sensor(raw)
        pixels = raw.postprocess(
            use_camera_wb=True,
            no_auto_bright=True,
            output_bps=16,
            gamma=_SRGB_GAMMA,
        )
        spare = _exif_of_libraw(raw)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint16:
        raise ValueError("LibRaw returned no 16-bit colour picture")
    exif = _exif_of_file(stream)
    if exif is None:
        warn("little of the RAW's metadata can be read: only exposure, focal length and date are kept")
    return Decoded(
        pixels=cast("Pixels", pixels),
        icc=_colour.srgb_profile(),
        exif=exif or spare,
        orientation=1,
    )


def _check_structure(stream: BinaryIO) -> None:
    """Refuse a file whose own tables say that it must be longer."""
    stream.seek(0)
    head = stream.read(108)
    size = stream.seek(0, io.SEEK_END)
    if head.startswith(b"FUJIFILMCCD-RAW"):
        for at in (84, 92, 100):  # preview, table, sensor: offset and length each
            start, length = (int.from_bytes(head[at + step : at + step + 4], "big") for step in (0, 4))
            if start + length > size:
                raise ValueError("cut short: some of the pixels lie beyond the end of the file")
    elif head[4:8] == b"ftyp":
        from ._pillow import check_boxes

        check_boxes(stream)
    elif head[:2] in (b"II", b"MM") and head[6:14] != b"HEAPCCDR":
        for offset in _directories(stream):
            check_segments(TiffReader(stream), offset)


def _directories(stream: BinaryIO) -> list[int]:
    """Offsets of the main directories and of those below them, as far as they can be read."""
    found: list[int] = []
    with contextlib.suppress(IfdError):
        reader = TiffReader(stream)
        waiting = [reader.first]
        while waiting and len(found) < 64:
            offset = waiting.pop()
            if offset == 0 or offset in found:
                continue
            with contextlib.suppress(IfdError):
                directory = reader.directory(offset)
                found.append(offset)
                waiting.append(directory.next)
                below = directory.entries.get(330)  # SubIFDs
                if below is not None and below.number <= 16:
                    waiting.extend(reader.integers(below))
    return found


def _check_sensor(raw: Any) -> None:
    """Refuse sensor data with rows that lack any noise: nothing was read there.

    Rows of the largest value are let pass: they may be overexposed.
    """
    try:
        sensor = cast("NDArray[np.uint16] | None", raw.raw_image_visible)
    except Exception:  # noqa: BLE001 - already developed RAWs have no sensor image
        return
    if sensor is None or sensor.ndim != 2:
        return
    largest = int(sensor.max())
    if int(sensor.min()) == largest:
        raise ValueError("the RAW holds no picture: every pixel has the same value")
    # Colour filters repeat every second row, so a row that nothing was read into equals the second above.
    repeated = np.all(sensor[2:] == sensor[:-2], axis=1) & (sensor[2:].max(axis=1) < largest)
    run = np.convolve(repeated, np.ones(_EMPTY_ROWS, np.int64))
    if sensor.shape[1] >= 16 and run.max(initial=0) >= _EMPTY_ROWS:
        raise ValueError("cut short: rows of the RAW are empty")


def exif_of_raw(stream: BinaryIO) -> bytes | None:
    """The EXIF data without developing: the file's own, else what LibRaw tells; None if there is none."""
    block = _exif_of_file(stream)
    if block is None:
        with _open(stream) as raw:
            block = _exif_of_libraw(raw)
    return block


def preview(stream: BinaryIO) -> bytes | None:
    """The JPEG that the camera put into the RAW, or None."""
    import rawpy

    with _open(stream) as raw:
        try:
            found = raw.extract_thumb()
        except rawpy.LibRawError:  # none, or of a kind that LibRaw does not know
            return None
    return found.data if found.format == rawpy.ThumbFormat.JPEG else None


def _exif_of_file(stream: BinaryIO) -> bytes | None:
    """The EXIF data of a RAW that is a TIFF inside."""
    try:
        reader = TiffReader(stream)
        exif = parse_exif(reader, keep=lambda tag: tag >= 254 and descriptive(tag), largest=1 << 16)
    except IfdError:
        return None
    if 0x010F not in exif.main:
        return None  # without a maker it is no camera's
    # The camera may have been set to Adobe RGB for its own JPEGs; developed here, the pixels are sRGB.
    if 0xA001 in exif.exif:  # ColorSpace
        exif.exif[0xA001] = exif.integers(3, 1)
    if exif.interop.get(1, Value(2, 0, b"")).data.startswith(b"R03"):  # InteroperabilityIndex: Adobe RGB
        exif.interop[1] = exif.text("R98")
    return build_exif(exif)


def _exif_of_libraw(raw: Any) -> bytes | None:
    """The little that LibRaw tells of any RAW."""
    with contextlib.suppress(AttributeError):
        other, exif = raw.other, Exif()
        for tag, value in (
            (0x829A, other.shutter_speed),
            (0x829D, other.aperture),
            (0x920A, other.focal_length),
        ):
            if 0 < value < 1e5:
                exif.exif[tag] = exif.rational(value)
        if 0 < other.iso_speed < 65536:
            exif.exif[0x8827] = exif.integers(3, round(other.iso_speed))
        if isinstance(other.timestamp, datetime):
            exif.exif[0x9003] = exif.text(other.timestamp.strftime("%Y:%m:%d %H:%M:%S"))
        return build_exif(exif) if exif.exif else None
    return None
