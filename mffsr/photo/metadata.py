"""The metadata of a finished photo: what the camera wrote, put right for the new picture.

Kept: camera, lens, exposure, dates, place, author, rights, ratings, and of EXIF and XMP what is not
understood. Dropped: the thumbnail, gain maps, depth maps and other references to data that are not
carried along, a TIFF's private fields.
Corrected: orientation, pixel dimensions, resolution, descriptions that state them. Added: that this is a
composite, of which frames, made by which program with which options (EXIF 2.32, CompositeImage; XMP,
xmpMM:DerivedFrom).
"""

from __future__ import annotations

import io
import mmap
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from mffsr.errors import PhotoError

from ._blocks import parsed_exif
from ._decoded import Warn, open_photo
from ._description import read_description
from ._ifd import Exif, Value, as_ratio, build_exif
from .images import Photo

__all__ = ["XMP_NAMESPACE", "OutputMetadata", "is_result", "output_metadata"]

XMP_NAMESPACE = "urn:mffsr:xmp:1.0/"

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMP = "http://ns.adobe.com/xap/1.0/"
_XMP_MM = "http://ns.adobe.com/xap/1.0/mm/"
_ST_REF = "http://ns.adobe.com/xap/1.0/sType/ResourceRef#"
_TIFF = "http://ns.adobe.com/tiff/1.0/"
_EXIF = "http://ns.adobe.com/exif/1.0/"
_X = "adobe:ns:meta/"
_DC = "http://purl.org/dc/elements/1.1/"
_PREFIXES = {
    "x": _X,
    "rdf": _RDF,
    "xmp": _XMP,
    "xmpMM": _XMP_MM,
    "stRef": _ST_REF,
    "tiff": _TIFF,
    "exif": _EXIF,
    "dc": _DC,
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
    "mffsr": XMP_NAMESPACE,
}
# Properties that point at pictures which do not travel along: gain, depth and motion.
_FOREIGN = (
    "http://ns.adobe.com/hdr-gain-map/",
    "http://ns.apple.com/HDRGainMap/",
    "http://ns.google.com/photos/1.0/",
)
_STALE = {f"{{{_XMP}}}Thumbnails", "{http://ns.adobe.com/xmp/note/}HasExtendedXMP"}
_IN_PIXELS = ("FocalPlaneXResolution", "FocalPlaneYResolution", "SubjectArea", "SubjectLocation")
_STALE |= {f"{{{_EXIF}}}{name}" for name in (*_IN_PIXELS, "ImageUniqueID")}
# Of the file that was read; one of another kind may be written.
_OF_FILE = ("BitsPerSample", "SamplesPerPixel", "PhotometricInterpretation", "Compression")
_STALE |= {f"{{{_DC}}}format", *(f"{{{_TIFF}}}{name}" for name in _OF_FILE)}
_LARGEST_PACKET = 16 << 20
_HEADER = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, 2.2


class OutputMetadata(NamedTuple):
    """The blocks for `Photo(exif=..., xmp=..., dpi=...)`."""

    exif: bytes
    xmp: bytes
    dpi: tuple[float, float] | None


class _Facts(NamedTuple):
    """What is true of the new picture."""

    width: int
    height: int
    dpi: tuple[float, float] | None
    frames: list[str]
    software: str
    details: Mapping[str, str]


def output_metadata(
    photo: Photo,
    *,
    scale: int,
    frames: Sequence[str],
    software: str,
    details: Mapping[str, str],
    size: tuple[int, int] | None = None,
    warn: Warn | None = None,
) -> OutputMetadata:
    """The metadata of a picture made of `frames`, of which `photo` is the reference.

    `scale` is the factor of each side; `size` the new (width, height) in pixels, by default that of
    `photo` times `scale`. `frames` are file names, in their order. `details` become properties in the
    namespace `XMP_NAMESPACE`; their keys are XML names such as "WeightsHash" (else ValueError).
    Damaged metadata is left out and told to `warn`; it never raises.
    """
    for key in details:
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", key, re.ASCII):
            raise ValueError(f"the key {key!r} of details is no XML name")

    def tell(text: str) -> None:
        if warn is not None:
            warn(f"{photo.path}: {text}" if photo.path else text)

    width, height = size or (photo.size[0] * scale, photo.size[1] * scale)
    exif = _parse_exif(photo.exif, tell)
    dpi = _enlarge_resolution(exif, photo.dpi, scale)
    facts = _Facts(width, height, dpi, list(frames), software, details)
    return OutputMetadata(_exif(exif, facts), _xmp(photo.xmp, facts, tell), dpi)


def is_result(path: Path) -> bool:
    """Whether a file is a finished photo of this program: its XMP tells. False if it cannot be read."""
    try:
        with open_photo(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(XMP_NAMESPACE.encode()) >= 0
    except (PhotoError, OSError):
        return False


def _parse_exif(block: bytes | None, warn: Warn) -> Exif:
    exif = parsed_exif(block, warn) or Exif()
    if exif.damaged:
        warn(f"{exif.damaged} damaged EXIF entries are left out")
    return exif


def _enlarge_resolution(
    exif: Exif, dpi: tuple[float, float] | None, scale: int
) -> tuple[float, float] | None:
    """Scale all that says how large a pixel is; returns the new dots per inch.

    None where no unit is known to us: then the fields of `exif` keep theirs.
    """
    exif.multiply(exif.exif, (0xA20E, 0xA20F), scale)  # FocalPlaneXResolution, FocalPlaneYResolution
    value = exif.main.get(0x010E)  # ImageDescription
    if value is not None:
        text = value.data.rstrip(b"\0")
        description = read_description(text)
        dpi = None if description.own_unit else description.dpi or dpi
        if description.text is None:
            del exif.main[0x010E]
        elif description.text != text:
            exif.main[0x010E] = Value(2, len(description.text) + 1, description.text + b"\0")
    if dpi is not None and max(dpi) * scale <= 0xFFFFFFFF:  # what TIFF and EXIF can hold
        return dpi[0] * scale, dpi[1] * scale
    exif.multiply(exif.main, (0x011A, 0x011B), scale)  # XResolution, YResolution
    return None


def _exif(exif: Exif, facts: _Facts) -> bytes:
    main, sub = exif.main, exif.exif
    main[0x0112] = exif.integers(3, 1)  # Orientation
    for tag, side in ((0x0100, facts.width), (0x0101, facts.height)):  # ImageWidth, ImageLength
        if tag in main:
            main[tag] = exif.integers(4, side)
    if facts.dpi is not None:
        main[0x011A], main[0x011B] = exif.rational(facts.dpi[0]), exif.rational(facts.dpi[1])
        main[0x0128] = exif.integers(3, 2)  # ResolutionUnit: inch
    main[0x0131] = exif.text(facts.software)
    for tag in (0x9214, 0xA214):  # SubjectArea, SubjectLocation: in the source's pixels
        sub.pop(tag, None)
    sub.pop(0xA420, None)  # ImageUniqueID: that of another picture
    sub[0xA002] = exif.integers(4, facts.width)  # PixelXDimension
    sub[0xA003] = exif.integers(4, facts.height)  # PixelYDimension
    if len(facts.frames) > 1:
        count = min(len(facts.frames), 65535)
        sub[0xA460] = exif.integers(3, 2)  # CompositeImage: general composite image
        sub[0xA461] = exif.integers(3, count, count)  # recorded, used
        sub.pop(0xA462, None)  # exposure times of an earlier composite's sources
    version = sub.get(0x9000)
    if version is None or version.data < b"0232":  # CompositeImage came with EXIF 2.32
        sub[0x9000] = Value(7, 4, b"0232")
    sub.setdefault(0xA000, Value(7, 4, b"0100"))  # FlashpixVersion, mandatory
    return build_exif(exif)


def _xmp(packet: bytes | None, facts: _Facts, warn: Warn) -> bytes:
    """The packet with its provenance; what cannot be parsed is replaced by a new one."""
    if packet is not None:
        try:
            return _finish(_parse(packet), facts)
        except (ValueError, ET.ParseError, RecursionError) as fault:
            warn(f"the XMP data is damaged and left out ({' '.join(str(fault).split())[:100]})")
    root = ET.Element(f"{{{_X}}}xmpmeta")
    ET.SubElement(root, f"{{{_RDF}}}RDF")
    return _finish(root, facts)


def _parse(packet: bytes) -> ET.Element:
    """The packet's outermost element; raises ValueError for entities, ET.ParseError for what is no XML."""
    if len(packet) > _LARGEST_PACKET:
        raise ValueError(f"larger than {_LARGEST_PACKET >> 20} MiB")
    text = packet.decode("utf-8").strip("\0\ufeff \t\r\n")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("a document type, which XMP must not have")  # entities could grow without bound
    # As text: whatever encoding the packet declares, XMP in a photo is UTF-8.
    parser = ET.iterparse(io.StringIO(text), events=("start-ns",))  # noqa: S314 - see above
    known = set(_PREFIXES.values())
    for _, (prefix, uri) in parser:
        if uri not in known and len(known) < 200 and re.fullmatch(r"(?!ns\d+$)[A-Za-z]\w*", prefix, re.ASCII):
            known.add(uri)
            ET.register_namespace(prefix, uri)  # else it would be written as ns0, ns1, ...
    root: ET.Element = parser.root  # type: ignore[attr-defined]
    return root


def _finish(root: ET.Element, facts: _Facts) -> bytes:
    """Put right what is stale, add the provenance in a description of its own, and serialise.

    `root` is x:xmpmeta or rdf:RDF; raises ValueError for what is no XMP.
    """
    rdf = root if root.tag == f"{{{_RDF}}}RDF" else root.find(f"{{{_RDF}}}RDF")
    if rdf is None:
        raise ValueError("no rdf:RDF inside")
    descriptions = [one for one in rdf if one.tag == f"{{{_RDF}}}Description"]
    about = f"{{{_RDF}}}about"
    subject = descriptions[0].get(about, "") if descriptions else ""
    identity = {
        name: _take(descriptions, f"{{{_XMP_MM}}}{name}")
        for name in ("DocumentID", "InstanceID", "OriginalDocumentID", "DerivedFrom")
    }
    _drop(descriptions, lambda tag: tag in _STALE or tag.startswith(tuple("{" + uri for uri in _FOREIGN)))
    _drop(descriptions, lambda tag: tag.startswith(f"{{{XMP_NAMESPACE}}}") or tag == f"{{{_XMP}}}CreatorTool")
    ours = ET.SubElement(rdf, f"{{{_RDF}}}Description", {about: subject})
    for space, name, side in (
        (_TIFF, "ImageWidth", facts.width),
        (_TIFF, "ImageLength", facts.height),
        (_EXIF, "PixelXDimension", facts.width),
        (_EXIF, "PixelYDimension", facts.height),
        (_TIFF, "Orientation", 1),
    ):
        if _take(descriptions, f"{{{space}}}{name}") is not None or name.startswith("Pixel"):
            ours.set(f"{{{space}}}{name}", str(side))
    across, down = (f"{one.numerator}/{one.denominator}" for one in map(as_ratio, facts.dpi or (0, 0)))
    for name, text in (("XResolution", across), ("YResolution", down), ("ResolutionUnit", "2")):  # inch
        if _take(descriptions, f"{{{_TIFF}}}{name}") is not None and facts.dpi is not None:
            ours.set(f"{{{_TIFF}}}{name}", text)
    ours.set(f"{{{_XMP}}}CreatorTool", _clean(facts.software))
    original = identity["OriginalDocumentID"] or identity["DocumentID"]
    if original:
        ours.set(f"{{{_XMP_MM}}}OriginalDocumentID", original)
    derived = ET.SubElement(ours, f"{{{_XMP_MM}}}DerivedFrom", {f"{{{_RDF}}}parseType": "Resource"})
    for name, key in (("documentID", "DocumentID"), ("instanceID", "InstanceID")):
        if identity[key]:
            ET.SubElement(derived, f"{{{_ST_REF}}}{name}").text = identity[key]
    if facts.frames:
        ET.SubElement(derived, f"{{{_ST_REF}}}filePath").text = _clean(PurePath(facts.frames[0]).name)
    sequence = ET.SubElement(ET.SubElement(ours, f"{{{XMP_NAMESPACE}}}Frames"), f"{{{_RDF}}}Seq")
    for frame in facts.frames:
        ET.SubElement(sequence, f"{{{_RDF}}}li").text = _clean(PurePath(frame).name)
    for key, text in facts.details.items():
        ET.SubElement(ours, f"{{{XMP_NAMESPACE}}}{key}").text = _clean(text)
    for prefix, uri in _PREFIXES.items():
        ET.register_namespace(prefix, uri)
    body = ET.tostring(root, encoding="unicode")
    return (_HEADER + body + '\n<?xpacket end="w"?>').encode("utf-8")


def _take(descriptions: list[ET.Element], tag: str) -> str | None:
    """Remove a property, be it written as attribute or as element; returns its text."""
    found = None
    for one in descriptions:
        text = one.attrib.pop(tag, None)
        for child in [child for child in one if child.tag == tag]:
            text = text or (child.text or "").strip()
            one.remove(child)
        found = found if text is None else text
    return found


def _drop(descriptions: list[ET.Element], unwanted: Callable[[str], bool]) -> None:
    for one in descriptions:
        for tag in [tag for tag in one.attrib if unwanted(tag)]:
            del one.attrib[tag]
        for child in [child for child in one if isinstance(child.tag, str) and unwanted(child.tag)]:
            one.remove(child)


def _clean(text: str) -> str:
    """The text without the characters that XML cannot hold; undecodable bytes of a name become '?'."""
    return _FORBIDDEN.sub("\ufffd", text.encode("utf-8", "replace").decode("utf-8"))
