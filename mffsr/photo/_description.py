"""ImageDescription where programs of microscopy keep what they know of one file: its planes and calibration.

What is stale in a result is dropped. ImageJ takes a TIFF's resolution as pixels per the unit that its
description names, and pays no attention to the TIFF's own unit. OME-XML says how large a pixel is; it
describes files, planes and regions too, so a result has that size as its resolution instead. So do the
notes that electron microscopes put into a private field.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import NamedTuple

__all__ = ["Description", "is_stack", "noted_resolution", "read_description"]

_KEPT_OF_IMAGEJ = (b"ImageJ=", b"unit=", b"yunit=")  # the rest is of stacks, display ranges and gray values
_SHAPE = re.compile(rb'\s*(\{"shape":|shape=\()')  # as tifffile writes it
_MICROMETRES = {"µm": 1.0, "μm": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}  # both letters that look so
_MICROMETRES |= {"pm": 1e-6}
_INCH = 25_400.0  # µm
_ZEISS = re.compile(r"Image Pixel Size *= *(\S+) +(\S+)")
_FEI = re.compile(r"^PixelWidth=(\S+)\s+PixelHeight=(\S+)", re.MULTILINE)  # in metres


class Description(NamedTuple):
    """What of a description is true of a result as well, and what it says of the resolution."""

    text: bytes | None
    own_unit: bool = False  # the resolution is in pixels per a unit that it names
    dpi: tuple[float, float] | None = None  # dots per inch of the source


def read_description(text: bytes) -> Description:
    """Understand a description; one for people is returned as it is."""
    if text.startswith(b"ImageJ="):
        kept = [line for line in text.splitlines() if line.startswith(_KEPT_OF_IMAGEJ)]
        named = any(line.startswith(b"unit=") and line != b"unit=" for line in kept)
        return Description(b"\n".join(kept) + b"\n", own_unit=named)
    if text.rstrip(b"\0 \r\n").endswith(b"OME>"):
        return Description(None, dpi=_ome_resolution(text))
    return Description(None if _SHAPE.match(text) else text)


def is_stack(text: bytes) -> bool:
    """Whether ImageJ says that the file holds several pictures: of large ones only the first has a page."""
    found = re.search(rb"^images=(\d{1,9})", text, re.MULTILINE) if text.startswith(b"ImageJ=") else None
    return found is not None and int(found[1]) > 1


def _ome_resolution(text: bytes) -> tuple[float, float] | None:
    """Dots per inch by PhysicalSizeX and PhysicalSizeY of the first image (OME 2016-06)."""
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:  # entities could grow without bound
        return None
    try:
        root = ET.fromstring(text.rstrip(b"\0").decode())  # noqa: S314 - see above; always UTF-8
        pixels = next(one for one in root.iter() if one.tag.rpartition("}")[2] == "Pixels")
        across, down = (
            float(pixels.attrib[f"PhysicalSize{axis}"])
            * _MICROMETRES[pixels.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "XY"
        )
    except (ET.ParseError, StopIteration, KeyError, ValueError, RecursionError):
        return None
    return _dpi(across, down)


def noted_resolution(notes: bytes) -> tuple[float, float] | None:
    """Dots per inch by what an electron microscope by Zeiss or FEI notes in a field of its own."""
    text = notes.decode("latin-1")
    try:
        if found := _ZEISS.search(text):
            side = float(found[1]) * _MICROMETRES[found[2]]
            return _dpi(side, side)
        if found := _FEI.search(text):
            return _dpi(float(found[1]) * 1e6, float(found[2]) * 1e6)
    except (KeyError, ValueError):
        pass
    return None


def _dpi(across: float, down: float) -> tuple[float, float] | None:
    """Dots per inch of pixels of this size, in µm; None for a size that cannot be."""
    return (_INCH / across, _INCH / down) if 1e-5 < across < 1e12 and 1e-5 < down < 1e12 else None
