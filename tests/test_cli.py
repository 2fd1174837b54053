"""The command line as a user has it: real processes, exit codes, messages, files."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import bracket
from typer.testing import CliRunner

from mffsr import __version__
from mffsr.checkpoint import weights_folder
from mffsr.cli import fuse as fuse_command
from mffsr.cli.app import app
from mffsr.cli.console import Console, failure_text, terminating
from mffsr.cli.fuse_job import Motion, expand, parse_memory, parse_tile
from mffsr.cli.fuse_plan import _table, describe_frame
from mffsr.cli.train import _lock
from mffsr.errors import DeviceError, PhotoError, TrainingError, UsageError
from mffsr.photo import Photo, read_photo, write_photo
from mffsr.photo.align import MOTIONS, Registration

ENV = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"}


def mffsr(*arguments, cwd=None, env=ENV, **options):
    command = [sys.executable, "-m", "mffsr", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240, check=False, **options
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    near, far, _, _ = bracket(72, 96)
    write_photo(Photo(pixels=near), tmp_path / "a.jpg")
    write_photo(Photo(pixels=far), tmp_path / "b.jpg")
    return tmp_path


@pytest.fixture
def fuse(folder, tiny_weights):
    def run(*arguments, **options):
        return mffsr("fuse", "--weights", tiny_weights, *arguments, cwd=folder, **options)

    return run


@pytest.fixture
def quick(folder, tiny_weights, monkeypatch):
    """Run `mffsr fuse` in this process."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        result = CliRunner().invoke(app, ["fuse", *map(str, arguments), "--weights", str(tiny_weights)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def check_refusal(result, code, *words):
    """Rule R: the code, at most five lines, file and cause named, no traceback."""
    assert result.returncode == code, result.stderr
    lines = [
        line for line in result.stderr.splitlines() if line.startswith("error") or not line[:1].isupper()
    ]
    assert len(lines) <= 5, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


def test_fuse_writes_the_photo_and_prints_its_name(fuse, folder):
    result = fuse("a.jpg", "b.jpg", "--scale", "3", "-o", "out.png")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "out.png\n"
    assert "device: CPU" in result.stderr
    assert read_photo(folder / "out.png").size == (288, 216)
    assert sorted(p.name for p in folder.iterdir()) == ["a.jpg", "b.jpg", "out.png"]


def test_twice_the_same_bytes_and_never_silently_overwritten(fuse, folder):
    assert fuse("a.jpg", "b.jpg", "-o", "one.png", "-q").returncode == 0
    again = fuse("a.jpg", "b.jpg", "-o", "two.png", "-q")
    assert (again.returncode, again.stderr) == (0, "")
    first = (folder / "one.png").read_bytes()
    assert first == (folder / "two.png").read_bytes()
    (folder / "one.png").write_bytes(b"precious")
    check_refusal(fuse("a.jpg", "b.jpg", "-o", "one.png"), 1, "one.png", "exist")
    assert (folder / "one.png").read_bytes() == b"precious"
    assert fuse("a.jpg", "b.jpg", "-o", "one.png", "--on-exists", "skip").returncode == 0
    assert (folder / "one.png").read_bytes() == b"precious"
    assert fuse("a.jpg", "b.jpg", "-o", "one.png", "--on-exists", "rename").stdout == "one-2.png\n"
    assert fuse("a.jpg", "b.jpg", "-o", "one.png", "-f").returncode == 0
    assert (folder / "one.png").read_bytes() == first


@pytest.mark.parametrize("existing", ["error", "skip", "rename", "overwrite"])
@pytest.mark.parametrize(("output", "code"), [(".", 2), ("sub", 2), ("sub.tif", 1)])
def test_a_folder_is_no_output_that_exists(fuse, folder, output, code, existing):
    (folder / output).mkdir(exist_ok=True)
    if (output, existing) == ("sub.tif", "rename"):
        assert fuse("a.jpg", "b.jpg", "-o", output, "--on-exists", existing).stdout == "sub-2.tif\n"
        return
    check_refusal(fuse("a.jpg", "b.jpg", "-o", output, "--on-exists", existing), code, "folder")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["map-preview.png", "b.jpg", "-o", "o.png", "--focus-map", "map.png"],
            ["map-preview.png", "inputs"],
        ),
        (["a.jpg", "b.jpg", "-o", "o.png", "--focus-map", "o.png"], ["o.png", "another file"]),
        (["a.jpg", "b.jpg", "-o", "m-preview.png", "--focus-map", "m.png"], ["m-preview.png", "another"]),
        (["001-a.png", "x/b.jpg", "-o", "o.png", "--save-aligned", "al"], []),
        (["a.jpg", "001-a.tif", "-o", "o.png", "--save-aligned", "x"], ["001-a.tif", "inputs"]),
        (["a.jpg", "b.jpg", "-o", "002-b.tif", "--save-aligned", "."], ["002-b.tif", "another file"]),
        (["a.jpg", "b.jpg", "-o", "o.png", "--focus-map", "link.png"], ["link.png", "inputs"]),
    ],
)
def test_no_output_replaces_an_input_or_another_output(quick, folder, arguments, words):
    Path("x").symlink_to(".")
    for name in ("map-preview.png", "001-a.png", "001-a.tif"):
        write_photo(read_photo("a.jpg"), name)
    Path("link.png").symlink_to("b.jpg")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = quick(*arguments, "-s", 1, "-f", "-n")
    assert result.exit_code == (2 if words else 0), result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert ("device" in result.stderr) == (not words), "refused before anything is computed"
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_glob_in_quotes_stands_for_the_photos_as_a_folder_does(quick, folder):
    Path("notes.txt").write_text("sharp")
    Path("sub.jpg").mkdir()
    result = quick("*", "-s", 1, "-n", "-o", "o.png")
    assert result.exit_code == 0, result.stderr
    result = quick("n*", "-s", 1, "-n", "-o", "o.png")  # nothing else matches
    assert result.exit_code == 1
    assert "notes.txt: is not a photo" in result.stderr


def test_registered_photos_go_into_no_folder_that_is_closed(quick, folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    Path("closed").mkdir()
    result = quick("a.jpg", "b.jpg", "-s", 1, "-n", "-o", "o.png", "--save-aligned", "closed/al")
    assert result.exit_code == 1
    assert "closed/al: no permission to write into closed\nchoose another folder" in result.stderr


@pytest.mark.parametrize("place", [".", "x"])
def test_registered_photos_do_not_go_among_the_photos(quick, folder, place):
    Path("x").symlink_to(".")
    result = quick(".", "-s", 1, "-n", "-o", "o.png", "--save-aligned", place)
    assert result.exit_code == 2
    assert f"{place}: photos of the bracket lie there" in result.stderr
    assert "choose another folder" in result.stderr


def test_no_empty_folder_is_left_of_registered_photos_that_cannot_be_written(quick, folder, monkeypatch):
    def full(photo, target, **options):
        raise PhotoError(f"{target}: cannot be written: No space left on device")

    monkeypatch.setattr("mffsr.photo.write_photo", full)
    (folder / "old").mkdir()
    for name in ("new", "old"):
        result = quick("a.jpg", "b.jpg", "-s", 1, "-o", "o.png", "--save-aligned", name)
        assert result.exit_code == 1
        assert "No space left" in result.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["a.jpg", "b.jpg", "old"]


def test_mixed_transparency_is_known_from_the_headers(quick, folder):
    alpha = np.full((72, 96), 255, np.uint8)
    write_photo(Photo(pixels=read_photo("b.jpg").pixels, alpha=alpha), "b.png")
    result = quick("a.jpg", "b.png", "-s", 1, "-n", "--no-align", "-o", "o.png")  # which decodes nothing
    assert result.exit_code == 1
    assert "some photos have transparency, others have none\nexport all alike" in result.stderr


def test_a_second_run_renames_all_that_it_writes(quick, folder):
    everything = [
        "-s",
        1,
        "-o",
        "o.png",
        "--focus-map",
        "m.png",
        "--save-aligned",
        "al",
        "--report",
        "r.html",
    ]
    assert quick("a.jpg", "b.jpg", *everything).exit_code == 0
    first = {p: p.read_bytes() for p in folder.rglob("*.*")}
    assert quick("a.jpg", "b.jpg", *everything).exit_code == 1
    result = quick("a.jpg", "b.jpg", *everything, "--on-exists", "rename")
    assert result.exit_code == 0, result.stderr
    assert {p: p.read_bytes() for p in first} == first
    new = {str(p.relative_to(folder)) for p in folder.rglob("*.*")} - {
        str(p.relative_to(folder)) for p in first
    }
    assert new == {"o-2.png", "m-2.png", "m-2-preview.png", "al/001-a-2.tif", "al/002-b-2.tif", "r-2.html"}
    Path("o-2.png").unlink()
    Path("m-3-preview.png").touch()
    assert quick("a.jpg", "b.jpg", *everything[:6], "--on-exists", "rename").exit_code == 0
    assert Path("o-2.png").exists()
    assert Path("m-4.png").exists()
    assert Path("m-4-preview.png").exists()


def test_a_name_that_is_taken_while_computing_is_not_lost_work(quick, folder, monkeypatch):
    run_job = fuse_command.run_job

    def slow(*arguments, **options):
        (folder / "o.png").write_bytes(b"of another program")
        return run_job(*arguments, **options)

    monkeypatch.setattr(fuse_command, "run_job", slow)
    result = quick("a.jpg", "b.jpg", "-s", 1, "-o", "o.png", "--on-exists", "rename")
    assert (result.exit_code, result.stdout) == (0, "o-2.png\n")
    assert read_photo("o-2.png").size == (96, 72)
    assert (folder / "o.png").read_bytes() == b"of another program"


def test_json_is_all_there_is_on_stdout(fuse, folder):
    result = fuse("a.jpg", "b.jpg", "-o", "out.tif", "--json", "--focus-map", "map.png")
    data = json.loads(result.stdout)
    assert (data["width"], data["height"], data["scale"]) == (192, 144, 2)
    assert sum(frame["share"] for frame in data["frames"]) == pytest.approx(1, abs=1e-5)
    labels = read_photo(folder / "map.png").pixels
    assert labels.dtype == np.uint16
    assert labels.shape == (72, 96, 1)
    assert (labels == 1).mean() == pytest.approx(data["frames"][1]["share"], abs=1e-4)
    assert read_photo(folder / "map-preview.png").pixels.shape == (72, 96, 3)


def test_default_output_lies_beside_the_first_photo(fuse, folder):
    assert fuse("a.jpg", "b.jpg", "-s", "2").stdout == "a-fused-x2.jpg\n"
    assert (folder / "a-fused-x2.jpg").exists()


def test_the_default_output_holds_the_depth_that_is_asked_for(quick, folder):
    assert quick("a.jpg", "b.jpg", "-s", 1, "--depth", "16").stdout == "a-fused-x1.tif\n"
    assert read_photo("a-fused-x1.tif").bit_depth == 16
    assert quick("a-fused-x1.tif", "b.jpg", "-s", 1, "--depth", "8", "-n").exit_code == 0
    deep = Photo(pixels=read_photo("a-fused-x1.tif").pixels)
    for name in ("a.png", "b.png"):
        write_photo(deep, name)
    assert quick("a.png", "b.png", "-s", 1, "--depth", "8", "-q").stdout == "a-fused-x1.png\n"


def test_sides_beyond_what_is_registered_are_refused_by_name(quick, folder):
    for name in ("wide.png", "wide2.png"):
        write_photo(Photo(pixels=np.zeros((16, 33_000, 1), np.uint8)), name)
    result = quick("wide.png", "wide2.png", "-o", "o.tif")
    assert result.exit_code == 1
    assert "wide.png: 33000×16 pixels: photos with a side above 32766 pixels" in result.stderr
    assert "--no-align" in result.stderr


def test_the_disk_is_asked_for_as_much_as_the_picture_may_take(quick, folder, monkeypatch):
    for name in ("a.png", "b.png"):
        write_photo(Photo(pixels=np.zeros((1000, 1000, 1), np.uint16)), name)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_100_000))
    # gray, 16 bits: 2 MB, of which half is little enough to try
    assert quick("a.png", "b.png", "-s", 1, "-o", "o.png", "--no-align", "-n").exit_code == 0
    result = quick("a.png", "b.png", "-s", 2, "-o", "o.png", "--no-align", "-n")
    assert result.exit_code == 1
    assert "about 3 MB are needed, 1 MB are free" in result.stderr
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3_000))
    result = quick("a.jpg", "b.jpg", "-s", 3, "-n")
    assert "about 18 KB are needed, 2 KB are free" in result.stderr


def test_the_disk_that_a_link_leads_to_is_asked(quick, folder, monkeypatch):
    (folder / "large").mkdir()
    (folder / "o.png").symlink_to(folder / "large" / "o.png")
    usage = shutil.disk_usage(folder)
    free = {"large": 1 << 30}
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=free.get(place.name, 0)))
    assert quick("a.jpg", "b.jpg", "-s", 1, "-o", "o.png", "--no-align", "-n").exit_code == 0
    result = quick("a.jpg", "b.jpg", "-s", 1, "-o", "other.png", "--no-align", "-n")
    assert "other.png: No space left" in result.stderr


def test_sixteen_bits_stay_and_jpeg_warns(fuse, folder):
    for name in ("a", "b"):
        photo = read_photo(folder / f"{name}.jpg")
        noisy = photo.pixels.astype(np.uint16) * 257 + np.arange(96, dtype=np.uint16)[None, :, None]
        write_photo(Photo(pixels=np.ascontiguousarray(noisy)), folder / f"{name}.tif")
    assert fuse("a.tif", "b.tif", "-o", "deep.tif").returncode == 0
    deep = read_photo(folder / "deep.tif")
    assert deep.bit_depth == 16
    assert len(np.unique(deep.pixels)) > 256
    result = fuse("a.tif", "b.tif", "-o", "flat.jpg")
    assert result.returncode == 0
    assert "warning: flat.jpg: 16-bit photos, but the format holds 8 bits" in result.stderr
    check_refusal(fuse("a.tif", "b.tif", "-o", "x.jpg", "--depth", "16"), 2, "x.jpg", "8 bits")


def test_dry_run_writes_nothing(fuse, folder):
    result = fuse("a.jpg", "b.jpg", "-o", "out.png", "-n")
    assert result.returncode == 0
    assert "192×144" in result.stdout
    assert not (folder / "out.png").exists()


def test_a_dry_run_tells_of_exposure_unless_it_is_left_alone(quick, folder):
    write_photo(Photo(pixels=(bracket(72, 96)[1] * 0.8).astype(np.uint8)), folder / "c.jpg")

    def told(*options):
        result = quick("a.jpg", "c.jpg", "-s", 1, "-o", "o.png", "-n", "--json", *options)
        return [frame["exposure"] for frame in json.loads(result.stdout)["frames"]]

    assert max(map(abs, told())) > 0.3
    assert told("--no-exposure") == [0, 0]


def test_globs_lists_and_stdin(fuse, folder):
    (folder / "list.txt").write_text("a.jpg\nb.jpg\n")
    for arguments, options in ((["*.jpg"], {}), (["@list.txt"], {}), (["-"], {"input": "a.jpg\nb.jpg\n"})):
        result = fuse(*arguments, "-o", "out.png", "-f", "-n", **options)
        assert result.returncode == 0, result.stderr
        assert "2 photos" in result.stderr


def test_a_folder_stands_for_the_photos_that_lie_in_it(tmp_path):
    for name in ("f10.jpg", "f2.jpg", "f2-fused-x3.jpg", "notes.txt", ".f3.jpg", "deeper/f4.jpg", "f2.nef"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.name for path in expand([str(tmp_path)])] == ["f2.nef", "f10.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotoError, match="no photos"):
        expand([str(tmp_path / "empty")])


def test_the_results_of_last_time_are_no_photos_of_their_folder(quick, folder):
    written = ("-o", "out.png", "--focus-map", "map.png", "-s", 1)
    assert quick("a.jpg", "b.jpg", *written).exit_code == 0
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert set(before) == {"out.png", "map.png", "map-preview.png"}
    again = quick(".", *written, "-f", "--json")
    assert again.exit_code == 0, again.stderr
    assert [Path(frame["path"]).name for frame in json.loads(again.stdout)["frames"]] == ["a.jpg", "b.jpg"]
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == before
    refused = quick(".", "-o", "b.jpg", "-f")  # but a photo stays one
    assert refused.exit_code == 2
    assert "b.jpg: is one of the inputs" in refused.stderr


@pytest.mark.parametrize("photos", [".", "*"])
def test_renamed_results_of_earlier_runs_are_no_photos_of_their_folder(quick, folder, photos):
    shutil.copy("b.jpg", "out-7.jpg")  # a photo, though named as one of them
    written = ("-o", "out.jpg", "--focus-map", "map.png", "-s", 1, "--on-exists", "rename")
    for number in range(3):
        done = quick(photos, *written, "--json")
        assert done.exit_code == 0, done.stderr
        frames = [Path(frame["path"]).name for frame in json.loads(done.stdout)["frames"]]
        assert frames == ["a.jpg", "b.jpg", "out-7.jpg"]
        if number == 1:
            Path("out.jpg").unlink()  # the better one is kept
    assert {path.name for path in folder.glob("m*")} == {
        f"map{n}{kind}.png" for n in ("", "-2", "-3") for kind in ("", "-preview")
    }


def test_a_glob_in_a_folder_whose_name_looks_like_one(tmp_path):
    for place in ("shoot [12]", "shoot 1"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.jpg").touch()
    assert expand([f"{tmp_path}/shoot [12]/*.jpg"]) == [tmp_path / "shoot [12]" / "a.jpg"]
    assert expand([f"{tmp_path}/shoot [1]/*.jpg"]) == [tmp_path / "shoot 1" / "a.jpg"]
    with pytest.raises(PhotoError, match=r"shoot \[12\]/\*\.tif: no photo matches"):
        expand([f"{tmp_path}/shoot [12]/*.tif"])


def test_a_glob_leaves_earlier_results_out_and_a_named_one_is_warned_of(quick, folder):
    for _ in range(2):
        again = quick("*.jpg", "-s", 1, "-f", "--json")
        assert again.exit_code == 0, again.stderr
        assert [frame["path"] for frame in json.loads(again.stdout)["frames"]] == ["a.jpg", "b.jpg"]
        assert "earlier result" not in again.stderr
    shutil.copy("a-fused-x1.jpg", "b-fused-x1.jpg")
    assert expand(["*-fused-x1.jpg"]) == [Path("a-fused-x1.jpg"), Path("b-fused-x1.jpg")]
    named = quick("a.jpg", "a-fused-x1.jpg", "-s", 1, "-o", "out.jpg", "-n")
    assert named.exit_code == 0, named.stderr
    assert "warning: a-fused-x1.jpg: looks like an earlier result" in named.stderr
    (folder / "out.jpg").write_bytes((folder / "a-fused-x1.jpg").read_bytes())
    assert expand(["*.jpg"], [Path("out.jpg")]) == [Path("a.jpg"), Path("b.jpg")]
    unnamed = quick(".", "-s", 1, "-o", "new.jpg", "-n")  # a result, but what it is called does not tell
    assert "warning: out.jpg: is an earlier result" in unnamed.stderr
    assert "a.jpg: is an earlier result" not in unnamed.stderr
    slabs = quick("out.jpg", "b-fused-x1.jpg", "-s", 1, "-o", "new.jpg", "-n")
    assert "is an earlier result" not in slabs.stderr, "results of parts of a bracket are fused in their turn"


@pytest.mark.parametrize("listed", ["@list.txt", "-"])
def test_lists_are_bytes_and_only_line_feeds_end_a_line(tmp_path, monkeypatch, listed):
    names = [b"caf\xe9.jpg", "é.jpg".encode(), "a\u2028b\x0bc.jpg".encode(), b"d e.jpg"]
    content = b"\xef\xbb\xbf" + names[0] + b"\r\n\n" + b"\n".join(names[1:])
    (tmp_path / "list.txt").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "ascii"))
    assert [os.fsencode(path) for path in expand([listed])] == names


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_may_be_what_powershell_writes(tmp_path, encoding):
    (tmp_path / "list.txt").write_bytes("\ufeffa b.jpg\r\né.jpg\r\n".encode(encoding))
    assert expand([f"@{tmp_path / 'list.txt'}"]) == [Path("a b.jpg"), Path("é.jpg")]


def test_a_list_may_be_what_windows_copies_as_paths(tmp_path):
    (tmp_path / "list.txt").write_bytes(b'"a b.jpg"\r\n ""c".jpg" \r\n"\r\nd "e" f.jpg\r\n')
    expected = ["a b.jpg", '"c".jpg', '"', 'd "e" f.jpg']
    assert expand([f"@{tmp_path / 'list.txt'}"]) == [Path(name) for name in expected]
    with pytest.raises(UsageError, match=r"none.txt: the list cannot be read: no such file$"):
        expand([f"@{tmp_path / 'none.txt'}"])


@pytest.mark.parametrize("command", ["fuse", "batch"])
@pytest.mark.parametrize("other", ["skip", "rename"])
def test_force_contradicts_other_answers(command, other):
    result = CliRunner().invoke(app, [command, "a", "-f", "--on-exists", other])
    assert result.exit_code == 2
    assert f"-f and --on-exists {other} contradict each other" in result.stderr


def test_a_name_that_is_piped_out_is_that_of_the_file(monkeypatch):
    name, out = os.fsdecode(b"caf\xe9.jpg"), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "utf-8"))
    Console().result(name)
    assert out.getvalue() == b"caf\xe9.jpg\n"
    Console(as_json=True).result("", {"output": name})
    assert json.loads(out.getvalue().splitlines()[1]) == {"output": name}
    monkeypatch.setattr(sys, "stdout", text := io.StringIO())
    Console().result(name)
    assert text.getvalue() == "caf\\xe9.jpg\n"


def test_what_registration_cannot_tell_is_null_and_a_dash():
    found = Registration(residual=float("inf"))
    assert describe_frame(0, [found], {})["residual"] is None
    lines = _table([found, Registration(residual=12.34)])
    assert lines[1].endswith("  –")
    assert len(set(map(len, lines[1:]))) == 1


@pytest.mark.parametrize("size", ["0", "0G", "0.0001K", "4X", "-1", "9" * 400, "9" * 5000 + "G"])
def test_a_memory_limit_is_more_than_nothing(size):
    with pytest.raises(UsageError, match="expected something like 4G"):
        parse_memory(size)
    assert parse_memory("1.5K") == 1536


@pytest.mark.parametrize("side", ["0", "63", "-64", "6.4", "9" * 5000])
def test_a_tile_is_large_enough_and_a_number(side):
    with pytest.raises(UsageError, match=r"expected (at least 64|auto or a number of) pixels"):
        parse_tile(side)
    assert (parse_tile("64"), parse_tile("auto")) == (64, None)


def test_out_of_memory_says_what_to_make_smaller():
    for error in (MemoryError(), RuntimeError("CUDA out of memory"), RuntimeError("std::bad_alloc")):
        assert "--tile (train: --batch or --patch)" in failure_text(error)


def test_a_plan_of_gray_photos_asks_for_gray_photos_memory(quick, folder):
    def expected(*names):
        photo = np.random.default_rng(0).integers(
            0, 255, (4000, 3000, 1 if "gray" in names[0] else 3), np.uint8
        )
        for name in names:
            write_photo(Photo(pixels=photo), name)
        result = quick(*names, "-n", "--no-align", "--json", "-s", 1, "-o", "o.tif")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["expected"]

    gray, colour = expected("gray1.png", "gray2.png"), expected("c1.png", "c2.png")
    assert gray["memory"] < colour["memory"]
    assert gray["disk"] == 0
    assert colour["disk"] == 2 * 4000 * 3000 * 3


def test_a_plan_counts_alpha_on_disk(quick, folder, monkeypatch):
    monkeypatch.setattr("mffsr.frames.IN_MEMORY", 0)
    for name in ("a.png", "b.png"):
        write_photo(
            Photo(pixels=np.zeros((64, 80, 3), np.uint8), alpha=np.ones((64, 80), np.uint8)), f"alpha-{name}"
        )
    result = quick("alpha-a.png", "alpha-b.png", "-n", "--no-align", "--json", "-s", 1, "-o", "o.tif")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["expected"]["disk"] == 2 * 64 * 80 * 4
    (folder / "in").mkdir()
    for name in ("alpha-a.png", "alpha-b.png"):
        (folder / name).rename(folder / "in" / name)
    result = CliRunner().invoke(app, ["batch", "in", "-n", "--json", "-s", "1"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["brackets"][0]["expected"]["disk"] == 2 * 64 * 80 * 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["a.jpg", "missing.jpg"], 1, ["missing.jpg", "No such file"]),
        (["a.jpg"], 2, ["at least 2"]),
        (["stakc"], 1, ["stakc", "No such file"]),
        (["a.jpg", "a.jpg"], 2, ["a.jpg", "given twice"]),
        (["a.jpg", "small.png"], 1, ["small.png", "40×30", "96×72"]),
        (["a.jpg", "text.jpg"], 1, ["text.jpg"]),
        (["a.jpg", "empty.jpg"], 1, ["empty.jpg"]),
        (["a.jpg", "cut.jpg"], 1, ["cut.jpg"]),
        (["a.jpg", "."], 1, ["."]),
        (["a.jpg", "pipe"], 1, ["pipe"]),
        (["a.jpg", "b.jpg", "-o", "out.xyz"], 2, ["out.xyz", ".png"]),
        (["a.jpg", "b.jpg", "-o", ".."], 2, ["is a folder", "../fused.tif"]),
        (["a.jpg", "b.jpg", "-o", "none/out.png"], 1, ["none"]),
        (["a.jpg", "b.jpg", "-o", "a.jpg", "-f"], 2, ["a.jpg", "inputs"]),
        (["a.jpg", "b.jpg", "-o", "link.jpg", "-f"], 2, ["link.jpg", "inputs"]),
        (["a.jpg", "b.jpg", "-o", "hard.jpg", "-f"], 2, ["hard.jpg", "inputs"]),
        (["a.jpg", "b.jpg", "-o", "out.png", "--device", "cuda:9"], 2, ["cuda:9", "cpu"]),
        (["a.jpg", "b.jpg", "-o", "out.png", "--tile", "big"], 2, ["big"]),
        (["a.jpg", "b.jpg", "-o", "out.png", "--tile", "8"], 2, ["at least 64"]),
        (["a.jpg", "b.jpg", "-o", "out.png", "--max-memory", "1M"], 1, ["memory"]),
        (["a.jpg", "b.jpg", "-o", "out.png", "--weights", "none.safetensors"], 1, ["none.safetensors"]),
        (["*.webp"], 1, ["*.webp", "no photo matches"]),
        (
            ["large.png", "a.jpg", "--max-megapixels", "1"],
            1,
            ["large.png", "1100×1000", "limit is 1 million"],
        ),
        (
            ["just.png", "a.jpg", "--max-megapixels", "1"],
            1,
            ["= 1.001 million pixels; the limit is 1 million"],
        ),
        (["a.jpg", "b.jpg", "--no-align", "--save-aligned", "."], 2, ["--save-aligned", "--no-align"]),
        (["a.jpg", "b.jpg", "--no-align", "--motion", "affine"], 2, ["--motion", "--no-align"]),
        (["a.jpg", "b.jpg", "--no-align", "--on-bad-frame", "drop"], 2, ["--on-bad-frame", "--no-align"]),
        (["@none.txt"], 2, ["none.txt"]),
        (["@blank.txt"], 2, ["no photos given"]),
    ],
)
def test_bad_input_is_refused_by_name_and_nothing_is_written(fuse, folder, arguments, code, words):
    write_photo(Photo(pixels=np.zeros((30, 40, 3), np.uint8)), folder / "small.png")
    write_photo(Photo(pixels=np.zeros((1000, 1100, 3), np.uint8)), folder / "large.png")
    write_photo(Photo(pixels=np.zeros((1000, 1001, 1), np.uint8)), folder / "just.png")
    (folder / "blank.txt").write_text("\n")
    (folder / "text.jpg").write_text("no photo")
    (folder / "empty.jpg").touch()
    (folder / "cut.jpg").write_bytes((folder / "b.jpg").read_bytes()[:900])
    (folder / "link.jpg").symlink_to(folder / "a.jpg")
    os.link(folder / "b.jpg", folder / "hard.jpg")
    os.mkfifo(folder / "pipe")
    before = {p.name: p.lstat().st_mtime_ns for p in folder.iterdir()}
    check_refusal(fuse(*arguments), code, *words)
    assert {p.name: p.lstat().st_mtime_ns for p in folder.iterdir()} == before


def test_too_little_memory_is_told_before_a_photo_is_read(quick, monkeypatch):
    monkeypatch.setattr("mffsr.photo.read_photo", pytest.fail)
    result = quick("a.jpg", "b.jpg", "-o", "out.png", "--max-memory", "1M")
    assert result.exit_code == 1
    assert "1 MB of memory do not suffice" in result.stderr


def test_every_motion_is_offered():
    assert [motion.value for motion in Motion] == list(MOTIONS)


@pytest.mark.parametrize("scale", ["0", "5", "x"])
def test_other_scales_are_usage_errors(fuse, scale):
    assert fuse("a.jpg", "b.jpg", "--scale", scale).returncode == 2


@pytest.mark.parametrize(
    "name", ["[/red].jpg", "-dash.jpg", "two\nlines.jpg", "a b.jpg", "%s.jpg", "é́.jpg", "\x1b[31m.jpg"]
)
def test_odd_names(fuse, folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "b.jpg").rename(folder / name)
    result = fuse("a.jpg", "-o", "out.png", "-s", "1", "--", name)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stderr
    assert (folder / "out.png").exists()


def test_a_closed_pipe_does_not_matter(fuse, folder, tiny_weights):
    line = f"{sys.executable} -m mffsr fuse a.jpg b.jpg -s 1 -o out.png --weights {tiny_weights}"
    command = f"{line} | head -c 0; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=ENV, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert (folder / "out.png").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_cleanly(folder, tiny_weights, number, code):
    command = [
        sys.executable,
        "-m",
        "mffsr",
        "fuse",
        "a.jpg",
        "b.jpg",
        "-o",
        "out.png",
        "--weights",
        str(tiny_weights),
    ]
    process = subprocess.Popen(command, cwd=folder, env=ENV, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    process.stderr.readline()  # it is at work
    time.sleep(0.3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (code, 0), errors  # 0: it was faster
    assert "Traceback" not in errors
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


HUNG_UP = """
import sys, time, typer
from mffsr.cli.console import Console, exit_codes
from mffsr.photo import atomic_output

try:
    with exit_codes(Console()), atomic_output(sys.argv[1]) as stream:
        stream.write(b"half")
        print("at work", flush=True)
        time.sleep({seconds})
except typer.Exit as left:
    sys.exit(left.exit_code)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_closed_terminal_leaves_nothing_behind(tmp_path):
    for ignored in (False, True):  # as nohup does
        command = [sys.executable, "-c", HUNG_UP.format(seconds=0.5 if ignored else 20), tmp_path / "out"]
        handler = signal.SIG_IGN if ignored else signal.SIG_DFL
        before = signal.signal(signal.SIGHUP, handler)  # which the process inherits
        try:
            process = subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        finally:
            signal.signal(signal.SIGHUP, before)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=20)
        assert process.returncode == (0 if ignored else 143)
        assert os.listdir(tmp_path) == (["out"] if ignored else [])


UNHEARD = """
import signal, time
from mffsr.cli.console import Console, exit_codes

class Deaf:
    def __del__(self):
        signal.raise_signal(signal.{name})
        time.sleep(0)

with exit_codes(Console()):
    Deaf()  # Python writes an exception out of __del__ to stderr, and goes on
    for _ in range(1000):
        time.sleep(0.01)
"""


@pytest.mark.parametrize(("name", "told"), [("SIGINT", "interrupted"), ("SIGTERM", "terminated")])
def test_a_signal_that_falls_into_a_destructor_is_heard(name, told):
    command = [sys.executable, "-c", UNHEARD.format(name=name)]
    result = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=20, check=False)
    assert f"error: {told}; nothing unfinished was left behind" in result.stderr
    assert "ignored" not in result.stderr


LATE = """
import atexit, signal, sys
from mffsr.__main__ import main

atexit.register(signal.raise_signal, signal.{name})
sys.argv = ["mffsr", "batch"]
main()
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_after_a_command_ends_the_process_without_a_word(name):
    command = [sys.executable, "-c", LATE.format(name=name)]
    result = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode == -getattr(signal, name)  # as a shell tells it: 130 or 143
    assert "expected a FOLDER" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_command_leaves_signal_handlers_as_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, *terminating())]
    assert CliRunner().invoke(app, ["batch"]).exit_code == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, *terminating())] == before


def test_training_writes_no_file_among_the_photographs(tmp_path):
    for arguments in (["--data", tmp_path], ["--data", "elsewhere", "--val", tmp_path]):
        given = ["train", "srn", *map(str, arguments), "--out", f"{tmp_path}/.", "--preview", "1"]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 2
        assert "choose another --out" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_does_not_stop_a_training(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def refuse(error):
        def flock(*_):
            raise error

        monkeypatch.setattr(fcntl, "flock", flock)

    refuse(OSError(errno.ENOLCK, "No locks available"))
    with _lock(tmp_path):
        pass
    refuse(BlockingIOError())
    with pytest.raises(TrainingError, match="another training"), _lock(tmp_path):
        pass


def test_odd_environments_change_no_pixel(fuse, folder):
    plain = ENV | {"OMP_NUM_THREADS": "1"}
    assert fuse("a.jpg", "b.jpg", "-o", "one.png").returncode == 0
    odd = {k: v for k, v in plain.items() if k != "HOME"} | {
        "LANG": "C",
        "LC_ALL": "C",
        "TERM": "dumb",
        "COLUMNS": "20",
    }
    assert fuse("a.jpg", "b.jpg", "-o", "two.png", env=odd).returncode == 0
    assert (folder / "one.png").read_bytes() == (folder / "two.png").read_bytes()


def test_version_help_and_doctor():
    assert re.fullmatch(r"mffsr \d+\.\d+\.\d+\n", mffsr("--version").stdout)
    assert "--scale" in mffsr("fuse", "--help").stdout
    assert mffsr("nonsense").returncode == 2
    result = mffsr("doctor", "--json")
    data = json.loads(result.stdout)
    assert data["chosen"]["ok"]
    assert data["AVIF"]["found"] in ("yes", "no")
    assert data["AVIF"]["ok"] or "pillow" in data["AVIF"]["fix"]
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("arguments", [["--version"], ["fuse", "--version"], ["batch", "a", "--version"]])
def test_the_version_is_told_by_the_main_commands_too(arguments):
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (0, f"mffsr {__version__}\n")


def test_doctor_misses_bundled_weights(tmp_path, monkeypatch):
    bundled = shutil.copytree(weights_folder(), tmp_path / "weights")
    monkeypatch.setattr("mffsr.checkpoint.weights_folder", lambda: bundled)
    for name in ("fapn.safetensors", "photo-x3.safetensors"):
        (bundled / name).unlink()
    result = CliRunner().invoke(app, ["doctor", "--json"])
    data = json.loads(result.stdout)
    assert result.exit_code == 1
    wrong = {name for name, finding in data.items() if not finding["ok"]}
    assert wrong == {"fapn.safetensors", "photo-x3.safetensors"}
    assert data["fapn.safetensors"]["found"] == f"{bundled / 'fapn.safetensors'}: no such weight file"
    assert data["fapn.safetensors"]["fix"] == "install mffsr again"
    (bundled / "manifest.json").unlink()
    data = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert not data["manifest.json"]["ok"]


def test_a_device_that_does_not_answer_is_a_finding_of_doctor(monkeypatch):
    def silent(device):
        raise DeviceError(f"{device}: no answer\nmore")

    monkeypatch.setattr("mffsr.device.available_memory", silent)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert "no answer" in data["chosen"]["found"]
    assert not data["chosen"]["ok"]
    assert data["fapn.safetensors"]["ok"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["fuse", "--help"]])
def test_a_full_disk_is_told_even_by_help(arguments):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mffsr", *arguments]
        result = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, env=ENV, text=True, timeout=60, check=False
        )
    assert (result.returncode, result.stderr) == (1, "error: No space left on device\n")


def test_help_does_not_import_torch():
    code = "import sys; import mffsr.cli.app; sys.exit('torch' in sys.modules or 'cv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=ENV).returncode == 0


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("command", ["", "fuse", "batch", "train", "eval", "doctor"])
def test_help_fits_the_terminal_and_tells_all(command, columns):
    shown = mffsr(*command.split(), "--help", env=ENV | {"COLUMNS": str(columns)}).stdout
    assert "Usage:" in shown
    assert max(map(len, shown.splitlines())) <= columns
    if command in ("fuse", "batch"):
        told = " ".join(shown.split())
        assert "[what is free]" in told, "no markup: brackets are shown"
        assert "[default: photo]" in told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mffsr ", {"fuse", "batch", "train", "eval", "doctor"}),
        ("mffsr fuse --on", {"--on-bad-frame", "--on-exists"}),
        ("mffsr fuse --on-exists ", {"error", "skip", "rename", "overwrite"}),
    ],
)
def test_the_shell_completes(words, expected):
    env = ENV | {
        "_MFFSR_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    command = [sys.executable, "-c", "from mffsr.cli.app import app; app(prog_name='mffsr')"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert set(result.stdout.split()) == expected, result.stderr
