"""Cut, damaged, hostile and foreign files: none passes for a photo, each is refused with its cause."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from photo_samples import (
    FORMATS,
    camera_exif,
    full_photo,
    noisy,
    write_chunks,
    write_dng,
)

from mffsr.errors import PhotoError
from mffsr.photo import (
    read_header,
    read_photo,
    write_photo,
)
from mffsr.photo._colour import srgb_profile
from mffsr.photo._ifd import Exif, append_to_tiff, build_exif, parse_exif

# ------------------------------------------------------------------ damage


@pytest.mark.parametrize("suffix", [*FORMATS, "16.png", "16.tif"])
def test_truncated_files_are_refused(suffix: str, tmp_path: Path) -> None:
    pixels = noisy().astype(np.uint16) * 257 if suffix.startswith("16") else noisy()
    path = tmp_path / f"x{suffix}"
    write_photo(full_photo(pixels=pixels), path)
    whole = path.read_bytes()
    for percent in (1, 2, 5, 10, 25, 50, 75, 90, 95, 98, 99):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(PhotoError):
            read_photo(path)


def test_a_flipped_bit_in_a_png_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    write_photo(full_photo(), path)
    whole = path.read_bytes()
    random = np.random.default_rng(5)
    for place in random.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(PhotoError):
            read_photo(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_flipped_bits_never_escape_as_another_error(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    write_photo(full_photo(), path)
    whole = path.read_bytes()
    random = np.random.default_rng(6)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.integers(0, min(len(whole), 2000), 3):
            damaged[place] = int(random.integers(256))
        path.write_bytes(damaged)
        said = fault_of(path)
        assert said is None or (str(path) in said and "\n" not in said)


def fault_of(path: Path) -> str | None:
    try:
        read_photo(path)
    except PhotoError as fault:
        return str(fault)
    return None


def test_bombs_are_refused_from_their_header(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 29_000, 29_000, 8, 2, 0, 0, 0)
    packed = zlib.compress(bytes(1000))
    write_chunks(tmp_path / "x.png", [(b"IHDR", head), (b"IDAT", packed), (b"IEND", b"")])
    with pytest.raises(PhotoError, match="841 million pixels; the limit is 500 million"):
        read_photo(tmp_path / "x.png")
    write_photo(full_photo(), tmp_path / "y.png")
    with pytest.raises(PhotoError, match="limit"):
        read_photo(tmp_path / "y.png", max_pixels=4799)


def test_compressed_text_in_a_png_cannot_grow_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    write_photo(full_photo(), path)
    whole = path.read_bytes()
    profile = b"Raw profile type exif\0\0" + zlib.compress(bytes(40 << 20))
    chunk = struct.pack(">I", len(profile)) + b"zTXt" + profile
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + profile))
    path.write_bytes(whole[:33] + chunk + whole[33:])
    told: list[str] = []
    photo = read_photo(path, warn=told.append)
    assert photo.exif == camera_exif()
    assert any("zTXt" in text for text in told)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"GIF89a" + bytes(50), "GIF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"8BPS" + bytes(50), "PSD"),
        (b"hello", "not a photo"),
        (b"\0\0\0\x18ftypisom" + bytes(50), "film"),
    ],
)
def test_foreign_formats_are_named(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    for read in (read_header, read_photo):
        with pytest.raises(PhotoError, match=name):
            read(path)


@pytest.mark.parametrize(
    ("dtype", "what"),
    [
        (np.float32, "32-bit floating point"),
        (np.uint32, "32-bit integer"),
        (np.int16, "16-bit signed integer"),
        (np.complex64, "64-bit complex"),
    ],
)
def test_unusual_tiffs_are_refused_by_what_they_are(dtype: type, what: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((4, 5, 3), dtype), photometric="rgb")
    with pytest.raises(PhotoError, match=f"{what} pixels; save it as unsigned 16-bit TIFF"):
        read_photo(tmp_path / "x.tif")


def test_heic_without_its_plugin_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(PhotoError, match=r"pip install 'mffsr\[heic\]'"):
        read_photo(tmp_path / "x.heic")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.jpg").touch()
    for path, reason in (
        (tmp_path / "pipe", "pipe or a device"),
        (Path("/dev/zero"), "pipe or a device"),
        (tmp_path, "folder"),
        (tmp_path / "empty.jpg", "empty"),
        (tmp_path / "missing.jpg", "No such file"),
        (tmp_path / ("n" * 300), "too long"),
        (Path("a\0b"), "null"),
    ):
        for read in (read_header, read_photo):
            with pytest.raises(PhotoError, match=reason):
                read(path)


# ------------------------------------------------------------------ camera RAW


def test_raw_is_developed_upright_in_16_bits(tmp_path: Path) -> None:
    sensor = np.random.default_rng(7).integers(1000, 60000, (96, 64)).astype(np.uint16)
    for orientation, size in ((1, (64, 96)), (6, (96, 64))):
        path = tmp_path / f"{orientation}.dng"
        write_dng(path, sensor, orientation)
        photo, header = read_photo(path), read_header(path)
        assert photo.size == header.size == size
        assert photo.bit_depth == header.bit_depth == 16
        assert photo.format == "RAW"
        assert photo.icc == srgb_profile()
        assert photo.exif is not None
        assert parse_exif(photo.exif).main[0x010F].data == b"Test\0"
        path.rename(tmp_path / "renamed.tif")
        assert read_photo(tmp_path / "renamed.tif").format == "RAW"


def test_a_raw_of_a_camera_set_to_adobe_rgb_says_what_it_was_developed_to(tmp_path: Path) -> None:
    path, exif = tmp_path / "x.dng", Exif()
    write_dng(path, np.random.default_rng(7).integers(1000, 60000, (96, 64)).astype(np.uint16))
    exif.exif[0xA001] = exif.integers(3, 65535)  # ColorSpace: another than sRGB
    exif.interop[1] = exif.text("R03")
    with path.open("r+b") as stream:
        append_to_tiff(stream, exif, [])
    found = parse_exif(read_photo(path).exif or b"")
    assert found.first_integer(found.exif, 0xA001) == 1
    assert found.interop[1].data == b"R98\0"


@pytest.mark.parametrize(
    ("index", "profile", "told"), [("R03", None, 1), ("R03", "sRGB", 0), ("R98", None, 0)]
)
def test_adobe_rgb_without_a_profile_is_told_of(tmp_path: Path, index: str, profile: str, told: int) -> None:
    exif, warnings = Exif(), []
    exif.interop[1] = exif.text(index)
    photo = full_photo(exif=build_exif(exif), icc=srgb_profile() if profile else None)
    write_photo(photo, tmp_path / "x.jpg")
    read_photo(tmp_path / "x.jpg", warn=warnings.append)
    assert sum("Adobe RGB" in text for text in warnings) == told


def test_cut_or_empty_raw_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dng"
    sensor = np.random.default_rng(7).integers(1000, 60000, (96, 64)).astype(np.uint16)
    write_dng(path, sensor)
    whole = path.read_bytes()
    for percent in (5, 50, 90, 99):
        path.write_bytes(whole[: len(whole) * percent // 100])
        with pytest.raises(PhotoError):
            read_photo(path)
    for rows in (slice(None), slice(40, None), slice(20, 44)):
        empty = sensor.copy()
        empty[rows] = 0
        write_dng(path, empty)
        with pytest.raises(PhotoError, match=r"empty|no picture"):
            read_photo(path)
    overexposed = sensor.copy()
    overexposed[60:] = 65535
    write_dng(path, overexposed)
    assert read_photo(path).size == (64, 96)


SRGB = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
ADOBE = struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)


@pytest.mark.parametrize(
    ("chunks", "told"),
    [
        ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", SRGB)], False),
        ([(b"gAMA", struct.pack(">I", 100000))], True),
        ([(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", ADOBE)], True),
        ([(b"sRGB", b"\0"), (b"cHRM", ADOBE)], False),
        ([(b"gAMA", b"?")], False),
        ([(b"cICP", bytes([1, 13, 0, 1]))], False),
        ([(b"cICP", bytes([9, 16, 0, 1]))], True),
        ([(b"cICP", bytes([1, 16, 0, 1]))], True),  # PQ
        ([(b"cICP", bytes([1, 8, 0, 1]))], True),  # linear light
        ([(b"cICP", b"")], False),
    ],
)
def test_a_png_whose_colours_no_profile_describes(tmp_path: Path, chunks: list, told: bool) -> None:
    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    pixels = (b"IDAT", zlib.compress(b"\0abc"))
    write_chunks(tmp_path / "x.png", [(b"IHDR", head), *chunks, pixels, (b"IEND", b"")])
    warnings: list[str] = []
    read_photo(tmp_path / "x.png", warn=warnings.append)
    assert any("they are read as sRGB" in text for text in warnings) == told
