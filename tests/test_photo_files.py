"""Putting a written photo in place: whole or not at all, never over another file unasked."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from photo_samples import (
    FORMATS,
    camera_exif,
    full_photo,
    noisy,
)

from mffsr.errors import PhotoError, UsageError
from mffsr.photo import (
    OUTPUT_EXTENSIONS,
    Photo,
    atomic_output,
    check_target,
    read_photo,
    supported_depth,
    write,
    write_photo,
)
from mffsr.photo._ifd import Value, build_exif, parse_exif
from mffsr.photo._sniff import sniff


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_permissions_follow_the_umask(mask: int, tmp_path: Path) -> None:
    old = os.umask(mask)
    try:
        write_photo(full_photo(), tmp_path / "x.png")
    finally:
        os.umask(old)
    assert (tmp_path / "x.png").stat().st_mode & 0o777 == 0o666 & ~mask


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(b"precious")
    with pytest.raises(PhotoError, match="exists already"):
        write_photo(full_photo(), path)
    assert path.read_bytes() == b"precious"
    write_photo(full_photo(), path, overwrite=True)
    assert read_photo(path).size == (80, 60)
    assert names(tmp_path) == {"x.png"}


def test_ctrl_c_while_the_temporary_file_is_made_leaves_none(tmp_path, monkeypatch):
    create = Path.open

    def interrupted(path, *arguments):
        create(path, *arguments).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_output(tmp_path / "a.png"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_temporary_name_that_is_taken_is_left_alone(tmp_path, monkeypatch):
    names = iter(["taken", "free"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(names))
    other = tmp_path / ".mffsr-taken.tmp"
    other.write_bytes(b"another program's")
    with atomic_output(tmp_path / "a.bin") as stream:
        stream.write(b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        other.name: b"another program's",
        "a.bin": b"new",
    }


def test_a_target_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    with pytest.raises(PhotoError, match="exists already"), atomic_output(path) as stream:  # noqa: PT012
        stream.write(b"ours")
        path.write_bytes(b"theirs")
    assert path.read_bytes() == b"theirs"
    assert names(tmp_path) == {"x.bin"}


def test_a_link_into_a_missing_folder_names_it(tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere" / "x.png")
    with pytest.raises(PhotoError, match=r"link\.png: .*the folder \S*nowhere does not exist"):
        write_photo(full_photo(), tmp_path / "link.png")


def test_a_symlink_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "x.png")
    write_photo(full_photo(), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert read_photo(tmp_path / "real" / "x.png").size == (80, 60)
    with pytest.raises(PhotoError, match="exists already"):
        write_photo(full_photo(), tmp_path / "link.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(PhotoError, match="cannot be written"):
        write_photo(full_photo(), tmp_path / "loop.png", overwrite=True)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    fault: BaseException, broken: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"old")

    def fail(*_arguments: object) -> None:
        raise fault

    monkeypatch.setattr(os, broken, fail)
    expected = KeyboardInterrupt if isinstance(fault, KeyboardInterrupt) else PhotoError
    with pytest.raises(expected, match="No space left" if expected is PhotoError else None):
        write_photo(full_photo(), path, overwrite=True)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {path.name}


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        for suffix in FORMATS:
            with pytest.raises(PhotoError, match="too large"):
                write_photo(Photo(pixels=noisy(200, 200)), tmp_path / f"x{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == set()


def test_targets_are_checked_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in (
        (tmp_path / "none" / "x.png", "does not exist\ncreate it, or choose another$"),
        (tmp_path / "file" / "x.png", "cannot be written"),
        (tmp_path / ("n" * 252 + ".png"), "too long"),
        (Path("a\0b.png"), "null"),
    ):
        with pytest.raises(PhotoError, match=reason):
            check_target(path)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(PhotoError, match="folder"):
        check_target(tmp_path / "folder.png", overwrite=True)
    with pytest.raises(UsageError, match=r"\.jpg \.jpeg \.png \.tif \.tiff \.webp"):
        check_target(tmp_path / "x.xyz")
    with pytest.raises(PhotoError, match="16383"):
        check_target(tmp_path / "x.webp", size=(16384, 10))
    check_target(tmp_path / "x.TIFF", size=(70_000, 10))
    assert supported_depth("x.JPG") == 8
    assert supported_depth("x.Png") == 16


def test_long_and_strange_names(tmp_path: Path) -> None:
    strange = ["n" * 251 + ".png", "-x.png", " a b\n\t.png", "[red].png", "%s.png", "ä\u0301\u202e.png"]
    for name in strange:
        write_photo(full_photo(), tmp_path / name)
        assert read_photo(tmp_path / name).size == (80, 60)
    assert names(tmp_path) == set(strange)
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    write_photo(full_photo(), os.fsdecode(raw))
    assert os.path.exists(raw)


def test_photo_checks_its_arrays() -> None:
    for pixels, reason in (
        (np.zeros((4, 4), np.uint8), "H×W"),
        (np.zeros((4, 4, 2), np.uint8), "H×W"),
        (np.zeros((0, 4, 3), np.uint8), "H×W"),
        (np.zeros((4, 4, 3), np.float32), "uint8 or uint16"),
        (np.zeros((4, 4, 3), np.uint8)[:, ::-1], "contiguous"),
    ):
        with pytest.raises(ValueError, match=reason):
            Photo(pixels=pixels)
    with pytest.raises(ValueError, match="alpha"):
        Photo(pixels=np.zeros((4, 4, 3), np.uint8), alpha=np.zeros((4, 4), np.uint16))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_an_array_is_no_photo_to_write(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ndarray given, expected a Photo"):
        write_photo(full_photo().pixels, tmp_path / name)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_bad_metadata_costs_the_metadata_not_the_photo(tmp_path: Path) -> None:
    for suffix in FORMATS:
        told: list[str] = []
        photo = full_photo(exif=b"II*\0" + b"\xff" * 20, icc=b"nonsense", xmp=b"\xff\xfe not xml")
        write_photo(photo, tmp_path / f"x{suffix}", warn=told.append)
        assert any("profile" in text for text in told)
        told.clear()
        back = read_photo(tmp_path / f"x{suffix}", warn=told.append)
        assert back.size == (80, 60)
        assert back.exif is None
        assert back.icc is None


def test_large_exif_in_a_jpeg_loses_its_large_parts_first(tmp_path: Path) -> None:
    exif = parse_exif(camera_exif())
    exif.exif[0x927C] = Value(7, 70_000, bytes(70_000))
    told: list[str] = []
    write_photo(full_photo(exif=build_exif(exif)), tmp_path / "x.jpg", warn=told.append)
    assert "too large" in told[0]
    back = read_photo(tmp_path / "x.jpg")
    assert back.exif is not None
    assert parse_exif(back.exif).main[0x010F].data == b"Maker\0"
    write_photo(full_photo(exif=build_exif(exif)), tmp_path / "x.png")
    assert len(read_photo(tmp_path / "x.png").exif or b"") > 70_000


def test_threads_leave_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    write_photo(full_photo(), path)
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        photos = list(pool.map(read_photo, [path] * 32))
    assert all(np.array_equal(photo.pixels, photos[0].pixels) for photo in photos)
    assert list(warnings.filters) == before


def test_extensions_are_those_promised() -> None:
    assert OUTPUT_EXTENSIONS == (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp")


@pytest.mark.parametrize("suffix", OUTPUT_EXTENSIONS)
def test_each_extension_writes_its_own_format(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    write_photo(full_photo(), path)
    with path.open("rb") as stream:
        assert sniff(stream, path) == write._format(path).name


def test_a_format_without_an_encoder_is_not_written_as_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(write._FORMATS, ".new", write._TIFF._replace(name="NEW"))
    with pytest.raises(PhotoError, match="nothing writes NEW yet"):
        write_photo(full_photo(), tmp_path / "x.new")
    assert names(tmp_path) == set()
