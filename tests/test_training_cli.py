"""`mffsr train` as its user meets it: real processes, killed, interrupted, started twice, two at once."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from conftest import textured
from PIL import Image
from typer.testing import CliRunner

from mffsr.cli.app import app
from mffsr.cli.console import Console
from mffsr.cli.train import _find
from mffsr.cli.train_run import _Stop
from mffsr.device import Runtime
from mffsr.errors import TrainingError, UsageError
from mffsr.training import train, trainer
from mffsr.training.batches import SuperResolutionBatch, sr_batch
from mffsr.training.photos import find_photos, load_photos
from mffsr.training.processes import Processes
from mffsr.training.stages import STAGES
from mffsr.training.synth import mask_bank

HERE = (Path(__file__).parent.parent, Path(__file__).parent)
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, HERE))}
SMALL = ("--patch", "16", "--batch", "1", "--seed", "3", "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three photographs."""
    found = tmp_path_factory.mktemp("photos")
    for seed in range(3):
        Image.fromarray(textured(112, 120, seed)).save(found / f"{seed}.png")
    return found


def arguments(folder: Path, run: Path, *options: str, which: str = "srn") -> list[str]:
    return ["train", which, "--data", str(folder), "--out", str(run), *SMALL, *options]


TINY = """
import sys
import numpy as np
from mffsr.__main__ import main
from mffsr.training import train, trainer
from mffsr.training.batches import SuperResolutionBatch, sr_batch
from mffsr.training.synth import mask_bank
whole = train.RunOptions
train.RunOptions = lambda **given: whole(**given, features=8, blocks=1)
trainer.mask_bank = lambda count, size, rng: mask_bank(8, size, rng)
"""


def command(*given: str, before: str = "", tiny: bool = True) -> list[str]:
    """Return `python -m mffsr …`, or the same with tiny networks and something done `before`."""
    if not tiny:
        return [sys.executable, "-m", "mffsr", *given]
    return [sys.executable, "-c", f"{TINY}\n{before}\nmain()", *given]


def start(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, env=ENVIRONMENT | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def step_of(state: Path) -> int:
    """Return the step a state file was saved after, 0 where there is none yet."""
    if not state.exists():
        return 0
    with safetensors.safe_open(state, framework="np") as file:
        return int(json.loads(file.metadata()["info"])["step"])


def wait_for(state: Path, step: int, process: subprocess.Popen[str]) -> None:
    while step_of(state) < step and process.poll() is None:
        time.sleep(0.02)


def contents(path: Path) -> dict[str, object]:
    with safetensors.safe_open(path, framework="np") as file:
        return {k: file.get_tensor(k).tobytes() for k in file.keys()} | dict(file.metadata())  # noqa: SIM118


def run_here(*arguments: str) -> tuple[int, str]:
    """Run the command in this process; return its exit code and what it said on stderr."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = CliRunner().invoke(app, list(arguments))
    finally:
        torch.set_num_threads(threads)
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)
    return result.exit_code, result.stderr


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the command train tiny networks in this process too."""
    whole = trainer.RunOptions
    monkeypatch.setattr(train, "RunOptions", lambda **given: whole(**given, features=8, blocks=1))
    monkeypatch.setattr(trainer, "mask_bank", lambda count, size, rng: mask_bank(8, size, rng))
    trainer._masks.cache_clear()


@contextmanager
def stopping(steps: int) -> Iterator[None]:
    """Stop whatever is trained in this process after so many steps in all, as --minutes does."""
    asked = iter(range(steps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Stop, "__call__", lambda _: next(asked, None) is None)
        yield


# -- stopped and resumed -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_killed_at_random_steps_and_resumed_is_as_never_killed(folder: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ("--steps", "12", "--save-every", "1", "--validate-every", "100")
    code, err = run_here(*arguments(folder, whole, *options))
    assert code == 0, err
    state = cut / "x2-srn-state.safetensors"
    seed = random.randrange(1 << 30)
    for kill_at in sorted(random.Random(seed).sample(range(1, 11), 3)):
        resume = ("--resume",) if cut.exists() else ()
        process = start(command(*arguments(folder, cut, *options, *resume)))
        wait_for(state, kill_at, process)
        process.kill()
        process.communicate(timeout=60)
    reached = step_of(state)
    assert 1 <= reached < 12, f"seed {seed}"
    code, err = run_here(*arguments(folder, cut, *options, "--resume"))
    assert code == 0, err
    for name in (state.name, "x2.safetensors"):
        assert contents(cut / name) == contents(whole / name), f"seed {seed}, {name}"
    with (cut / "x2-srn.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == list(range(13))  # none missing, none twice
    assert not list(cut.glob(".*.tmp"))


def test_interrupted_it_saves_and_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = arguments(folder, run, "--steps", "100000", "--save-every", "3", "--validate-every", "1000")
    process = start(command(*given, tiny=False))
    wait_for(run / "x2-srn-state.safetensors", 3, process)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130, err
    step = step_of(run / "x2-srn-state.safetensors")
    assert f"srn stopped after step {step} of 100000: its state is kept in {run}, go on with --resume" in err
    assert err.endswith("\nerror: interrupted\n")
    assert "Traceback" not in err
    assert not out


DEADLY = """
import os
real, calls = os.{call}, iter(range({allowed}))
def deadly(*given):
    if next(calls, None) is None:
        os.kill(os.getpid(), 9)
    return real(*given)
os.{call} = deadly
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.usefixtures("tiny")
def test_killed_while_it_writes_the_checkpoint_before_survives(
    folder: Path, tmp_path: Path, call: str
) -> None:
    given = arguments(folder, tmp_path, "--steps", "3", "--save-every", "1", "--validate-every", "9")
    # Before the second state: table, picture, state and weights; each is synced twice, with its folder.
    deadly = DEADLY.format(call=call, allowed=8 if call == "fsync" else 4)
    code, _, err = finish(start(command(*given, before=deadly)))
    assert code == -signal.SIGKILL, err
    state = tmp_path / "x2-srn-state.safetensors"
    assert step_of(state) == 1
    assert list(tmp_path.glob(".mffsr-*.tmp"))
    code, err = run_here(*given, "--resume")
    assert code == 0, err
    assert step_of(state) == 3
    assert not list(tmp_path.glob(".*.tmp"))


# -- refused -----------------------------------------------------------------------------------------------


def test_too_little_data_is_a_usage_error_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    empty, one, run = tmp_path / "empty", tmp_path / "one", tmp_path / "run"
    empty.mkdir()
    one.mkdir()
    Image.fromarray(textured(112, 120)).save(one / "a.png")
    for data, message in (
        (empty, "no photographs, training needs at least 2"),
        (one, "only one photograph, training needs at least 2"),
        (tmp_path / "none", "not a folder of photographs"),
    ):
        code, err = run_here("train", "srn", "--data", str(data), "--out", str(run))
        assert (code, message in err) == (2, True), err
    assert not run.exists()
    code, err = run_here("train", "srn", "--data", str(folder), "--out", str(run), "--patch", "48")
    assert code == 2
    assert "120×112 pixels, training needs at least 136×136" in err
    assert "smaller --patch" in err
    assert not list(run.glob("*.safetensors"))


def test_a_small_photo_to_validate_on_is_not_put_down_to_the_patch(folder: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "val"
    held_out.mkdir()
    Image.fromarray(textured(80, 120)).save(held_out / "small.png")
    code, err = run_here(*arguments(folder, tmp_path / "run", "--val", str(held_out)))
    assert code == 2
    assert "120×80 pixels, validation needs at least 96×96\n" in err
    assert "remove these photographs, or name others by --val" in err
    assert "--patch" not in err


def test_what_is_validated_on_is_not_trained_on(tmp_path: Path) -> None:
    held_out = tmp_path / "val"
    held_out.mkdir()
    for photo in (tmp_path / "a.png", tmp_path / "b.png", held_out / "c.png"):
        photo.touch()
    (held_out / "b.png").symlink_to(tmp_path / "b.png")
    trained, scored = _find(tmp_path, held_out, Console())
    assert trained == [tmp_path / "a.png"]
    assert scored == [held_out / "b.png", held_out / "c.png"]
    with pytest.raises(UsageError, match="all of its photographs are validated on"):
        _find(tmp_path, tmp_path, Console())


@pytest.mark.usefixtures("tiny")
def test_of_many_photos_to_validate_on_the_first_count_and_it_is_told(folder: Path, tmp_path: Path) -> None:
    held_out = tmp_path / "val"
    held_out.mkdir()
    for index in range(26):  # the last is too small, and not asked for
        side = 96 if index < 25 else 40
        Image.fromarray(textured(side, side, index)).save(held_out / f"{index:02}.png")
    code, err = run_here(*arguments(folder, tmp_path / "run", "--val", str(held_out), "--steps", "1"))
    assert code == 0, err
    assert "the first 24 of 26 photographs are validated on" in err
    assert "24 to validate on" in err


@pytest.mark.parametrize(
    ("option", "value"),
    [("--seed", "-1"), ("--seed", str(2**64))]
    + [(option, value) for option in ("--rate", "--minutes") for value in ("0", "-5", "nan", "inf")],
)
def test_numbers_that_are_none_are_refused(folder: Path, tmp_path: Path, option: str, value: str) -> None:
    code, err = run_here(*arguments(folder, tmp_path / "run", option, value))
    assert code == 2
    assert option in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("which", "option", "weights", "message"),
    [
        ("all", "--fapn", "none.safetensors", "none.safetensors: no such weight file"),
        ("all", "--fapn", "x2.safetensors", "holds fn weights, expected fapn"),
        ("srn", "--init", "none.safetensors", "none.safetensors: no such weight file"),
        ("srn", "--init", "fapn.safetensors", "holds fapn weights, expected fn"),
        ("srn", "--init", ".", "is a folder\nexpected one of the weight files in it"),
        ("fapn", "--init", "x2.safetensors", "holds fn weights, expected fapn"),
        ("joint", "--init", "x3.safetensors", "weights for scale 3, but scale 2 is asked for"),
        ("srn", "--teacher", "x3.safetensors", "weights for scale 3, but scale 2 is asked for"),
        ("all", "--teacher", "fapn.safetensors", "holds fapn weights, expected fn"),
        ("joint", "--teacher", "x2.safetensors", "teachers teach srn alone, not joint"),
    ],
)
def test_wrong_weights_are_refused_before_a_photo_is_read(
    tiny_weights: Path, folder: Path, tmp_path: Path, which: str, option: str, weights: str, message: str
) -> None:
    given = (option, str(tiny_weights / weights))
    code, err = run_here(*arguments(folder, tmp_path / "run", *given, which=which))
    assert code == (2 if which == "joint" and option == "--teacher" else 1)
    assert message in err
    assert "Decoding" not in err
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_no_file(folder: Path, tmp_path: Path) -> None:
    code, err = run_here(*arguments(folder, folder / "0.png"))
    assert code == 2
    assert "0.png: is no folder\nchoose another --out" in err


@pytest.mark.parametrize("out", ["", "run", "far/off/run"])
@pytest.mark.parametrize("read_by", ["--data", "--val"])
def test_a_run_folder_lies_not_among_the_photos(folder: Path, tmp_path: Path, out: str, read_by: str) -> None:
    read = tmp_path / "read"
    read.mkdir()
    for path in folder.iterdir():
        (read / path.name).write_bytes(path.read_bytes())
    before = sorted(read.rglob("*"))
    given = arguments(read if read_by == "--data" else folder, read / out, "--val", str(read))
    code, err = run_here(*given)
    assert code == 2
    assert f"{read / out}: is or lies in {read}, whose photographs are read" in err
    assert sorted(read.rglob("*")) == before


def test_a_corrupt_photo_is_named_before_training(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in folder.iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    (data / "broken.png").write_bytes((folder / "0.png").read_bytes()[:2000])
    code, err = run_here("train", "srn", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL)
    assert code == 1
    assert "broken.png" in err
    assert "remove these photographs and start again" in err
    assert not list((tmp_path / "run").glob("*.csv"))


def test_a_second_training_in_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(command(*arguments(folder, run, "--steps", "100000", "--save-every", "2")))
    wait_for(run / "x2-srn-state.safetensors", 2, process)
    code, err = run_here(*arguments(folder, run, "--resume"))
    assert code == 1
    assert "another training is running in this folder" in err
    process.send_signal(signal.SIGTERM)
    code, _, err = finish(process)
    assert code == 143, err
    assert "srn stopped after step" in err
    assert err.endswith("\nerror: terminated\n")
    code, err = run_here(*arguments(folder, run))
    assert code == 2
    assert "holds a training of srn already" in err
    assert "--resume" in err


@pytest.mark.usefixtures("tiny")
def test_what_a_run_begins_with_is_told_once(folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run_here(*arguments(folder, first, "--steps", "1"))[0] == 0
    given = arguments(folder, second, "--steps", "1", "--init", str(first / "x2.safetensors"))
    begins = f"srn: begins with {first / 'x2.safetensors'}\n"
    code, err = run_here(*given)
    assert (code, begins in err) == (0, True), err
    code, err = run_here(*given, "--resume")
    assert (code, begins in err) == (0, False), err


@pytest.mark.usefixtures("tiny")
def test_a_huge_rate_ends_with_a_message(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, err = run_here(*arguments(folder, run, "--steps", "60", "--rate", "1e9", "--save-every", "1"))
    assert code == 1
    assert "no longer a finite number" in err
    assert "lower --rate" in err


@pytest.mark.parametrize("which", ["srn", "all"])
@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_weights_that_lost_their_state_are_not_replaced(
    tiny_weights: Path, folder: Path, tmp_path: Path, which: str, resume: tuple[str, ...]
) -> None:
    trained = tmp_path / "x2.safetensors"
    trained.write_bytes((tiny_weights / "x2.safetensors").read_bytes())
    before = trained.read_bytes()
    code, err = run_here(*arguments(folder, tmp_path, "--steps", "1", *resume, which=which))
    assert code == 2
    assert f"{trained}: trained weights without x2-srn-state.safetensors, which training would replace" in err
    assert trained.read_bytes() == before


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("which", ["srn", "all"])
@pytest.mark.parametrize("name", ["x2-srn.csv", "x2-srn.png"])
def test_a_log_is_not_replaced_but_by_resuming(folder: Path, tmp_path: Path, name: str, which: str) -> None:
    log = tmp_path / name
    log.write_text("of another")
    code, err = run_here(*arguments(folder, tmp_path, "--steps", "1", which=which))
    assert code == 2
    assert f"{log}: a log without x2-srn-state.safetensors, which training would replace\n" in err
    assert "Decoding" not in err
    assert log.read_text() == "of another"
    if which == "srn":  # as of a run that was killed before it first saved its state
        code, err = run_here(*arguments(folder, tmp_path, "--steps", "1", "--resume"))
        assert code == 0, err


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("which", ["srn", "all"])
@pytest.mark.parametrize("missing", ["", "x2-joint-state.safetensors"])
def test_weights_of_the_joint_stage_are_not_replaced_by_an_unfinished_srn(
    folder: Path, tmp_path: Path, which: str, missing: str
) -> None:
    with stopping(2):
        assert run_here(*arguments(folder, tmp_path, "--steps", "4"))[0] == 0
    assert run_here(*arguments(folder, tmp_path, "--steps", "1", which="joint"))[0] == 0
    if missing:
        (tmp_path / missing).unlink()
    trained = tmp_path / "x2.safetensors"
    before = trained.read_bytes()
    code, err = run_here(*arguments(folder, tmp_path, "--steps", "4", "--resume", which=which))
    assert code == 2
    assert f"{trained}: trained jointly since srn stopped after step 2 of 4, and srn would replace it" in err
    assert trained.read_bytes() == before


def test_the_joint_stage_says_what_it_lacks(folder: Path, tmp_path: Path) -> None:
    code, err = run_here(*arguments(folder, tmp_path, which="joint"))
    assert code == 2
    assert "train srn first, or use --init" in err
    code, err = run_here(*arguments(folder, tmp_path, "--precision", "fp16"))
    assert code == 2


# -- all at once -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_all_stages_stop_in_time_and_go_on(folder: Path, tmp_path: Path) -> None:
    given = arguments(folder, tmp_path, "--steps", "4", "--attention", "none", which="all")
    code, err = run_here(*given, "--minutes", "0.000001")
    assert code == 0, err
    assert "fapn stopped after step 0 of 4" in err
    code, err = run_here(*given, "--resume")  # its log is there, though nothing is to go on from
    assert code == 0, err
    for line in ("fapn 4 of 4: loss", "srn 4 of 4: loss", "joint 4 of 4: loss", "of it making data"):
        assert line in err
    assert f"joint: begins with {tmp_path / 'x2.safetensors'}\n" in err
    assert f"joint: finds the focus with {tmp_path / 'fapn.safetensors'}\n" in err
    before = {path.name: contents(path) for path in tmp_path.glob("*.safetensors")}
    assert set(before) == {
        "fapn.safetensors",
        "fapn-fapn-state.safetensors",
        "x2.safetensors",
        "x2-srn-state.safetensors",
        "x2-joint-state.safetensors",
    }
    code, err = run_here(*given, "--resume")  # nothing is left to do, and nothing is spoilt
    assert code == 0, err
    assert {path.name: contents(path) for path in tmp_path.glob("*.safetensors")} == before
    assert f"joint: goes on from {tmp_path / 'x2-joint-state.safetensors'}" in err
    assert "anew" not in err


@pytest.mark.usefixtures("tiny")
def test_all_stages_go_on_in_the_joint_one(folder: Path, tmp_path: Path) -> None:
    given = arguments(folder, tmp_path, "--steps", "2", "--attention", "none", which="all")
    with stopping(5):
        code, err = run_here(*given)
    assert code == 0, err
    assert "joint stopped after step 1 of 2" in err
    code, err = run_here(*given, "--resume")
    assert code == 0, err
    assert "joint 2 of 2: loss" in err


@pytest.mark.usefixtures("tiny")
def test_resuming_says_where_there_is_nothing_to_go_on_from(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "misspelt"
    code, err = run_here(*arguments(folder, run, "--steps", "1", "--resume"))
    assert code == 0, err
    assert f"srn: there is no {run / 'x2-srn-state.safetensors'}, it begins anew" in err


def test_the_preview_is_written_and_nothing_trained(folder: Path, tmp_path: Path) -> None:
    code, err = run_here(*arguments(folder, tmp_path, "--preview", "2"))
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "preview.png"]
    before = (tmp_path / "preview.png").read_bytes()
    code, err = run_here(*arguments(folder, tmp_path, "--preview", "1"))
    assert code == 2
    assert f"{tmp_path / 'preview.png'}: exists already\nmove it away, or choose another --out" in err
    assert (tmp_path / "preview.png").read_bytes() == before


def test_the_preview_is_as_large_as_the_photos_allow(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for seed in range(2):
        Image.fromarray(textured(240, 240, seed)).save(tmp_path / "data" / f"{seed}.png")
    code, err = run_here(*arguments(tmp_path / "data", tmp_path / "run", "--preview", "1"))
    assert code == 0, err
    side = 240 // 2 - 2 * 16  # FAPN's larger pairs, with their margins
    with Image.open(tmp_path / "run" / "preview.png") as sheet:
        assert sheet.size == (4 * side + 3 * 4, side)


# -- more than one process ---------------------------------------------------------------------------------

TOGETHER = """
import json
from pathlib import Path
from typing import Any
import torch
from mffsr.errors import TrainingError
from mffsr.training.processes import join
from test_training_cli import losses_of
processes = join(torch.device("cpu"))
found = losses_of(Path(sys.argv[1]), Path(sys.argv[2]) / "two", processes, 4)
Path(sys.argv[2], f"losses-{processes.rank}.json").write_text(json.dumps(found))

def fail(self, step, batch):
    raise TrainingError("rank 1 fails")

if processes.rank == 1:
    trainer.Trainer.step = fail
losses_of(Path(sys.argv[1]), Path(sys.argv[2]) / "failing", processes, 4)
"""


def losses_of(folder: Path, run: Path, processes: Processes, batch: int) -> list[float | None]:
    """Train 20 steps of a tiny SRN; return the loss of each.

    In float64: Muon makes small singular values of a gradient large, those of rounding too, and float32's is
    1e-4 of the loss after twenty steps. The data are always made four samples at a time: how many are
    convolved at once moves float32's last bit on some processors, and rounding to 8 bit makes a level of it.
    """
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    photos = load_photos(find_photos(folder), cpu, smallest=96)
    stage = replace(STAGES[1], steps=20, batch=batch, patch=16, warmup=2)
    options = trainer.RunOptions(scale=2, features=8, blocks=2)
    runtime = Runtime(device=cpu, dtype=torch.float32, memory=0, reason="")
    losses: list[float | None] = []
    given = {
        "processes": processes,
        "report_every": 1,
        "on_report": lambda report: losses.append(report.loss),
    }
    run.mkdir(exist_ok=True)
    begin = trainer.Trainer._begin

    def by_fours(*data: Any, samples: range, total: int) -> SuperResolutionBatch:
        parts = [sr_batch(*data, samples[i : i + 4], total=total) for i in range(0, len(samples), 4)]
        return SuperResolutionBatch(*(torch.cat(whole).double() for whole in zip(*parts, strict=True)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.Trainer, "_begin", lambda *a: begin(*a).double())
        patch.setattr(trainer, "sr_batch", by_fours)
        train.train_stage(stage, options, photos, photos, run, runtime, **given)
    return losses[1:]  # the first report is of step 0


def port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.usefixtures("tiny")
def test_two_processes_are_one_with_the_doubled_batch_and_fail_together(folder: Path, tmp_path: Path) -> None:
    alone = losses_of(folder, tmp_path / "one", Processes(), 8)
    assert len(alone) == 20
    pair = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port()}
    script = command(str(folder), str(tmp_path), before=TOGETHER)
    both = [start(script, RANK=str(rank), **pair) for rank in range(2)]
    ended = [finish(process) for process in both]
    for rank in range(2):
        shared = json.loads((tmp_path / f"losses-{rank}.json").read_text())
        assert shared == pytest.approx(alone, rel=1e-5)
    for (code, _, err), message in zip(
        ended, ("another process of this training has ended", "rank 1 fails"), strict=True
    ):
        assert code == 1
        assert message in err


PARTING = """
import os
import sys
from pathlib import Path
import torch
from mffsr.errors import TrainingError
from mffsr.training.processes import join
processes = join(torch.device("cpu"))
weight = torch.nn.Parameter(torch.zeros(3))
weight.grad = torch.ones(3)
torch.optim.Adam([weight]).step()
processes.average_gradients([weight], torch.ones(()))
if sys.argv[1] == "together":
    processes.leave()
elif processes.rank == 1:
    os._exit(0)
else:
    try:
        processes.any(False)
    except TrainingError as error:
        print(str(error).splitlines()[0])
print(sorted(thread.joinpath("comm").read_text() for thread in Path("/proc/self/task").iterdir()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for its threads")
@pytest.mark.parametrize("how", ["together", "left alone"])
def test_no_thread_of_the_group_outlives_it(how: str) -> None:
    pair = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port(), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-c", PARTING, how]
    both = [start(script, RANK=str(rank), **pair) for rank in range(2)]
    ended = [finish(process) for process in both]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert ("another process" in ended[0][1]) == (how == "left alone")
    assert "python" in ended[0][1]
    assert "gloo" not in ended[0][1].splitlines()[-1]


def test_what_one_process_cannot_do_all_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(messages: list[object], mine: object) -> None:
        messages[:] = [mine, (True, "rank 1: no photographs")]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    with pytest.raises(UsageError, match="rank 1: no photographs"), Processes(count=2).together():
        pass
    with pytest.raises(TrainingError, match="mine"), Processes(count=2).together():
        raise TrainingError("mine")


def torchrun(*arguments: str) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*launcher, "--master-addr", "127.0.0.1", "--master-port", port(), "-m", "mffsr", *arguments]


def test_torchrun_trains_with_one_voice_and_leaves_cleanly(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, err = finish(start(torchrun(*arguments(folder, run, "--steps", "3"))))
    assert code == 0, err
    assert out.splitlines() == [str(run / "x2.safetensors")]
    assert err.count("srn 3 of 3: loss") == 1
    assert contents(run / "x2.safetensors")["batch"] == "2"
    code, err = run_here(*arguments(folder, run, "--steps", "3", "--resume"))
    assert code == 2
    assert "processes was 2, now 1" in err


def test_alone_nothing_is_shared() -> None:
    alone = Processes()
    assert alone.any(True)
    assert not alone.any(False)
    with alone.together():
        alone.leave()
    loss = torch.ones(())
    assert alone.average_gradients([], loss) is loss
