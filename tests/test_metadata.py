"""The metadata of a result: kept, corrected, completed; damage costs the metadata, never the photo."""

from __future__ import annotations

import io
import os
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mffsr.engine import fuse_bracket
from mffsr.photo import (
    XMP_NAMESPACE,
    OutputMetadata,
    Photo,
    is_result,
    output_metadata,
    read_photo,
    write_photo,
)
from mffsr.photo._ifd import Exif, IfdError, Value, build_exif, parse_exif

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
XMP = "{http://ns.adobe.com/xap/1.0/}"
XMP_MM = "{http://ns.adobe.com/xap/1.0/mm/}"
ST_REF = "{http://ns.adobe.com/xap/1.0/sType/ResourceRef#}"
TIFF = "{http://ns.adobe.com/tiff/1.0/}"
EXIF = "{http://ns.adobe.com/exif/1.0/}"
OURS = "{" + XMP_NAMESPACE + "}"

PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"
 xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6" tiff:ImageWidth="6"
 xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/" xmpMM:DocumentID="doc-1" xmpMM:InstanceID="inst-1"
 xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/" hdrgm:Version="1.0"
 xmlns:own="http://example.org/own/" own:note="kept &amp; safe">
 <xmp:Thumbnails><rdf:Alt/></xmp:Thumbnails><xmp:CreatorTool>Camera</xmp:CreatorTool>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>""".encode()


def plain_photo(**changes: object) -> Photo:
    return replace(Photo(pixels=np.zeros((4, 6, 3), np.uint8)), **changes)  # type: ignore[arg-type]


def derive(photo: Photo, **changes: object) -> OutputMetadata:
    options: dict[str, object] = {
        "scale": 3,
        "frames": ["folder/a.jpg", "folder/b.jpg", "folder/c.jpg"],
        "software": "mffsr 1.0",
        "details": {"WeightsHash": "abc", "Options": "--scale 3"},
    }
    return output_metadata(photo, **(options | changes))  # type: ignore[arg-type]


def camera_exif(order: str = "<") -> Exif:
    exif = Exif(order=order)  # type: ignore[arg-type]
    exif.main[0x010F] = exif.text("Maker")
    exif.main[0x0110] = exif.text("Model of a name beyond four bytes")
    exif.main[0x0112] = exif.integers(3, 6)
    exif.main[0x0100] = exif.integers(3, 6)
    exif.main[0x011A] = exif.rational(72)
    exif.exif[0x9003] = exif.text("2024:05:06 07:08:09")
    exif.exif[0x829A] = exif.rational(1 / 250)
    exif.exif[0xA434] = exif.text("Lens 100 mm Macro")
    exif.exif[0xA002] = exif.integers(3, 6)
    exif.exif[0x9000] = Value(7, 4, b"0220")
    exif.gps[0x0001] = exif.text("N")
    exif.interop[0x0001] = exif.text("R98")
    return exif


def numbers(exif: Exif, directory: dict[int, Value], tag: int) -> list[int]:
    value = directory[tag]
    size = {3: 2, 4: 4}[value.type]
    order = "little" if exif.order == "<" else "big"
    return [
        int.from_bytes(value.data[at : at + size], order)  # type: ignore[arg-type]
        for at in range(0, len(value.data), size)
    ]


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_is_kept_corrected_and_completed(order: str) -> None:
    source = camera_exif(order)
    result = derive(plain_photo(exif=build_exif(source), dpi=(72.0, 72.0)))
    exif = parse_exif(result.exif)
    assert exif.order == order
    assert exif.damaged == 0
    for tag in (0x010F, 0x0110):
        assert exif.main[tag].data == source.main[tag].data
    for tag in (0x9003, 0x829A, 0xA434):
        assert exif.exif[tag].data == source.exif[tag].data
    assert exif.gps[0x0001].data == b"N\0"
    assert exif.interop[0x0001].data == b"R98\0"
    assert numbers(exif, exif.main, 0x0112) == [1]
    assert numbers(exif, exif.main, 0x0100) == [18]
    assert 0x0101 not in exif.main
    assert numbers(exif, exif.exif, 0xA002) == [18]
    assert numbers(exif, exif.exif, 0xA003) == [12]
    assert numbers(exif, exif.exif, 0xA460) == [2]
    assert numbers(exif, exif.exif, 0xA461) == [3, 3]
    assert exif.exif[0x9000].data == b"0232"
    assert exif.main[0x0131].data == b"mffsr 1.0\0"
    assert exif.first_ratio(exif.main, 0x011A) == result.dpi[0] == 216  # type: ignore[index]


def test_other_libraries_read_our_exif() -> None:
    block = derive(plain_photo(exif=build_exif(camera_exif(">")))).exif
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + block)
    assert exif[0x010F] == "Maker"
    inner = exif.get_ifd(0x8769)
    assert inner[0xA460] == 2
    assert inner[0xA461] == (3, 3)
    assert float(inner[0x829A]) == pytest.approx(1 / 250)
    assert exif.get_ifd(0x8825)[1] == "N"
    assert exif.get_ifd(0xA005)[1] == "R98"


def test_one_frame_is_no_composite() -> None:
    exif = parse_exif(derive(plain_photo(), frames=["a.jpg"], scale=2).exif)
    assert 0xA460 not in exif.exif
    assert numbers(exif, exif.exif, 0xA002) == [12]


def test_size_may_be_given(tmp_path: Path) -> None:
    exif = parse_exif(derive(plain_photo(), size=(17, 11)).exif)
    assert numbers(exif, exif.exif, 0xA002) == [17]
    assert numbers(exif, exif.exif, 0xA003) == [11]


def test_the_thumbnail_is_dropped() -> None:
    source = build_exif(camera_exif())
    thumbnail = b"\xff\xd8 a stale little picture \xff\xd9"
    reader_end = len(source)
    first = int.from_bytes(source[4:8], "little")
    count = int.from_bytes(source[first : first + 2], "little")
    pointer = first + 2 + 12 * count  # where the offset of the next directory stands
    second = b"\1\0" + b"\1\2\4\0\1\0\0\0" + (reader_end + 18).to_bytes(4, "little") + bytes(4)
    block = source[:pointer] + reader_end.to_bytes(4, "little") + source[pointer + 4 :] + second + thumbnail
    with Image.new("RGB", (6, 4)) as image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", exif=b"Exif\0\0" + block)
    assert b"stale" in buffer.getvalue()
    result = derive(plain_photo(exif=block))
    assert b"stale" not in result.exif
    assert parse_exif(result.exif).main[0x010F].data == b"Maker\0"


def test_the_maker_note_keeps_its_place() -> None:
    """Many maker notes hold offsets that count from the start of the block."""
    source = camera_exif()
    note = bytes(range(256)) * 3
    source.exif[0x927C] = Value(7, len(note), note, home=1000)
    block = build_exif(source)
    assert block[1000 : 1000 + len(note)] == note
    for _ in range(3):  # and does so again and again
        block = derive(plain_photo(exif=block), software="a much longer name of the software " * 3).exif
        assert block[1000 : 1000 + len(note)] == note
    exif = parse_exif(block)
    assert exif.damaged == 0
    assert exif.exif[0xA434].data == b"Lens 100 mm Macro\0"


@settings(deadline=None, max_examples=100)
@given(
    values=st.dictionaries(
        st.integers(1, 0xFFFF), st.binary(min_size=1, max_size=40), min_size=1, max_size=8
    ),
    order=st.sampled_from(["<", ">"]),
    home=st.integers(0, 400),
    note=st.binary(min_size=5, max_size=60),
)
def test_exif_survives_building_and_parsing(
    values: dict[int, bytes], order: str, home: int, note: bytes
) -> None:
    pointers = {0x8769, 0x8825, 0xA005, 0x927C}
    exif = Exif(order=order)  # type: ignore[arg-type]
    exif.main = {tag: Value(7, len(data), data) for tag, data in values.items() if tag not in pointers}
    exif.exif = dict(exif.main) | {0x927C: Value(7, len(note), note, home)}
    exif.gps = dict(exif.main)
    exif.main[0x0131] = exif.text("x")
    back = parse_exif(build_exif(exif))
    assert back.damaged == 0
    for name in ("main", "exif", "gps", "interop"):
        ours = {tag: value.data for tag, value in getattr(exif, name).items()}
        assert {tag: value.data for tag, value in getattr(back, name).items()} == ours


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_damaged_exif_never_raises(data: st.DataObject) -> None:
    block = bytearray(build_exif(camera_exif()))
    for _ in range(data.draw(st.integers(1, 6))):
        block[data.draw(st.integers(0, len(block) - 1))] = data.draw(st.integers(0, 255))
    told: list[str] = []
    block = block[: data.draw(st.integers(0, len(block)))]
    result = derive(plain_photo(exif=bytes(block)), warn=told.append)
    assert numbers(parse_exif(result.exif), parse_exif(result.exif).exif, 0xA002) == [18]


def test_damaged_exif_is_told() -> None:
    told: list[str] = []
    derive(plain_photo(exif=b"nonsense"), warn=told.append)
    assert "EXIF data is damaged" in told[0]
    source = camera_exif()
    block = build_exif(source)
    told.clear()
    derive(plain_photo(exif=block[:-40]), warn=told.append)
    assert "damaged EXIF entries" in told[0]
    with pytest.raises(IfdError):
        parse_exif(b"II*\0\xff\xff\xff\x7f")


def test_only_a_file_is_a_result(tmp_path: Path) -> None:
    made = derive(plain_photo())
    write_photo(plain_photo(xmp=made.xmp), tmp_path / "result.png")
    write_photo(plain_photo(), tmp_path / "photo.png")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")  # nobody writes into it: to open it waits for ever
    names = ("result.png", "photo.png", "empty.png", "pipe.png", "missing.png", "nul\0.png")
    assert [name for name in names if is_result(tmp_path / name)] == ["result.png"]


# ------------------------------------------------------------------ resolution and description


def enlarged(source: Path, scale: int, target: Path) -> Photo:
    """Write what has the metadata of a photo enlarged, and read it again."""
    photo = read_photo(source)
    width, height = photo.size
    made = derive(photo, scale=scale)
    pixels = np.zeros((height * scale, width * scale, photo.pixels.shape[2]), photo.pixels.dtype)
    write_photo(Photo(pixels=pixels, exif=made.exif, xmp=made.xmp, dpi=made.dpi), target)
    return read_photo(target)


@pytest.mark.parametrize("unit", [1, 3])  # none and cm: to ImageJ both are pixels per µm
def test_an_imagej_calibration_is_scaled_in_its_own_unit(unit: int, tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.zeros((5, 4, 6), np.uint16),
        imagej=True,
        resolution=(2, 2),
        resolutionunit=unit,
        metadata={"unit": "um", "slices": 5, "min": 0.0, "max": 4095.0},
    )
    again = enlarged(tmp_path / "a.tif", 3, tmp_path / "b.tif")
    assert again.dpi == (None if unit == 1 else pytest.approx((6 * 2.54, 6 * 2.54)))
    with tifffile.TiffFile(tmp_path / "b.tif") as tiff:
        tags = tiff.pages[0].tags  # type: ignore[union-attr]
        assert tags["XResolution"].value == tags["YResolution"].value == (6, 1)
        assert tags["ResolutionUnit"].value == unit
        assert tags["ImageDescription"].value.split() == ["ImageJ=1.11a", "unit=um"]
        assert tiff.series[0].shape == (12, 18)
    twice = enlarged(tmp_path / "b.tif", 2, tmp_path / "c.jpg")
    exif = parse_exif(twice.exif or b"")
    assert exif.first_ratio(exif.main, 0x011A) == 12


def test_the_pixels_of_ome_become_a_resolution(tmp_path: Path) -> None:
    ome = {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 250}
    ome["PhysicalSizeYUnit"] = "nm"
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((4, 6), np.uint16), ome=True, metadata=ome)
    for name in ("b.tif", "b.png", "b.jpg"):
        again = enlarged(tmp_path / "a.ome.tif", 2, tmp_path / name)
        exif = parse_exif(again.exif or b"")
        assert 0x010E not in exif.main
        assert exif.first_ratio(exif.main, 0x011A) == 101_600
        assert exif.first_ratio(exif.main, 0x011B) == 203_200


@pytest.mark.parametrize("name", ["b.tif", "b.png", "b.jpg"])
@pytest.mark.parametrize(
    ("size", "stated"),
    [
        ("0.06453", 2 * 25_400 / 0.06453),
        ("0.0000131", 2 * 25_400 / 0.0000131),
        ("0.0000105", None),
        ("1e-9", None),
    ],
)
def test_the_pixels_of_a_strong_microscope_fit_into_a_resolution(
    size: str, stated: float | None, name: str, tmp_path: Path
) -> None:
    ome = {"axes": "YX", "PhysicalSizeX": size, "PhysicalSizeY": size}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((4, 6), np.uint16), ome=True, metadata=ome)
    again = enlarged(tmp_path / "a.ome.tif", 2, tmp_path / name)
    if stated is None:  # more than the numbers of TIFF and EXIF can hold
        assert again.dpi is None
    else:
        exif = parse_exif(again.exif or b"")
        assert exif.first_ratio(exif.main, 0x011A) == pytest.approx(stated, rel=1e-8)


@pytest.mark.parametrize("name", ["b.tif", "b.png", "b.jpg"])
def test_a_resolution_of_a_tenth_of_a_micrometre_is_kept_though_nothing_else_is_told(
    name: str, tmp_path: Path
) -> None:
    stated = {"resolution": (100_000, 50_000), "resolutionunit": "CENTIMETER"}
    pixels = np.zeros((4, 6), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, **stated, metadata=None, software=False)
    again = enlarged(tmp_path / "a.tif", 2, tmp_path / name)
    assert again.dpi == pytest.approx((508_000, 254_000))


def test_what_counts_in_pixels_follows_the_scale_or_goes() -> None:
    exif = camera_exif()
    exif.exif[0xA20E] = exif.rational(1000.5)  # FocalPlaneXResolution
    exif.exif[0xA20F] = Value(12, 1, struct.pack("<d", 2000))  # FocalPlaneYResolution, which is no double
    exif.exif[0x9214] = exif.exif[0xA214] = exif.integers(3, 3, 2)  # SubjectArea, SubjectLocation
    stated = 'tiff:XResolution="72" tiff:YResolution="72" tiff:ResolutionUnit="3" exif:SubjectLocation="3 2"'
    packet = PACKET.replace(b"xmp:Rating", f'xmlns:exif="{EXIF[1:-1]}" {stated} xmp:Rating'.encode())
    area = b"<exif:SubjectArea><rdf:Seq><rdf:li>3</rdf:li></rdf:Seq></exif:SubjectArea></rdf:Description>"
    packet = packet.replace(b"</rdf:Description>", area)
    photo = plain_photo(exif=build_exif(exif), xmp=packet, dpi=(72.0, 36.5))
    made = derive(photo)
    found = parse_exif(made.exif)
    assert found.first_ratio(found.exif, 0xA20E) == 3001.5
    assert not {0xA20F, 0x9214, 0xA214} & set(found.exif)
    text = properties(made.xmp)
    assert text[f"{TIFF}XResolution"] == "216/1"
    assert text[f"{TIFF}YResolution"] == "219/2"
    assert text[f"{TIFF}ResolutionUnit"] == "2"
    unknown = derive(replace(photo, dpi=None))
    for packet in (made.xmp, unknown.xmp):
        assert not [name for name in properties(packet) if "Subject" in name]
    assert not [name for name in properties(unknown.xmp) if "Resolution" in name]


def test_a_result_has_not_the_identity_of_its_source() -> None:
    exif = camera_exif()
    exif.exif[0xA420] = exif.text("0123456789abcdef0123456789abcdef")  # ImageUniqueID
    stated = f'xmlns:exif="{EXIF[1:-1]}" exif:ImageUniqueID="0123" xmp:Rating'
    made = derive(plain_photo(exif=build_exif(exif), xmp=PACKET.replace(b"xmp:Rating", stated.encode())))
    assert 0xA420 not in parse_exif(made.exif).exif
    found = properties(made.xmp)
    assert not {f"{EXIF}ImageUniqueID", f"{XMP_MM}DocumentID", f"{XMP_MM}InstanceID"} & set(found)


def test_xmp_does_not_tell_of_the_kind_of_file_that_was_read() -> None:
    stated = 'xmlns:dc="http://purl.org/dc/elements/1.1/" dc:format="image/jpeg" tiff:Compression="6"'
    bits = b"<tiff:BitsPerSample><rdf:Seq><rdf:li>8</rdf:li></rdf:Seq></tiff:BitsPerSample></rdf:Description>"
    packet = PACKET.replace(b"xmp:Rating", f"{stated} xmp:Rating".encode())
    made = derive(plain_photo(xmp=packet.replace(b"</rdf:Description>", bits)))
    text = properties(made.xmp)
    assert text[f"{XMP}Rating"] == "4"
    assert not [name for name in text if name.endswith(("format", "Compression", "BitsPerSample"))]


ZEISS = "0\r\nAP_PIXEL_SIZE\r\nPixel Size = 9 nm\r\nAP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = {}\r\n\0"
FEI = "[Scan]\r\nDwell=1e-007\r\nPixelWidth={}\r\nPixelHeight=2e-008\r\n[EScan]\r\nPixelWidth=1\r\n\0"


@pytest.mark.parametrize(
    ("tag", "notes", "micrometres"),
    [
        (34118, ZEISS.format("10.00 nm"), (0.01, 0.01)),
        (34118, ZEISS.format("1.5 µm"), (1.5, 1.5)),
        (34118, ZEISS.format("0.0 nm"), None),
        (34118, ZEISS.format("1.2.3 nm"), None),
        (34118, ZEISS.format("1 furlong"), None),
        (34682, FEI.format("1e-008"), (0.01, 0.02)),
        (34680, FEI.format("wide"), None),
    ],
)
def test_the_calibration_of_an_electron_microscope_becomes_a_resolution(
    tag: int, notes: str, micrometres: tuple[float, float] | None, tmp_path: Path
) -> None:
    data = notes.encode("cp1252")
    tifffile.imwrite(
        tmp_path / "a.tif", np.zeros((4, 6), np.uint8), extratags=[(tag, 2, len(data), data, True)]
    )
    again = enlarged(tmp_path / "a.tif", 2, tmp_path / "b.tif")
    exif = parse_exif(again.exif or b"")
    assert tag not in exif.main  # it gives the unenlarged pixels' size
    if micrometres is None:
        assert again.dpi is None
    else:
        found = tuple(exif.first_ratio(exif.main, resolution) for resolution in (0x011A, 0x011B))
        assert found == pytest.approx(tuple(2 * 25_400 / side for side in micrometres))


def test_private_fields_of_a_file_s_own_pixels_stay_behind(tmp_path: Path) -> None:
    kept = {0x013B: "Artist", 0x8298: "Rights", 0x9003: "2024:05:06 07:08:09", 0x9C9B: "Title"}
    exif = Exif()
    exif.main = {tag: exif.text(text) for tag, text in kept.items()}
    for tag in (33550, 33560, 33628, 33629, 34361, 34362, 34412, 34735, 42112):  # maps, stacks, calibrations
        exif.main[tag] = Value(7, 30, bytes(30))
    write_photo(plain_photo(exif=build_exif(exif)), tmp_path / "a.tif")
    assert set(parse_exif(read_photo(tmp_path / "a.tif").exif or b"").main) >= set(kept)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.asarray().shape == (4, 6, 3)
        assert {tag.code for tag in tiff.pages[0].tags if tag.code >= 0x8000} == set(kept) - {0x013B}  # type: ignore[union-attr]


def test_planes_of_a_metamorph_stack_are_told(tmp_path: Path) -> None:
    for planes in (1, 3):
        field = (33629, 5, planes, (1, 1) * planes, True)
        tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 6), np.uint8), extratags=[field], metadata=None)
        told: list[str] = []
        read_photo(tmp_path / "a.tif", warn=told.append)
        assert ["several pages" in text for text in told] == [True] * (planes > 1)


def test_planes_of_an_imagej_stack_without_pages_are_told(tmp_path: Path) -> None:
    for planes in (1, 3):
        pixels = np.zeros((planes, 4, 6), np.uint16)
        tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, truncate=True, metadata={"axes": "ZYX"})
        told: list[str] = []
        read_photo(tmp_path / "a.tif", warn=told.append)
        assert ["several pages" in text for text in told] == [True] * (planes > 1)


@pytest.mark.parametrize("encoding", ["foo", "hex", "latin-1"])
def test_an_encoding_that_is_none_costs_nothing(encoding: str) -> None:
    declared = f'<?xml version="1.0" encoding="{encoding}"?>'
    packet = (declared + PACKET.decode().split("?>", 1)[1].replace("kept", "größer")).encode()
    ome = f'{declared}<OME><Pixels PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="µm"/></OME>\0'
    exif = Exif(main={0x010E: Value(2, len(ome.encode()), ome.encode())})
    told: list[str] = []
    made = derive(plain_photo(exif=build_exif(exif), xmp=packet), warn=told.append)
    assert told == []
    assert made.dpi == (3 * 25_400, 3 * 25_400)
    assert properties(made.xmp)["{http://example.org/own/}note"] == "größer & safe"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b'{"shape": [4, 6, 3]}', False),
        (b"shape=(4, 6, 3)", False),
        (b"<OME><Image/></OME>", False),
        (b'<!DOCTYPE a [<!ENTITY b "b">]><OME>&b;</OME>', False),
        (b'<OME><Pixels PhysicalSizeX="-1" PhysicalSizeY="nan"/></OME>', False),
        (b'<OME><Pixels PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="pixel"/></OME>', False),
        (b"<OME" + b"<a>" * 50_000 + b"OME>", False),
        ("a photo of an ÖME in shape=(round)".encode(), True),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_description_for_programs_does_not_go_stale(
    text: bytes, kept: bool, suffix: str, tmp_path: Path
) -> None:
    exif = Exif(main={0x010E: Value(2, len(text) + 1, text + b"\0")})
    made = derive(plain_photo(exif=build_exif(exif), dpi=(300.0, 300.0)))
    assert made.dpi == (900, 900)
    photo = Photo(pixels=np.zeros((12, 18, 3), np.uint8), exif=made.exif, dpi=made.dpi)
    write_photo(photo, tmp_path / f"x{suffix}")
    found = parse_exif(read_photo(tmp_path / f"x{suffix}").exif or b"").main.get(0x010E)
    assert (found.data.rstrip(b"\0") if found else None) == (text if kept else None)


# ------------------------------------------------------------------ XMP


def properties(packet: bytes) -> dict[str, str]:
    """All attributes and simple elements of all descriptions."""
    found: dict[str, str] = {}
    root = ET.fromstring(packet.decode("utf-8").replace("\ufeff", ""))
    for description in root.iter(f"{RDF}Description"):
        found |= description.attrib
        found |= {child.tag: (child.text or "").strip() for child in description}
    return found


def test_xmp_is_kept_corrected_and_completed() -> None:
    result = derive(plain_photo(xmp=PACKET))
    found = properties(result.xmp)
    assert found[f"{XMP}Rating"] == "4"
    assert found["{http://example.org/own/}note"] == "kept & safe"
    assert found[f"{TIFF}Orientation"] == "1"
    assert found[f"{TIFF}ImageWidth"] == "18"
    assert f"{TIFF}ImageLength" not in found
    assert found[f"{EXIF}PixelXDimension"] == "18"
    assert found[f"{XMP}CreatorTool"] == "mffsr 1.0"
    assert found[f"{OURS}WeightsHash"] == "abc"
    assert found[f"{XMP_MM}OriginalDocumentID"] == "doc-1"
    assert f"{XMP_MM}InstanceID" not in found
    assert f"{XMP}Thumbnails" not in found
    assert not any("hdr-gain-map" in name for name in found)
    root = ET.fromstring(result.xmp.decode("utf-8").replace("\ufeff", ""))
    derived = next(root.iter(f"{XMP_MM}DerivedFrom"))
    assert derived.findtext(f"{ST_REF}documentID") == "doc-1"
    assert derived.findtext(f"{ST_REF}instanceID") == "inst-1"
    assert [item.text for item in next(root.iter(f"{OURS}Frames")).iter(f"{RDF}li")] == [
        "a.jpg",
        "b.jpg",
        "c.jpg",
    ]
    assert b"own:note" in result.xmp  # prefixes stay readable
    assert b"ns0:" not in result.xmp


def test_provenance_is_replaced_not_repeated() -> None:
    once = derive(plain_photo(xmp=PACKET))
    twice = derive(plain_photo(xmp=once.xmp), details={"WeightsHash": "def"})
    assert twice.xmp.count(b"WeightsHash>def<") == 1
    assert b"abc" not in twice.xmp
    assert twice.xmp.count(b"DerivedFrom ") == 1
    assert properties(twice.xmp)[f"{XMP_MM}OriginalDocumentID"] == "doc-1"


BOMB = (
    b'<!DOCTYPE a [<!ENTITY b "bbbbbbbbbb"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>'
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/">&c;</x:xmpmeta>'
)


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"not xml",
        b"\xff\xfe\0\0",
        BOMB,
        b"<?x <!-- ?>" + BOMB,
        b"<a>" * 50_000 + b"</a>" * 50_000,
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>',
        PACKET[:300],
        PACKET.decode().encode("utf-16"),
    ],
)
def test_damaged_or_hostile_xmp_is_replaced(packet: bytes) -> None:
    told: list[str] = []
    result = derive(plain_photo(xmp=packet, path=Path("a.jpg")), warn=told.append)
    assert len(told) == 1
    assert told[0].startswith("a.jpg: the XMP data is damaged")
    assert properties(result.xmp)[f"{OURS}WeightsHash"] == "abc"
    assert len(result.xmp) < 3000


def test_strange_names_and_keys() -> None:
    names = ["\x1b[31m.jpg", '<&>".jpg', "\udcff.jpg", "ä\u202e.jpg"]
    result = derive(plain_photo(), frames=names)
    root = ET.fromstring(result.xmp.decode("utf-8").replace("\ufeff", ""))
    items = [item.text for item in next(root.iter(f"{OURS}Frames")).iter(f"{RDF}li")]
    assert items == ["\ufffd[31m.jpg", '<&>".jpg', "?.jpg", "ä\u202e.jpg"]
    with pytest.raises(ValueError, match="XML name"):
        derive(plain_photo(), details={"two words": "x"})


def test_the_same_input_gives_the_same_bytes() -> None:
    photo = plain_photo(exif=build_exif(camera_exif()), xmp=PACKET)
    assert derive(photo) == derive(photo)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_the_result_reaches_every_format(suffix: str, tmp_path: Path) -> None:
    source = plain_photo(exif=build_exif(camera_exif()), xmp=PACKET, dpi=(100.0, 100.0))
    made = derive(source)
    told: list[str] = []
    photo = Photo(pixels=np.zeros((12, 18, 3), np.uint8), exif=made.exif, xmp=made.xmp, dpi=made.dpi)
    write_photo(photo, tmp_path / f"x{suffix}", warn=told.append)
    back = read_photo(tmp_path / f"x{suffix}", warn=told.append)
    assert told == []
    assert back.xmp == made.xmp
    assert back.exif is not None
    exif = parse_exif(back.exif)
    assert numbers(exif, exif.exif, 0xA461) == [3, 3]
    assert exif.interop[0x0001].data == b"R98\0"
    assert exif.main[0x0131].data == b"mffsr 1.0\0"
    assert back.dpi == pytest.approx((300, 300), abs=0.01)


def test_iptc_is_kept_where_the_format_can(tmp_path, cpu):
    records = b"\x1c\x02\x00\x00\x02\x00\x04" + b"\x1c\x02\x78\x00\x05Title"  # version, caption
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    write_photo(Photo(pixels=pixels), tmp_path / "plain.jpg")
    plain = (tmp_path / "plain.jpg").read_bytes()
    resources = b"Photoshop 3.0\0" + b"8BIM\x04\x0a\0\0\0\0\0\2ab" + b"8BIM\x04\x04\0\0"
    resources += struct.pack(">I", len(records)) + records + b"\0" * (len(records) % 2)
    segment = b"\xff\xed" + struct.pack(">H", len(resources) + 2) + resources
    (tmp_path / "a.jpg").write_bytes(plain[:20] + segment + plain[20:])
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.iptc == records
    fused = fuse_bracket([photo, photo], tiny_model(1), cpu, align=False).photo
    for name in ("b.jpg", "b.tif"):
        write_photo(fused, tmp_path / name)
        assert read_photo(tmp_path / name).iptc == records
    with Image.open(tmp_path / "b.jpg") as written:
        assert written.info["photoshop"] == {0x0404: records}
    with Image.open(tmp_path / "b.tif") as written:
        assert written.tag_v2[33723] == records
    for name in ("b.png", "b.webp"):
        told: list[str] = []
        write_photo(fused, tmp_path / name, warn=told.append)
        assert any("IPTC" in text for text in told)
    large = replace(photo, iptc=records + b"\x1c\x02\x78\xff\xff" + bytes(70_000))
    told = []
    write_photo(large, tmp_path / "c.jpg", warn=told.append)
    assert any("IPTC" in text for text in told)
    assert read_photo(tmp_path / "c.jpg").iptc is None
