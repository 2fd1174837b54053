"""Training and evaluation that are stopped, starved and misled, and odd surroundings. Scenarios 66–75."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import drivers
import numpy as np
import samples
from bench import LINES, Bench, SkippedError, check, complete, leftovers, pixels_of
from registry import scenario

SMALL = ("--patch", 16, "--batch", 1, "--seed", 3, "--device", "cpu", "--precision", "fp32", "-q")
STATE, WEIGHTS = "x2-srn-state.safetensors", "x2.safetensors"


def _line(run: str, *options: object, data: str = "photos", which: str = "srn") -> list[object]:
    return ["train", which, "--data", data, "--out", run, *SMALL, *options]


def _step(state: Path) -> int:
    """Return the step of a saved state, 0 where there is none; its header is JSON."""
    if not state.exists():
        return 0
    with state.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return int(json.loads(header["__metadata__"]["info"])["step"])


def _wait(process: subprocess.Popen[str], state: Path, step: int) -> None:
    while _step(state) < step and process.poll() is None:
        time.sleep(0.01)


def _values(path: Path) -> bytes:
    """Return the tensors of a safetensors file as bytes, without its header."""
    whole = path.read_bytes()
    return whole[8 + int.from_bytes(whole[:8], "little") :]


@scenario(66)
def training_stopped_anywhere_and_resumed_ends_with_the_same_weights(bench: Bench) -> str:
    samples.write_photos(bench.folder / "photos", 3)
    steps = ("--steps", 12, "--save-every", 1, "--validate-every", 100)
    rng, told = random.Random(2), []
    for threads in ("1", "2"):
        bench.environment["OMP_NUM_THREADS"] = threads
        whole = bench.run(*_line(f"whole{threads}", *steps), patience=900)
        check(whole.code == 0, whole.told)
        for number in (signal.SIGINT, signal.SIGKILL):
            name = f"{number.name}{threads}"
            at = rng.randrange(2, 9)
            process = bench.start(_line(name, *steps))
            _wait(process, bench.folder / name / STATE, at)
            process.send_signal(number)
            process.communicate(timeout=120)
            check(process.returncode in (130, -9), name, "ended with", process.returncode)
            again = bench.run(*_line(name, *steps, "--resume"), patience=900)
            check(again.code == 0, again.told)
            same = _values(bench.folder / name / WEIGHTS) == _values(
                bench.folder / f"whole{threads}" / WEIGHTS
            )
            check(same, name, "stopped after step", at, "gives other weights")
            told.append(f"{number.name} at {at}")
    return f"same weights after {', '.join(told)} of 12 steps, with 1 and 2 threads"


@scenario(67)
def training_killed_while_it_saves_keeps_the_state_before(bench: Bench) -> str:
    samples.write_photos(bench.folder / "photos", 3)
    steps = ("--steps", 6, "--save-every", 2, "--validate-every", 100)
    killed = 0
    for calls, number in (("rename,renameat,renameat2", 2), ("fsync", 3), ("rename,renameat,renameat2", 3)):
        name = f"{calls[:6]}{number}"
        run = bench.run(*_line(name, *steps), before=drivers.kill_at(calls, number), patience=900)
        if run.code == 0:
            continue
        killed += 1
        step = _step(bench.folder / name / STATE)
        again = bench.run(*_line(name, *steps, "--resume"), patience=900)
        check(again.code == 0, name, "after step", step, again.told)
        check(_step(bench.folder / name / STATE) == 6, name)
    check(killed >= 2, "only", killed, "runs were killed")
    return f"{killed} times killed at a rename or fsync, each resumed to the end"


@scenario(68)
def a_disk_that_is_full_at_a_checkpoint_keeps_the_last_good_one(bench: Bench) -> str:
    samples.write_photos(bench.folder / "photos", 3)
    steps = ("--steps", 6, "--save-every", 2, "--validate-every", 100)
    good = bench.run(*_line("good", *steps), patience=900)
    check(good.code == 0, good.told)
    state = (bench.folder / "good" / STATE).stat().st_size
    with drivers.disk(bench.folder / "disk", f"size={state * 3 // 2}") as folder:
        run = bench.run(*_line("disk/run", *steps), patience=900)
        check(run.code == 1 and "Traceback" not in run.err, run.told)
        check("No space left" in run.err, run.told)
        step = _step(folder / "run" / STATE)
        check(step >= 1, "no state was kept")
        check(not leftovers(folder), leftovers(folder))
    return f"exit 1, state of step {step} kept: {run.err.strip().splitlines()[-1]}"


@scenario(69)
def corrupt_photos_are_named_before_training(bench: Bench) -> str:
    folder = samples.write_photos(bench.folder / "photos", 3)
    whole = (folder / "0.png").read_bytes()
    bad = {"cut.png": whole[:2000], "empty.jpg": b"", "text.jpg": b"no photo", "head.png": whole[:20]}
    if bench.corpus is not None:
        bad["foreign.png"] = (bench.corpus / "pillow" / "truncated_image.png").read_bytes()
    for name, content in bad.items():
        (folder / name).write_bytes(content)
    run = bench.run(*_line("run", "--steps", 2))
    check(run.code in (1, 2) and "Traceback" not in run.err, run.told)
    check(len(run.err.strip().splitlines()) <= LINES, run.told)
    check(not list((bench.folder / "run").glob("*.safetensors")), "training has begun")
    named = [name for name in bad if name in run.err]
    check(named, run.told)
    return f"{len(bad)} files: {run.err.strip().splitlines()[0][:160]}"


@scenario(70)
def a_loss_that_explodes_stops_and_saves_nothing_broken(bench: Bench) -> str:
    samples.write_photos(bench.folder / "photos", 3)
    line = _line("run", "--steps", 60, "--rate", "1e6", "--save-every", 1, "--validate-every", 1000)
    run = bench.run(*line, patience=600)
    check("Traceback" not in run.err, run.told)
    check(run.code == 1, "exit code 1 was expected", run.told)
    for path in (bench.folder / "run").glob("*.safetensors"):
        code = (
            "import sys, torch; from safetensors.torch import load_file; "
            "sys.exit(not all(bool(torch.isfinite(t).all()) for t in load_file(sys.argv[1]).values() "
            "if t.is_floating_point()))"
        )
        check(bench.spawn([bench.python, "-c", code, path]).code == 0, path.name, "holds what is not finite")
    return run.err.strip().splitlines()[-1]


@scenario(71)
def too_little_data_is_a_usage_error_before_the_start(bench: Bench) -> str:
    (bench.folder / "empty").mkdir()
    samples.write_photos(bench.folder / "one", 1)
    samples.write_photos(bench.folder / "tiny", 4, (24, 20))
    told = []
    for data in ("empty", "one", "tiny"):
        line = _line("run", "--steps", 2, data=data)
        run = bench.run(*line)
        check(run.code == 2 and "Traceback" not in run.err, run.told)
        left = [path.name for path in (bench.folder / "run").glob("*")]
        check(left in ([], [".lock"]), "left in the run folder:", left)
        told.append(run.err.strip().splitlines()[0][:90])
    return "; ".join(told)


@scenario(72)
def a_second_training_in_one_run_folder_is_refused(bench: Bench) -> str:
    samples.write_photos(bench.folder / "photos", 3)
    line = _line("run", "--steps", 5000, "--save-every", 1)
    first = bench.start(line)
    _wait(first, bench.folder / "run" / STATE, 1)
    second = bench.run(*line)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    check(second.code in (1, 2) and "Traceback" not in second.err, second.told)
    check("run" in second.err, second.told)
    third = bench.run(*line, "--resume", "--minutes", "0.001", patience=900)
    check("another" not in third.err, "the lock outlives its process:", third.told)
    return second.err.strip().splitlines()[-1]


@scenario(73)
def a_helper_process_that_dies_ends_the_command(bench: Bench) -> str:
    samples.write_photos(bench.folder / "photos", 3)
    process = bench.start(_line("run", "--steps", 5000, "--save-every", 1))
    _wait(process, bench.folder / "run" / STATE, 2)
    helpers = _children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    samples.write_bracket(bench.folder / "pairs", (400, 300), 4, ("x-A.png", "x-B.png"))
    process = bench.start(("eval", "--pairs", "pairs", "--scale", 2, "-j", 2, "--baselines"))
    killed = 0
    while process.poll() is None and not killed:
        for pid in _children(process.pid):
            os.kill(pid, signal.SIGKILL)
            killed += 1
        time.sleep(0.05)
    struck = time.monotonic()
    _, errors = process.communicate(timeout=60)
    told = f"training has {len(helpers)} helper processes"
    if not killed:
        return f"{told}; measuring had none to kill"
    # Python's own clerk for shared resources complains of those that the killed one held.
    check(process.returncode in (0, 1) and "/mffsr/" not in errors, process.returncode, errors[-300:])
    seconds = time.monotonic() - struck
    return f"{told}; a measuring process killed: exit {process.returncode} after {seconds:.0f} s"


def _children(pid: int) -> Sequence[int]:
    """Return the processes that a process has started, but for Python's resource tracker."""
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.exists():
        raise SkippedError("there is no /proc here, or the process is gone")
    found = []
    for task in tasks.iterdir():
        try:
            found += [int(text) for text in (task / "children").read_text().split()]
        except OSError:
            continue
    return [
        child for child in found if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


@scenario(74)
def missing_and_mismatched_pictures_are_named_and_never_left_out_of_a_mean(bench: Bench) -> str:
    pairs = bench.folder / "pairs"
    for name in ("x", "y"):
        samples.write_bracket(pairs, (96, 80), 4, (f"{name}-A.png", f"{name}-B.png"))
    (pairs / "y-B.png").rename(bench.folder / "kept.png")
    run = bench.refused(
        lambda: bench.run("eval", "--pairs", "pairs", "--scale", 2, "-j", 1), "y", codes=[1, 2]
    )
    told = [run.err.strip().splitlines()[0][:100]]
    samples.write(pairs / "y-B.png", samples.textured((90, 80)))
    run = bench.refused(
        lambda: bench.run("eval", "--pairs", "pairs", "--scale", 2, "-j", 1), "y", codes=[1, 2]
    )
    told.append(run.err.strip().splitlines()[0][:100])
    (bench.folder / "kept.png").rename(pairs / "y-B.png")
    (bench.folder / "fused").mkdir()
    samples.write(bench.folder / "fused" / "x.png", samples.textured((96, 80)))
    line = ("eval", "--pairs", "pairs", "--fused", "fused", "--scale", 1, "-j", 1)
    run = bench.refused(lambda: bench.run(*line), "y", codes=[1, 2])
    told.append(run.err.strip().splitlines()[0][:100])
    return "; ".join(told)


@scenario(75)
def odd_surroundings_change_no_pixel(bench: Bench) -> str:
    bench.good(out="plain.png")
    plain = bench.environment
    cases: dict[str, dict[str, str | None]] = {
        "no HOME": {"HOME": None, "USER": None, "LOGNAME": None},
        "C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        "dumb": {"TERM": "dumb", "COLUMNS": "20"},
        "time": {"TZ": "Pacific/Kiritimati"},
        "ASCII": {"PYTHONIOENCODING": "ascii"},
    }
    for name, changes in cases.items():
        merged = {**plain, **changes}
        bench.environment = {key: value for key, value in merged.items() if value is not None}
        out = f"{name.replace(' ', '-')}.png"
        samples.write(bench.folder / "é.jpg", samples.bracket((96, 64))[1], quality=95, subsampling=0)
        line = ("fuse", "a.jpg", "é.jpg", "-s", 3, "-o", out, "--json")
        run = bench.run(*line)
        check(run.code == 0 and "Traceback" not in run.err, name, run.told)
        check(complete(bench.folder / out) == (288, 192), name)
        same = np.array_equal(pixels_of(bench.folder / out), pixels_of(bench.folder / "plain.png"))
        check(same, name, "changes pixels")
    bench.environment = plain
    return ", ".join(cases)
