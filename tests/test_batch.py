"""Many brackets: nothing is lost, done twice, overwritten or left half done."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from conftest import bracket
from typer.testing import CliRunner

from mffsr.batch import Claims, run_batch
from mffsr.batch_plan import read_plan
from mffsr.batch_record import FOLDER, Records, State, key_of
from mffsr.cli.app import app
from mffsr.cli.batch import batch as batch_command
from mffsr.cli.fuse import fuse as fuse_command
from mffsr.errors import BracketError, PhotoError, UsageError
from mffsr.photo import Photo, atomic_output, read_photo, write_photo
from mffsr.photo.brackets import Bracket
from mffsr.photo.content import Content, content, unchanged

ENV = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def write_brackets(folder: Path, count: int, size=(64, 80)) -> Path:
    for number in range(1, count + 1):
        near, far, _, _ = bracket(*size, seed=number)
        (folder / f"b{number}").mkdir(parents=True)
        write_photo(Photo(pixels=near, dpi=(300, 300)), folder / f"b{number}" / "p1.jpg")
        write_photo(Photo(pixels=far), folder / f"b{number}" / "p2.jpg")
    return folder


@pytest.fixture(scope="module")
def brackets(tmp_path_factory) -> Path:
    return write_brackets(tmp_path_factory.mktemp("brackets") / "in", 3)


@pytest.fixture
def copied(brackets, tmp_path) -> Path:
    return Path(shutil.copytree(brackets, tmp_path / "in"))


@pytest.fixture
def mffsr(tiny_weights):
    def run(*arguments, weights=tiny_weights):
        extra = ["--weights", str(weights)] if arguments[0] in ("fuse", "batch") else []
        result = CliRunner().invoke(app, [*map(str, arguments), *extra])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def events(result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def outcome(result) -> list[tuple[str, str]]:
    return [(e["event"], e["bracket"]) for e in events(result) if e["event"] not in ("start", "summary")]


def outputs(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.suffix == ".jpg"}


def leftovers(folder: Path) -> list[Path]:
    return [p for p in folder.rglob(".mffsr-*") if p.suffix == ".tmp"]


def test_batch_and_fuse_give_the_same_file(mffsr, brackets, tmp_path):
    result = mffsr("batch", brackets, "-o", tmp_path / "out", "-s", 3, "--focus-map", "{bracket}_map.png")
    assert result.exit_code == 0, result.stderr
    assert "3 done, 0 failed" in result.stderr
    assert result.stdout.splitlines() == [str(tmp_path / "out" / f"b{n}_x3.jpg") for n in (1, 2, 3)]
    for number in (1, 2, 3):
        photos = [brackets / f"b{number}" / name for name in ("p1.jpg", "p2.jpg")]
        single = tmp_path / f"{number}.jpg"
        plain = ["-o", single, "-s", 3, "--focus-map", tmp_path / f"{number}.png"]
        assert mffsr("fuse", *photos, *plain).exit_code == 0
        assert single.read_bytes() == (tmp_path / "out" / f"b{number}_x3.jpg").read_bytes()
        for end in (".png", "-preview.png"):
            written = tmp_path / "out" / f"b{number}_map{end}"
            assert written.read_bytes() == (tmp_path / f"{number}{end}").read_bytes()


def test_the_options_of_fuse_mean_the_same_here():
    own, other = (inspect.signature(f).parameters for f in (batch_command, fuse_command))
    assert not set(other) - set(own) - {"photos", "save_aligned"}
    for name in set(own) & set(other) - {"output", "focus_map", "dry_run", "as_json"}:
        assert own[name].default == other[name].default, name
        assert own[name].annotation == other[name].annotation, name


def test_a_broken_bracket_does_not_stop_the_others(mffsr, copied, tmp_path):
    (copied / "b2" / "p2.jpg").write_bytes((copied / "b2" / "p2.jpg").read_bytes()[:900])
    (copied / "b4").mkdir()
    small = Photo(pixels=np.zeros((30, 40, 3), np.uint8))
    write_photo(small, copied / "b4" / "a.jpg")
    shutil.copy(copied / "b1" / "p1.jpg", copied / "b4" / "b.jpg")
    result = mffsr("batch", copied, "-o", tmp_path / "out", "-s", 2, "--json")
    assert result.exit_code == 1
    told = events(result)
    assert [e["event"] for e in told] == [
        "start",
        "done",
        "start",
        "failed",
        "start",
        "done",
        "start",
        "failed",
        "summary",
    ]
    assert outcome(result)[1] == ("failed", "b2")
    assert "p2.jpg" in told[3]["cause"]
    assert "40×30" in told[7]["cause"]
    assert (told[-1]["done"], told[-1]["failed"], told[-1]["skipped"]) == (2, 2, 0)
    assert [f["bracket"] for f in told[-1]["failures"]] == ["b2", "b4"]
    assert "2 done, 2 failed:" in result.stderr
    assert sorted(outputs(tmp_path / "out")) == ["b1_x2.jpg", "b3_x2.jpg"]
    quiet = mffsr("batch", copied, "-o", tmp_path / "out2", "-s", 1, "-q", "--group", "folder")
    assert quiet.exit_code == 1
    assert quiet.stderr.startswith("2 done, 2 failed:")


def test_a_batch_warns_of_what_is_sharp_in_no_photo(mffsr, tmp_path):
    (tmp_path / "in" / "plain").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        write_photo(Photo(pixels=np.full((64, 80, 3), 99, np.uint8)), tmp_path / "in" / "plain" / name)
    result = mffsr("batch", tmp_path / "in", "-o", tmp_path / "out", "-s", 1, "--no-align", "--json")
    assert result.exit_code == 0, result.stderr
    warning = "100.0% of the picture is plain, or equally sharp in all photos"
    assert events(result)[1]["warnings"] == [warning]
    assert f"warning: plain: {warning}" in result.stderr


def test_one_failure_is_named_in_one_line(mffsr, copied, tmp_path):
    (copied / "b2" / "p2.jpg").write_bytes(b"no photo")
    result = mffsr("batch", copied, "-o", tmp_path / "out", "-s", 1)
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"2 done, 1 failed: b2: {copied / 'b2' / 'p2.jpg'}: ")


def test_no_brackets_is_a_usage_error(mffsr, tmp_path):
    (tmp_path / "in").mkdir()
    result = mffsr("batch", tmp_path / "in", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "no brackets" in result.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "in" / "b1").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "in" / "b1" / name).touch()
    result = mffsr("batch", tmp_path / "in", "-o", tmp_path / "out", "--group", "none")
    assert result.exit_code == 2
    assert (
        "--group none takes the photos that lie in the folder itself, but fewer than two do" in result.stderr
    )
    assert mffsr("batch").exit_code == 2
    assert mffsr("batch", tmp_path / "none").exit_code == 2


@pytest.mark.parametrize(
    ("option", "value", "word"),
    [
        ("--tile", "10", "tile is 10, expected at least 64 pixels"),
        ("--tile", "foo", "tile foo"),
        ("--max-memory", "much", "max-memory much"),
        ("--precision", "fp8", "precision fp8"),
        ("--device", "cuda:99", "device cuda:99"),
        ("--template", "{x}", "--template {x}"),
        ("--focus-map", "{x}.png", "--focus-map {x}.png"),
        ("--focus-map", "{bracket}.jpg", "is a PNG file"),
    ],
)
@pytest.mark.parametrize("only", [[], ["-n"]])
def test_options_are_checked_before_the_folder_is_read(mffsr, brackets, tmp_path, option, value, word, only):
    result = mffsr("batch", brackets, "-o", tmp_path / "out", option, value, *only)
    assert result.exit_code == 2, result.stderr
    assert word in result.stderr
    assert "looking for brackets" not in result.stderr
    assert not result.stdout


def test_weights_are_looked_for_before_the_folder_is_read(mffsr, brackets, tmp_path):
    result = mffsr("batch", brackets, "-n", weights=tmp_path / "none.safetensors")
    assert result.exit_code == 1
    assert "none.safetensors: no such weight file" in result.stderr
    assert "looking for brackets" not in result.stderr


def test_a_map_of_all_brackets_is_refused_by_its_own_name(mffsr, brackets, tmp_path):
    result = mffsr("batch", brackets, "-o", tmp_path / "out", "--focus-map", "m.png")
    assert result.exit_code == 2
    assert "--focus-map m.png: without {bracket}" in result.stderr


def test_an_output_folder_whose_disk_is_not_there(mffsr, brackets, tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "unmounted" / "out")
    for out in (tmp_path / "out", tmp_path / "out" / "day"):
        result = mffsr("batch", brackets, "-o", out)
        assert result.exit_code == 1
        why = f"{tmp_path / 'out'} is a link, but {tmp_path / 'unmounted' / 'out'} is not there"
        assert f"{out}: cannot be written into: {why}" in result.stderr
        assert "looking for" not in result.stderr


def test_a_template_without_an_extension_is_refused_at_once(mffsr, brackets, tmp_path):
    result = mffsr("batch", brackets, "-o", tmp_path / "out", "--template", "{bracket}")
    assert result.exit_code == 2
    assert "--template {bracket}: b1: unknown output format (no extension); use one of " in result.stderr
    assert "let it end with {ext}" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_dry_run_tells_what_each_bracket_takes(mffsr, copied, tmp_path):
    write_photo(Photo(pixels=np.zeros((30, 40, 3), np.uint8)), copied / "b2" / "p3.jpg")
    result = mffsr("batch", copied, "-o", tmp_path / "out", "-n", "-s", 3, "--tile", 64)
    assert result.exit_code == 0, result.stderr
    name = tmp_path / "out" / "b1_x3.jpg"
    assert f"# 2 photos of 80×64 → {name}, 240×192; tiles of 64 and 64 pixels, " in result.stdout
    assert "# cannot be fused: " in result.stdout
    assert "warning: b2: " in result.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "plan.toml").write_text(result.stdout)
    assert [b.name for b in read_plan(tmp_path / "plan.toml")] == ["b1", "b2", "b3"]
    told = events(mffsr("batch", copied, "-o", tmp_path / "out", "-n", "-s", 3, "--json"))[0]
    assert told["device"] in ("cpu", "mps", "cuda:0")
    one, two, _ = told["brackets"]
    assert (one["width"], one["height"], one["depth"], one["output"]) == (240, 192, 8, str(name))
    assert one["expected"]["memory"] > 100 << 20
    assert "30" in two["fault"]
    remote = events(mffsr("batch", copied, "-n", "--cluster", "tcp://127.0.0.1:9", "--json"))[0]
    assert remote["brackets"][0]["width"] == 160
    assert "expected" not in remote["brackets"][0]


def test_a_dry_run_tells_of_names_that_cannot_be_written(mffsr, copied, tmp_path):
    long = "l" * 250  # with _x2.jpg longer than 255
    (copied / "b1").rename(copied / long)
    (tmp_path / "out").mkdir()
    arguments = ["batch", copied, "-o", tmp_path / "out", "-n"]
    result = mffsr(*arguments)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("# cannot be fused: ") == 1
    assert result.stdout.count("# 2 photos of") == 2
    if sys.platform == "linux":  # elsewhere names are Unicode
        os.rename(copied / "b2", os.fsencode(copied / "b") + b"\xff")
        assert mffsr(*arguments).exit_code == 2
        told = events(mffsr(*arguments, "--json"))[0]["brackets"]
        assert [one["bracket"] for one in told if "fault" in one] == [long]


def test_a_plan_is_written_edited_and_followed(mffsr, copied, tmp_path):
    plan = tmp_path / "plan.toml"
    assert mffsr("batch", copied, "-n").stdout.count("[[bracket]]") == 3
    result = mffsr("batch", copied, "-n", "--plan", plan)
    assert (result.exit_code, result.stdout) == (0, f"{plan}\n")
    assert mffsr("batch", copied, "-n", "--plan", plan).exit_code == 1  # it exists
    assert sorted(os.listdir(tmp_path)) == ["in", "plan.toml"]
    text = (
        plan.read_text()
        .replace('name = "b1"', 'name = "day/one"')
        .replace('name = "b2"', 'output = "two.png"\nname = "x"')
    )
    plan.write_text(text[: text.rindex("[[bracket]]")])
    assert mffsr("batch", "--plan", plan).exit_code == 2  # where to?
    result = mffsr(
        "batch", "--plan", plan, "-o", tmp_path / "out", "-s", 1, "--template", "{scale}-{bracket}{ext}"
    )
    assert result.exit_code == 0, result.stderr
    written = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*g"))
    assert written == ["1-day/one.jpg", "two.png"]
    assert json.loads(mffsr("batch", "--plan", plan, "-n", "--json", "-o", "x").stdout)["event"] == "plan"


def test_a_plan_replaces_no_photo(mffsr, copied):
    before = outputs(copied)
    result = mffsr("batch", copied, "-n", "--plan", copied / "b1" / "p1.jpg", "-f")
    assert result.exit_code == 2
    assert "is one of the inputs" in result.stderr
    assert outputs(copied) == before


def test_a_malicious_plan_writes_nothing_anywhere(mffsr, copied, tmp_path):
    for name in ("../evil", "/tmp/evil"):
        (tmp_path / "plan.toml").write_text(
            f'[[bracket]]\nname = "{name}"\nphotos = ["in/b1/p1.jpg", "in/b1/p2.jpg"]\n'
        )
        before = sorted(tmp_path.rglob("*"))
        assert mffsr("batch", "--plan", tmp_path / "plan.toml", "-o", tmp_path / "out").exit_code == 2
        assert sorted(tmp_path.rglob("*")) == before
    assert mffsr("batch", copied, "-o", tmp_path / "out", "--template", "../{bracket}{ext}").exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_resume_does_what_is_missing_or_different_and_no_more(mffsr, copied, tmp_path, tiny_weights):
    out = tmp_path / "out"
    arguments = ["batch", copied, "-o", out, "-s", 2, "--json"]
    assert mffsr(*arguments).exit_code == 0
    first = outputs(out)
    (out / "b2_x2.jpg").unlink()
    result = mffsr(*arguments, "--resume")
    assert outcome(result) == [("skipped", "b1"), ("done", "b2"), ("skipped", "b3")]
    assert result.exit_code == 0
    assert outputs(out) == first
    again = mffsr(*arguments)
    assert again.exit_code == 1  # without --resume they are in the way
    assert "b1_x2.jpg: exists already\nchoose another name, or replace it: -f;" in events(again)[1]["cause"]
    assert outputs(out) == first

    (out / "b1_x2.jpg").write_bytes(first["b1_x2.jpg"] + b"edited")
    shutil.copy(copied / "b1" / "p2.jpg", copied / "b3" / "p2.jpg")
    shutil.copy(copied / "b1" / "p1.jpg", copied / "b3" / "p1.jpg")
    result = mffsr(*arguments, "--resume")
    assert outcome(result) == [("failed", "b1"), ("skipped", "b2"), ("failed", "b3")]
    assert (out / "b1_x2.jpg").read_bytes().endswith(b"edited")
    for number in (1, 5):
        cause = f"{events(result)[number]['cause']}"
        assert (
            "made before with other options, photos or weights, or changed since\n-f makes it anew" in cause
        )
    result = mffsr(*arguments, "--resume", "-f")
    assert outcome(result) == [("done", "b1"), ("skipped", "b2"), ("done", "b3")]
    assert read_photo(out / "b1_x2.jpg").pixels.tobytes() == read_photo(out / "b3_x2.jpg").pixels.tobytes()
    result = mffsr(*arguments, "--resume", "-f", "--quality", "90")
    assert outcome(result) == [("done", "b1"), ("done", "b2"), ("done", "b3")]
    result = mffsr(*arguments, "--on-exists", "skip")
    assert outcome(result) == [("skipped", "b1"), ("skipped", "b2"), ("skipped", "b3")]


def test_resume_after_kill_gives_the_same_bytes(mffsr, brackets, tmp_path, tiny_weights):
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "mffsr", "batch", str(brackets), "-o", str(out), "-s", "2"]
    process = subprocess.Popen([*command, "--weights", str(tiny_weights)], env=ENV, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not (out / "b1_x2.jpg").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    done = set(outputs(out))
    assert "b1_x2.jpg" in done
    result = mffsr("batch", brackets, "-o", out, "-s", 2, "--resume", "--json")
    assert result.exit_code == 0, result.stderr
    assert {f"{name}_x2.jpg" for event, name in outcome(result) if event == "skipped"} == done
    assert mffsr("batch", brackets, "-o", whole, "-s", 2).exit_code == 0
    assert outputs(out) == outputs(whole)


def test_interrupted_between_two_brackets(brackets, tmp_path, tiny_weights):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mffsr", "batch", str(brackets), "-o", str(out), "-s", "4"]
    process = subprocess.Popen(
        [*command, "--weights", str(tiny_weights)], env=ENV, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 120
    while not (out / "b1_x4.jpg").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, 0), errors  # 0: it was faster
    assert "Traceback" not in errors
    assert "done, 0 failed" in errors
    assert not leftovers(out)
    assert read_photo(out / "b1_x4.jpg").size == (320, 256)


def test_links_in_the_input_and_outputs_inside_it(mffsr, copied):
    (copied / "loop").symlink_to(".")
    arguments = ["batch", copied, "-o", copied / "out", "-s", 1, "--json"]
    assert len(outcome(mffsr(*arguments))) == 3
    assert len(outcome(mffsr(*arguments, "--resume"))) == 3
    here = ["batch", copied, "-o", copied, "-s", 1, "--json"]
    assert len(outcome(mffsr(*here))) == 3
    again = mffsr(*here, "--resume")
    assert [event for event, _ in outcome(again)][:3] == ["skipped"] * 3


def test_results_of_an_earlier_batch_are_no_bracket_wherever_they_lie(mffsr, copied, tmp_path):
    names = ["--template", "{bracket}/{scale}{ext}", "--focus-map", "{bracket}/map.png"]
    assert mffsr("batch", copied, "-o", copied / "b1" / "fused", "-s", 1, *names).exit_code == 0
    result = mffsr("batch", copied, "-o", tmp_path / "out", "-s", 1, "-n", "--json")
    assert [bracket["bracket"] for bracket in events(result)[0]["brackets"]] == ["b1", "b2", "b3"]
    shutil.copy(copied / "b2" / "p1.jpg", copied / "b1" / "fused")
    shutil.copy(copied / "b2" / "p2.jpg", copied / "b1" / "fused")
    result = mffsr("batch", copied, "-o", tmp_path / "out", "-s", 1, "-n", "--json")
    brackets = [bracket["bracket"] for bracket in events(result)[0]["brackets"]]
    assert brackets == ["b1", "b1/fused", "b2", "b3"]  # photos that lie there too are photos


def test_renamed_results_of_all_earlier_batches_are_no_photos(mffsr, tmp_path):
    one = write_brackets(tmp_path / "in", 1)
    shutil.copytree(one / "b1", one / "b2")  # their results are alike: photos such as these were a bracket
    here = ["batch", one, "-o", one, "-s", 1, "--on-exists", "rename", "--json"]
    for _ in range(3):
        assert outcome(mffsr(*here)) == [("done", "b1"), ("done", "b2")]


def test_inputs_are_never_overwritten(mffsr, copied):
    before = outputs(copied)
    result = mffsr("batch", copied, "-o", copied, "-s", 1, "-f", "--template", "{bracket}/p1{ext}")
    assert result.exit_code == 1
    assert "is one of the inputs" in result.stderr
    assert outputs(copied) == before


def test_a_map_does_not_replace_the_photo_and_is_renamed_like_it(mffsr, copied, tmp_path):
    arguments = ["batch", copied / "b1", "--group", "none", "-o", tmp_path / "out", "-s", 1]
    clash = mffsr(*arguments, "--template", "x.png", "--focus-map", "x.png", "-f")
    assert clash.exit_code == 1
    assert "is another file of this command" in clash.stderr
    assert not list((tmp_path / "out").glob("*.png"))
    named = [*arguments, "--template", "o.png", "--focus-map", "m.png", "--on-exists", "rename"]
    for _ in range(2):
        assert mffsr(*named).exit_code == 0
    found = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert found == ["m-2-preview.png", "m-2.png", "m-preview.png", "m.png", "o-2.png", "o.png"]


def test_a_depth_that_is_asked_for_chooses_the_format(mffsr, copied, tmp_path):
    result = mffsr("batch", copied / "b1", "--group", "none", "-o", tmp_path, "-s", 1, "--depth", 16)
    assert result.exit_code == 0, result.stderr
    assert read_photo(tmp_path / "b1_x1.tif").bit_depth == 16


def test_beside_the_root_there_is_nothing(mffsr):
    result = mffsr("batch", "/", "--group", "none")
    assert result.exit_code == 2
    assert "expected -o OUT" in result.stderr


def test_the_input_may_be_read_only(mffsr, copied, tmp_path):
    def change(mode_folder, mode_file):
        for path in [copied, *copied.rglob("*")]:
            path.chmod(mode_folder if path.is_dir() else mode_file)

    before = {p: p.stat().st_mtime_ns for p in copied.rglob("*")}
    change(0o555, 0o444)
    try:
        assert mffsr("batch", copied, "-o", tmp_path / "out", "-s", 1).exit_code == 0
    finally:
        change(0o755, 0o644)
    assert {p: p.stat().st_mtime_ns for p in copied.rglob("*")} == before


class Copier:
    """A worker without a network: the output is the first photo."""

    max_pixels = 1_000_000

    def __init__(self, out: Path) -> None:
        self.out = out
        self.read_by: list[str] = []

    def target(self, bracket):
        return self.out / f"{bracket.name}.jpg"

    def complete(self, output):
        return True

    def compute(self, bracket, target, read, *, begun):
        for photo in bracket.photos:
            read(photo)
        return target, Path(bracket.photos[0]).read_bytes(), bool(begun)

    def files(self, result):
        return [result[0]]

    def write(self, result):
        with atomic_output(result[0], overwrite=result[2]) as stream:
            stream.write(result[1])
        return {"output": str(result[0])}


@pytest.fixture
def copier(tmp_path) -> Copier:
    (tmp_path / "out").mkdir()
    return Copier(tmp_path / "out")


def run(folder: Path, worker: Copier, **options):
    brackets = [
        Bracket(name=f.name, photos=sorted(f.glob("*.jpg"))) for f in sorted(folder.iterdir()) if f.is_dir()
    ]
    ended: list = []
    run_batch(brackets, worker, out=worker.out, options={"a": 1}, ended=ended.append, **options)
    return [(o.event, o.bracket.name, str(o.error or o.reason)) for o in ended]


@pytest.mark.parametrize("ahead", [0, 1 << 20])
def test_photos_of_more_pixels_than_allowed(brackets, copier, ahead):
    copier.max_pixels = 100
    told = run(brackets, copier, ahead=ahead)
    assert [event for event, _, _ in told] == ["failed"] * len(told)
    assert all("the limit is" in text for _, _, text in told)


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(28, "No space left on device"), BracketError("no"), ZeroDivisionError()]
)
@pytest.mark.parametrize("step", ["target", "compute", "files", "write"])
def test_whatever_fails_in_one_bracket(brackets, copier, monkeypatch, step, error):
    plain = getattr(copier, step)

    def fail(first, *rest, **options):
        if (first.name if isinstance(first, Bracket) else first[0].stem) == "b2":
            raise error
        return plain(first, *rest, **options)

    monkeypatch.setattr(copier, step, fail)
    assert [event for event, _, _ in run(brackets, copier)] == ["done", "failed", "done"]
    assert not leftovers(copier.out)
    assert not list((copier.out / FOLDER).glob("*.begun.json"))


@pytest.mark.parametrize(
    "error", [PhotoError("no"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_what_could_not_be_read_ahead_is_read_again(brackets, copier, monkeypatch, error):
    main = threading.get_ident()

    def fail_ahead(path, **options):
        if threading.get_ident() != main:
            raise error
        return read_photo(path, **options)

    monkeypatch.setattr("mffsr.batch.read_photo", fail_ahead)
    assert [event for event, _, _ in run(brackets, copier, ahead=1 << 30)] == ["done"] * 3


def test_one_bracket_is_decoded_ahead_within_its_allowance(brackets, copier, monkeypatch):
    main, seen = threading.get_ident(), []

    def watch(path, **options):
        seen.append((threading.get_ident() == main, path.parent.name))
        return read_photo(path, **options)

    monkeypatch.setattr("mffsr.batch.read_photo", watch)
    run(brackets, copier, ahead=1 << 30)
    assert [where for where, _ in seen] == [False] * 6
    assert threading.active_count() < 4
    seen.clear()
    shutil.rmtree(copier.out)
    copier.out.mkdir()
    run(brackets, copier, ahead=64 * 80 * 3)
    assert sorted(seen) == sorted((here, f"b{n}") for n in (1, 2, 3) for here in (False, True))


@pytest.mark.parametrize("refuses", [False, True])
def test_an_output_that_appears_meanwhile(brackets, copier, monkeypatch, refuses):
    plain = copier.compute

    def meanwhile(bracket, target, read, *, begun):
        if bracket.name == "b2":
            target.write_bytes(b"another's")
        if bracket.name == "b3":
            assert run(brackets, Copier(copier.out), resume=True)[2][0] == "done"
            if refuses:
                raise PhotoError("exists already")
        return plain(bracket, target, read, begun=begun)

    monkeypatch.setattr(copier, "compute", meanwhile)
    monkeypatch.setattr("mffsr.batch.PATIENCE", 0.1)
    one, two, three = run(brackets, copier)
    assert one[0] == "done"
    assert two[0] == "failed"
    assert "appeared while" in two[2], two
    assert (copier.out / "b2.jpg").read_bytes() == b"another's"
    assert three == ("skipped", "b3", "another process finished it meanwhile")


def test_killed_between_output_and_record(brackets, copier, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mffsr.batch_record.Records.finish", die)
        with pytest.raises(KeyboardInterrupt):
            run(brackets, copier)
    assert (copier.out / "b1.jpg").exists()
    assert [event for event, _, _ in run(brackets, copier, resume=True)] == ["skipped", "done", "done"]


def test_a_photo_that_changes_while_it_is_read_leaves_no_record(brackets, copier, copied, monkeypatch):
    plain, warnings = copier.compute, []

    def change(bracket, *rest, **options):
        result = plain(bracket, *rest, **options)
        if bracket.name == "b2":
            shutil.copy(copied / "b1" / "p1.jpg", copied / "b2" / "p1.jpg")
        return result

    monkeypatch.setattr(copier, "compute", change)
    run(copied, copier, warn=warnings.append)
    assert len(warnings) == 1
    assert "p1.jpg: was changed" in warnings[0]
    assert [event for event, _, _ in run(copied, copier, resume=True)] == ["skipped", "failed", "skipped"]


def test_the_same_photo_put_there_again_is_unchanged(tmp_path):
    photo, again = tmp_path / "a.jpg", tmp_path / "again"
    photo.write_bytes(b"one")
    (tmp_path / "kept").hardlink_to(photo)  # lest its number be given again
    before = content(photo)
    for written, same in ((b"one", True), (b"two", False)):
        again.write_bytes(written)
        shutil.copystat(photo, again)
        again.replace(photo)  # another file, though of the same size and time
        assert unchanged(photo, before) == same


def test_damaged_records_count_as_missing(brackets, copier):
    run(brackets, copier)
    one, two, _ = sorted((copier.out / FOLDER).glob("*.json"))
    one.write_bytes(b"{")
    for name in ("../x", "\0", "\ud800"):  # json.dumps escapes them
        for files in ({"files": {name: None}}, {"files": {}, "earlier": {name: None}}):
            two.write_text(json.dumps({"mffsr_batch": 1, "begun": 1} | files))
            assert len(Records(copier.out).outputs()) == 1
    events = [event for event, _, _ in run(brackets, copier, resume=True)]
    assert sorted(events) == ["failed", "failed", "skipped"]


@pytest.fixture
def noted(tmp_path):
    """The finished record of an output and its map."""
    output, focus_map, records = tmp_path / "b1.jpg", tmp_path / "b1.png", Records(tmp_path)
    records.begin(output, "key", [output, focus_map])
    output.write_bytes(b"photo")
    focus_map.write_bytes(b"map")
    records.finish(output, "key", [output, focus_map])
    return output, focus_map, records


def test_an_output_is_finished_while_its_bytes_stay(noted):
    output, focus_map, records = noted
    assert [path.suffixes for path in (output.parent / FOLDER).iterdir()] == [[".json"]], "none is begun"
    os.utime(output, (1, 1))
    assert records.find(output, "key") == (State.finished, [output, focus_map])
    assert records.find(output, "other key").state is State.unknown
    assert records.find(focus_map, "key").state is State.unknown
    assert records.outputs() == {os.path.realpath(path) for path in (output, focus_map)}
    output.write_bytes(b"tohop")
    assert records.find(output, "key").state is State.unknown


def test_of_two_outputs_one_is_missing(noted):
    output, focus_map, records = noted
    focus_map.unlink()
    assert records.find(output, "key") == (State.begun, [output, focus_map])
    output.unlink()
    assert records.find(output, "key").state is State.unknown


def test_what_was_written_under_other_names_stays_known(noted):
    output, focus_map, records = noted
    focus_map.unlink()
    second, third = output.with_name("b1-2.jpg"), output.with_name("b1-3.jpg")
    for path, note in (
        (second, lambda: records.keep(output, "key")),  # as where another file could not be written
        (third, lambda: records.finish(output, "key", [third])),
    ):
        records.begin(output, "key", [path])
        path.write_bytes(b"photo")
        note()
    assert records.find(output, "key") == (State.finished, [third])
    assert records.outputs() == {os.path.realpath(path) for path in (output, second, third)}


def test_records_of_another_version_are_not_believed(noted):
    output, _, records = noted
    (record,) = (output.parent / FOLDER).iterdir()
    record.write_text(record.read_text().replace('"mffsr_batch": 1', '"mffsr_batch": 2'))
    assert records.find(output, "key").state is State.unknown
    assert records.outputs() == set()


def test_the_key_of_a_bracket_is_all_that_decides_its_result():
    photos, contents = [Path("a.jpg"), Path("b.jpg")], [Content(sha, 9, (0, 9, 0)) for sha in "12"]
    options = {"scale": 2, "weights": "photo"}
    key = key_of(photos, contents, options)
    assert key == key_of([Path("/else/a.jpg"), Path("b.jpg")], contents, {"weights": "photo", "scale": 2})
    others = [
        key_of([Path("c.jpg"), Path("b.jpg")], contents, options),
        key_of(photos, contents[::-1], options),
        key_of(photos[::-1], contents[::-1], options),
        key_of(photos, contents, options | {"scale": 3}),
    ]
    assert len({key, *others}) == 5


def test_an_older_file_put_there_since_a_batch_was_killed_is_not_its_own(tmp_path):
    output, records = tmp_path / "b1.jpg", Records(tmp_path)
    output.write_bytes(b"old")
    records.begin(output, "key", [output])
    output.write_bytes(b"restored from elsewhere")
    os.utime(output, (time.time() - 3600,) * 2)
    assert records.find(output, "key").state is State.unknown


def test_what_a_killed_batch_wrote_is_noted_as_finished(tmp_path):
    output, records = tmp_path / "b1.jpg", Records(tmp_path)
    records.begin(output, "key", [output])
    output.write_bytes(b"new")
    assert records.find(output, "key").state is State.finished
    assert [path.suffixes for path in (tmp_path / FOLDER).iterdir()] == [[".json"]]
    output.write_bytes(b"edited since")
    assert records.find(output, "key").state is State.unknown


def test_what_there_is_of_an_unfinished_output_is_ours_until_it_is_edited(tmp_path):
    output, focus_map, records = tmp_path / "b1.jpg", tmp_path / "b1.png", Records(tmp_path)
    focus_map.write_bytes(b"of another program")
    records.begin(output, "key", [output, focus_map])
    output.write_bytes(b"photo")
    records.keep(output, "key")
    assert records.find(output, "key").state is State.unknown
    focus_map.unlink()
    assert records.find(output, "key") == (State.begun, [output, focus_map])
    output.write_bytes(b"edited since")
    assert records.find(output, "key").state is State.unknown


def test_what_a_killed_batch_wrote_is_known_by_any_clock(tmp_path):
    output, records = tmp_path / "b1.jpg", Records(tmp_path)
    records.begin(output, "key", [output])
    output.write_bytes(b"new")
    for path in (output, *(tmp_path / FOLDER).iterdir()):
        os.utime(path, (time.time() - 3600,) * 2)  # as a network folder dates them, whose clock is late
    assert records.find(output, "key").state is State.finished


def test_what_a_killed_batch_found_is_not_its_own(tmp_path):
    output, records = tmp_path / "b1.jpg", Records(tmp_path)
    output.write_bytes(b"old")
    os.utime(output, (time.time() + 3600,) * 2)  # the clock has been put right since
    records.begin(output, "key", [output])
    assert records.find(output, "key").state is State.unknown


def test_two_brackets_of_one_name_and_maps_in_the_way(mffsr, copied, tmp_path):
    table = '[[bracket]]\nname = "x"\nphotos = ["in/b1/p1.jpg", "in/b1/p2.jpg"]\n'
    (tmp_path / "plan.toml").write_text(2 * table)
    arguments = ["batch", "--plan", tmp_path / "plan.toml", "-o", tmp_path / "out", "-s", 1, "-f", "--json"]
    assert [event for event, _ in outcome(mffsr(*arguments))] == ["done", "failed"]
    before = outputs(copied)
    for template in ("{bracket}_x1.png", "p1.png"):
        options = ["--focus-map", template, "--template", "{bracket}_x1.png", "-f"]
        result = mffsr("batch", copied / "b1", "-o", tmp_path / "out", "-s", 1, *options)
        assert result.exit_code == (1 if template != "p1.png" else 0), result.stderr
    assert outputs(copied) == before


def test_two_brackets_of_one_output(brackets, copier, monkeypatch):
    monkeypatch.setattr(copier, "target", lambda bracket: copier.out / "same.jpg")
    results = run(brackets, copier)
    assert [event for event, _, _ in results] == ["done", "failed", "failed"]
    assert "is the output of bracket b1 already" in results[1][2]


class Mapper(Copier):
    """Writes a second file beside the photo; `fault` is raised instead of the second file of b2."""

    fault: BaseException | None = None

    def files(self, result):
        return [result[0], result[0].with_suffix(".map")]

    def write(self, result):
        told = super().write(result)
        if result[0].stem == "b2" and self.fault:
            raise self.fault
        with atomic_output(result[0].with_suffix(".map"), overwrite=result[2]) as stream:
            stream.write(b"map")
        return told


def test_a_failing_second_file_is_told_and_resume_goes_on(brackets, tmp_path):
    (tmp_path / "out").mkdir()
    mapper = Mapper(tmp_path / "out")
    mapper.fault = PhotoError(f"{tmp_path / 'out' / 'b2.map'}: cannot be written: No space left on device")
    told = run(brackets, mapper)
    assert [event for event, _, _ in told] == ["done", "failed", "done"]
    assert told[1][2] == str(mapper.fault)
    mapper.fault = None
    assert [event for event, _, _ in run(brackets, mapper, resume=True)] == ["skipped", "done", "skipped"]
    assert (mapper.out / "b2.map").read_bytes() == b"map"
    assert not list((mapper.out / FOLDER).glob("*.begun.json"))


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_a_photo_edited_since_its_second_file_failed_stays(brackets, tmp_path, fault):
    (tmp_path / "out").mkdir()
    mapper = Mapper(tmp_path / "out")
    mapper.fault = fault
    with pytest.raises(KeyboardInterrupt) if isinstance(fault, KeyboardInterrupt) else nullcontext():
        run(brackets, mapper)
    mapper.fault = None
    (mapper.out / "b2.jpg").write_bytes(b"retouched")
    assert [event for event, _, _ in run(brackets, mapper, resume=True)][:2] == ["skipped", "failed"]
    assert (mapper.out / "b2.jpg").read_bytes() == b"retouched"


@pytest.mark.parametrize("later", ["rename", "error"])
def test_resume_redoes_its_own_renamed_output_and_no_other_file(mffsr, copied, tmp_path, later):
    shutil.rmtree(copied / "b2")
    shutil.rmtree(copied / "b3")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("b1_x1.jpg", "b1_m.png"):
        (out / name).write_bytes(b"mine")

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}

    arguments = ["batch", copied, "-o", out, "-s", 1, "--focus-map", "{bracket}_m.png", "--json"]
    assert outcome(mffsr(*arguments, "--on-exists", "rename")) == [("done", "b1")]
    made = files()
    assert len(made) == 5
    (out / "b1_m-2-preview.png").unlink()
    arguments += ["--on-exists", later, "--resume"]
    assert outcome(mffsr(*arguments)) == [("done", "b1")]
    assert files() == made
    arguments += ["--on-exists", "error", "--report", tmp_path / "r.html"]
    assert outcome(mffsr(*arguments)) == [("done", "b1")]
    assert outcome(mffsr(*arguments)) == [("skipped", "b1")]
    assert files() == made
    page = next((tmp_path / "r").rglob("*.html"))
    page.write_bytes(b"my notes")
    assert outcome(mffsr(*arguments)) == [("failed", "b1")]
    assert page.read_bytes() == b"my notes"
    assert files() == made


def test_an_output_is_known_by_any_capitals_where_a_disk_takes_them_for_one(tmp_path):
    one, two = (Bracket(name=name, photos=[tmp_path / name]) for name in "Aa")
    claims = Claims([one, two])
    claims.claim(tmp_path / "A.JPG", one)
    (tmp_path / "A.JPG").touch()
    claims.claim(tmp_path / "A.JPG", one)
    if not (tmp_path / "a.jpg").exists():  # such a disk is imitated: both names open one file
        (tmp_path / "a.jpg").hardlink_to(tmp_path / "A.JPG")
    with pytest.raises(BracketError, match="is the output of bracket A already"):
        claims.claim(tmp_path / "a.jpg", two)


def test_an_input_is_known_by_any_capitals_where_those_do_not_matter(monkeypatch, tmp_path):
    monkeypatch.setattr("mffsr.batch.os.path.normcase", str.lower)
    bracket = Bracket(name="x", photos=[tmp_path / "A.JPG"])
    with pytest.raises(UsageError, match="is one of the inputs"):
        Claims([bracket]).claim(tmp_path / "a.jpg", bracket)


def test_a_relative_folder_of_a_plan_lies_beside_it(tmp_path):
    plan = tmp_path / "plan.toml"
    table = '[[bracket]]\nname = "x"\nphotos = ["1.jpg", "2.jpg"]\n'
    plan.write_text(f'folder = "shoot"\n{table}')
    assert read_plan(plan)[0].photos == [tmp_path / "shoot" / name for name in ("1.jpg", "2.jpg")]
    plan.write_text(table)
    assert read_plan(plan)[0].photos[0] == tmp_path / "1.jpg"
    plan.write_text(table.replace("1.jpg", "1\\u0000.jpg"))
    with pytest.raises(UsageError, match="NUL"):
        read_plan(plan)
