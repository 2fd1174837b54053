"""Reading and writing photos: pixels, depth, profile and metadata survive."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from photo_samples import (
    FORMATS,
    LOSSLESS,
    XMP,
    camera_exif,
    full_photo,
    linear_gray_profile,
    noisy,
    smooth,
    write_chunks,
)
from PIL import Image

from mffsr.errors import PhotoError
from mffsr.photo import (
    Photo,
    read_header,
    read_photo,
    supported_depth,
    with_depth,
    write_photo,
)
from mffsr.photo._colour import srgb_profile
from mffsr.photo._ifd import append_to_tiff, build_exif, parse_exif
from mffsr.photo._pillow import _tell_of_losses
from mffsr.photo.web import web_pixels

# ------------------------------------------------------------------ round trips


@st.composite
def photos(draw: st.DrawFn) -> Photo:
    height, width = draw(st.integers(1, 33)), draw(st.integers(1, 33))
    channels = draw(st.sampled_from([1, 3]))
    dtype = draw(st.sampled_from([np.uint8, np.uint16]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top = np.iinfo(dtype).max
    pixels = random.integers(0, top, (height, width, channels), dtype=dtype, endpoint=True)
    alpha = random.integers(0, top, (height, width), dtype=dtype, endpoint=True)
    return Photo(pixels=pixels, alpha=alpha if draw(st.booleans()) else None)


@pytest.mark.parametrize("suffix", LOSSLESS)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(photo=photos())
def test_lossless_formats_return_every_bit(suffix: str, photo: Photo, tmp_path: Path) -> None:
    path = tmp_path / f"photo{suffix}"
    write_photo(photo, path, overwrite=True)
    back, header = read_photo(path), read_header(path)
    assert back.pixels.dtype == photo.pixels.dtype
    np.testing.assert_array_equal(back.pixels, photo.pixels)
    assert (back.alpha is None) == (photo.alpha is None)
    if photo.alpha is not None:
        np.testing.assert_array_equal(back.alpha, photo.alpha)
    assert back.pixels.flags.writeable
    assert back.pixels.flags.c_contiguous
    assert header.size == back.size == photo.size
    assert header.bit_depth == photo.bit_depth
    assert header.channels == photo.pixels.shape[2]
    assert header.has_alpha == (photo.alpha is not None)


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3])
def test_other_libraries_read_our_16_bit_files(suffix: str, channels: int, tmp_path: Path) -> None:
    photo = Photo(pixels=smooth(channels=channels, dtype=np.uint16), exif=camera_exif(), dpi=(240.0, 240.0))
    path = tmp_path / f"photo{suffix}"
    write_photo(photo, path)
    seen = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    seen = seen[:, :, None] if seen.ndim == 2 else seen[:, :, ::-1]
    np.testing.assert_array_equal(seen, photo.pixels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_stay_close(suffix: str, channels: int, alpha: bool, tmp_path: Path) -> None:
    pixels = smooth(channels=channels)
    photo = Photo(pixels=pixels, alpha=smooth(channels=1)[:, :, 0] if alpha else None)
    told: list[str] = []
    write_photo(photo, tmp_path / f"x{suffix}", warn=told.append)
    back = read_photo(tmp_path / f"x{suffix}")
    assert np.abs(back.pixels.astype(int) - pixels).mean() < 3
    assert (back.alpha is not None) == (alpha and suffix == ".webp")
    assert any("transparency" in text for text in told) == (alpha and suffix == ".jpg")


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_profile_and_metadata_reach_every_format(suffix: str, dtype: type, tmp_path: Path) -> None:
    photo = full_photo(pixels=smooth(dtype=dtype))
    path = tmp_path / f"photo{suffix}"
    told: list[str] = []
    write_photo(photo, path, warn=told.append)
    back = read_photo(path, warn=told.append)
    assert told == []
    assert back.icc == photo.icc
    assert back.xmp == XMP
    assert back.bit_depth == min(photo.bit_depth, supported_depth(path))
    assert back.exif is not None
    exif = parse_exif(back.exif)
    assert exif.main[0x010F].data == b"Maker\0"
    assert exif.exif[0x9003].data == b"2024:05:06 07:08:09\0"
    assert exif.gps[0x0000].data == b"\2\3\0\0"
    if suffix != ".webp":  # which has no field for it
        assert back.dpi == pytest.approx((300, 300), abs=0.01)
    with Image.open(path) as seen:
        assert seen.info.get("icc_profile") == photo.icc
        assert seen.getexif()[0x010F] == "Maker"
        assert seen.getexif().get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"


def test_jpeg_keeps_the_full_colour_resolution(tmp_path: Path) -> None:
    write_photo(full_photo(), tmp_path / "x.jpg")
    with Image.open(tmp_path / "x.jpg") as seen:
        assert {component[1:3] for component in seen.layer} == {(1, 1)}  # type: ignore[attr-defined]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for suffix in FORMATS:
        for name in ("a", "b"):
            write_photo(full_photo(), tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_16_bits_are_rounded_not_cut(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    eight = with_depth(Photo(pixels=values), 8)
    np.testing.assert_array_equal(eight.pixels, np.round(values / 257).astype(np.uint8))
    back = with_depth(with_depth(eight, 16), 8)
    np.testing.assert_array_equal(back.pixels, eight.pixels)
    with pytest.raises(ValueError, match="bit depth"):
        with_depth(eight, 12)


@pytest.mark.parametrize(
    ("dtype", "level", "shown"), [(np.uint8, 1, 13), (np.uint8, 5, 38), (np.uint16, 128, 6)]
)
def test_shadows_of_linear_gray_stay(dtype: type, level: int, shown: int, tmp_path: Path) -> None:
    pixels = np.full((16, 16, 1), level, dtype)
    assert (web_pixels(pixels, linear_gray_profile()) == shown).all()
    write_photo(Photo(pixels=pixels, icc=linear_gray_profile()), tmp_path / "x.webp")  # has no gray
    back = read_photo(tmp_path / "x.webp")
    assert back.icc == srgb_profile()
    assert np.abs(back.pixels.astype(int) - shown).max() <= 1


def test_a_profile_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    photo = Photo(pixels=smooth(channels=1), icc=srgb_profile())  # an RGB profile on gray pixels
    told: list[str] = []
    write_photo(photo, tmp_path / "x.webp", warn=told.append)
    assert any("profile" in text for text in told)


# ------------------------------------------------------------------ orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_orientation_becomes_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    upright = Image.fromarray(smooth(40, 64))
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that lay it down
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    path = tmp_path / f"turned{suffix}"
    options = {"exif": b"Exif\0\0" + camera_exif(orientation)}
    if suffix == ".tif":
        tifffile.imwrite(
            path, np.asarray(stored), photometric="rgb", extratags=[(274, 3, 1, orientation, True)]
        )
    else:
        stored.save(path, quality=95, **options)
    photo = read_photo(path)
    assert photo.size == read_header(path).size == (64, 40)
    assert np.abs(photo.pixels.astype(int) - np.asarray(upright)).mean() < 4
    if photo.exif is not None and suffix != ".tif":
        assert parse_exif(photo.exif).main[0x0112].data == b"\0\1"


@pytest.mark.parametrize(("orientation", "upright"), [(3, (300, 150)), (6, (150, 300))])
@pytest.mark.parametrize("suffix", FORMATS)
def test_the_resolution_turns_with_the_picture(
    orientation: int, upright: tuple[int, int], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"x{suffix}"
    exif = parse_exif(camera_exif(orientation))
    exif.main[0x011A], exif.main[0x011B] = exif.rational(300), exif.rational(150)
    exif.exif[0xA20E], exif.exif[0xA20F] = exif.rational(300), exif.rational(150)  # of the focal plane
    write_photo(Photo(pixels=smooth(), exif=build_exif(exif), dpi=(300.0, 150.0)), path)
    if suffix == ".tif":  # has an orientation of its own
        with path.open("r+b") as stream:
            append_to_tiff(stream, exif, [(0x0112, exif.integers(3, orientation))])
    photo = read_photo(path)
    found = parse_exif(photo.exif or b"")
    assert photo.dpi == pytest.approx(upright, rel=1e-3)
    assert (found.first_ratio(found.main, 0x011A), found.first_ratio(found.main, 0x011B)) == upright
    assert (found.first_ratio(found.exif, 0xA20E), found.first_ratio(found.exif, 0xA20F)) == upright


def test_orientation_only_in_xmp(tmp_path: Path) -> None:
    xmp = XMP.replace(b'xmp:Rating="4"', b'xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"')
    write_photo(Photo(pixels=smooth(40, 64), xmp=xmp), tmp_path / "x.png")
    photo = read_photo(tmp_path / "x.png")
    assert photo.size == read_header(tmp_path / "x.png").size == (40, 64)
    assert photo.xmp is not None
    assert b'tiff:Orientation="1"' in photo.xmp


# ------------------------------------------------------------------ kinds of pictures


@pytest.mark.parametrize(
    ("mode", "channels", "alpha"),
    [
        ("1", 1, False),
        ("L", 1, False),
        ("LA", 1, True),
        ("P", 3, False),
        ("RGB", 3, False),
        ("RGBA", 3, True),
    ],
)
def test_png_modes(mode: str, channels: int, alpha: bool, tmp_path: Path) -> None:
    picture = Image.fromarray(noisy()).convert(mode)
    picture.save(tmp_path / "x.png")
    photo, header = read_photo(tmp_path / "x.png"), read_header(tmp_path / "x.png")
    assert photo.pixels.shape == (60, 80, channels)
    assert (photo.alpha is not None) == alpha == header.has_alpha
    assert header.channels == channels
    expected = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    np.testing.assert_array_equal(photo.pixels.squeeze(), expected)


def test_palette_transparency_becomes_alpha(tmp_path: Path) -> None:
    picture = Image.new("P", (5, 4), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.putpixel((0, 0), 0)
    picture.save(tmp_path / "x.png", transparency=0)
    photo = read_photo(tmp_path / "x.png")
    assert photo.alpha is not None
    assert photo.alpha[0, 0] == 0
    assert photo.alpha[1:].min() == 255
    assert photo.pixels[3, 4].tolist() == [10, 20, 30]


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (7, 9), (33, 31)])
@pytest.mark.parametrize("depth", [8, 16])
def test_interlaced_png(size: tuple[int, int], depth: int, tmp_path: Path) -> None:
    width, height = size
    random = np.random.default_rng(2)
    pixels = random.integers(0, 1 << depth, (height, width, 3), dtype=np.uint16)
    lines = b""
    for left, top, across, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
    ):  # fmt: skip
        part = pixels[top::down, left::across]
        if part.size:
            lines += b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in part)
    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 1)
    write_chunks(tmp_path / "x.png", [(b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")])
    np.testing.assert_array_equal(read_photo(tmp_path / "x.png").pixels, pixels)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_layouts(compression: str | None, planar: str, order: str, tmp_path: Path) -> None:
    pixels = smooth(dtype=np.uint16)
    stored = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
    tifffile.imwrite(
        tmp_path / "x.tif",
        stored,
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        byteorder=order,
        tile=(16, 32) if compression == "zlib" else None,
    )
    photo = read_photo(tmp_path / "x.tif")
    np.testing.assert_array_equal(photo.pixels, pixels)
    assert photo.pixels.dtype == np.uint16  # the machine's byte order


def test_tiff_white_is_zero_bigtiff_and_premultiplied_alpha(tmp_path: Path) -> None:
    gray = smooth(channels=1)[:, :, 0]
    tifffile.imwrite(tmp_path / "w.tif", gray, photometric="miniswhite", bigtiff=True)
    np.testing.assert_array_equal(read_photo(tmp_path / "w.tif").pixels[:, :, 0], 255 - gray)
    rgba = np.full((2, 2, 4), 64, np.uint8)
    rgba[:, :, 3] = 128
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["assocalpha"])
    photo = read_photo(tmp_path / "a.tif")
    assert photo.pixels[0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tiff_channels_that_are_no_alpha_are_left_out_with_a_word(planar: str, tmp_path: Path) -> None:
    mask, alpha = noisy()[:, :, :1], smooth(channels=1)
    for extras, kinds in (([mask], ["unspecified"]), ([mask, alpha], ["unspecified", "unassalpha"])):
        channels = np.concatenate([smooth(), *extras], axis=2)
        stored = channels if planar == "contig" else np.moveaxis(channels, 2, 0)
        tifffile.imwrite(
            tmp_path / "x.tif", stored, photometric="rgb", planarconfig=planar, extrasamples=kinds
        )
        told: list[str] = []
        photo = read_photo(tmp_path / "x.tif", warn=told.append)
        np.testing.assert_array_equal(photo.pixels, smooth())
        assert told == [f"{tmp_path / 'x.tif'}: channels beside colour and transparency are left out"]
        has_alpha = "unassalpha" in kinds
        assert (photo.alpha is not None) == read_header(tmp_path / "x.tif").has_alpha == has_alpha
        if photo.alpha is not None:
            np.testing.assert_array_equal(photo.alpha, alpha[:, :, 0])


def test_first_of_several_pages_and_pictures(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.stack([smooth(), noisy()]), photometric="rgb")
    told: list[str] = []
    np.testing.assert_array_equal(read_photo(tmp_path / "x.tif", warn=told.append).pixels, smooth())
    assert "pages" in told[0]
    frames = [Image.fromarray(one) for one in (smooth(), noisy())]
    for name in ("x.webp", "x.png"):
        told.clear()
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(read_photo(tmp_path / name, warn=told.append).pixels, smooth())
        assert "first picture" in told[0]


def test_a_thumbnail_is_not_taken_for_the_photo(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(np.ascontiguousarray(smooth()[::4, ::4]), photometric="rgb", subfiletype=1)
        file.write(smooth(), photometric="rgb")
    for read in (read_header, read_photo):
        with pytest.raises(PhotoError, match=r"x\.tif: begins with a thumbnail"):
            read(path)
    tifffile.imwrite(path, smooth(), photometric="rgb", subfiletype=1)  # nothing else is there
    np.testing.assert_array_equal(read_photo(path).pixels, smooth())


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "x.jpg", quality=98)
    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "x.tif")
    for name in ("x.jpg", "x.tif"):
        photo = read_photo(tmp_path / name)
        assert np.abs(photo.pixels.astype(int) - smooth()).mean() < 4


def test_cmyk_with_alpha_and_a_profile_that_does_not_fit(tmp_path: Path) -> None:
    inks = np.asarray(Image.fromarray(smooth()).convert("CMYK"))
    alpha = smooth(channels=1)
    tifffile.imwrite(
        tmp_path / "x.tif",
        np.concatenate([inks, alpha], axis=2),
        photometric="separated",
        extrasamples=["unassalpha"],
        iccprofile=srgb_profile(),
    )
    told: list[str] = []
    photo = read_photo(tmp_path / "x.tif", warn=told.append)
    assert np.abs(photo.pixels.astype(int) - smooth()).mean() < 4
    assert photo.alpha is not None
    np.testing.assert_array_equal(photo.alpha, alpha[:, :, 0])
    assert photo.icc is None
    assert "describes RGB colours, but the pixels are CMYK" in told[0]


@pytest.mark.parametrize(("bits", "told"), [(0, False), (2, True), (4, True)])
def test_heif_of_more_than_8_bits_is_told(bits: int, told: bool) -> None:
    record = bytes(17) + bytes([0xF8 | bits, 0xF8, 0, 0, 0, 0])  # ISO/IEC 14496-15, 8.3.3.1
    warnings: list[str] = []
    _tell_of_losses(io.BytesIO(b"\0\0\0\x20ftypheic" + bytes(30) + b"hvcC" + record), warnings.append)
    assert any("read as 8" in text for text in warnings) == told


@pytest.mark.parametrize(("points", "told"), [((1, 13), False), ((12, 13), True), ((1, 16), True)])
def test_colours_of_a_heif_other_than_srgb_are_told(points: tuple[int, int], told: bool) -> None:
    warnings: list[str] = []
    _tell_of_losses(io.BytesIO(b"colrnclx" + struct.pack(">HH", *points)), warnings.append)
    assert any("not those of sRGB" in text for text in warnings) == told


def test_pnm(tmp_path: Path) -> None:
    pixels = smooth(dtype=np.uint16)
    (tmp_path / "x.ppm").write_bytes(b"P6 # made here\n80 60\n65535\n" + pixels.astype(">u2").tobytes())
    np.testing.assert_array_equal(read_photo(tmp_path / "x.ppm").pixels, pixels)
    (tmp_path / "x.pgm").write_bytes(b"P5\n2 1\n100\n" + bytes([50, 100]))
    assert read_photo(tmp_path / "x.pgm").pixels.ravel().tolist() == [128, 255]
    (tmp_path / "x.pgm").write_bytes(b"P5\n2 2\n100\n" + bytes([50, 100]))
    with pytest.raises(PhotoError, match="cut short"):
        read_photo(tmp_path / "x.pgm")


def test_content_counts_not_the_name(tmp_path: Path) -> None:
    write_photo(full_photo(), tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert read_photo(tmp_path / "x.jpg").format == "PNG"
    write_photo(full_photo(), tmp_path / "y.jpg")
    (tmp_path / "y.jpg").rename(tmp_path / "y.nef")
    assert read_photo(tmp_path / "y.nef").format == "JPEG"
