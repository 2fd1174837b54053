"""Folders of many brackets. Scenarios 60–65."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import drivers
import numpy as np
import samples
from bench import Bench, SkippedError, check, complete, mib, sha, snapshot
from registry import scenario

SMALLEST = (48, 32)


def _events(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


@scenario(60)
def one_bad_bracket_of_many_is_named_and_the_others_are_done(bench: Bench) -> str:
    source = samples.write_folders(bench.folder / "in", 50, SMALLEST)
    cut = source / "b10" / "b.jpg"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    samples.write(source / "b20" / "b.jpg", samples.textured((50, 32)))
    samples.write(source / "b30" / "b.jpg", samples.textured(SMALLEST, 999))
    bad = {"b10", "b20", "b30"}
    before: list[str] = []
    if os.geteuid() == 0:
        (source / "b40" / "b.jpg").chmod(0)
        bad.add("b40")
        before = drivers.as_nobody()
        bench.folder.chmod(0o777)
    run = bench.run("batch", "in", "-o", "out", "-s", 1, "--json", before=before, patience=900)
    check(run.code == 1, run.told)
    events = _events(run.out)
    failed = {str(event["bracket"]): str(event["cause"]) for event in events if event["event"] == "failed"}
    check(set(failed) == bad, failed)
    for name, cause in failed.items():
        check("b.jpg" in cause or "a.jpg" in cause, name, cause)
    check(len(list((bench.folder / "out").glob("*.jpg"))) == 50 - len(bad), "outputs")
    check(events[-1]["done"] == 50 - len(bad) and events[-1]["failed"] == len(bad), events[-1])
    check(f"{50 - len(bad)} done, {len(bad)} failed" in run.err, run.told)
    return f"{50 - len(bad)} done, {len(bad)} failed: cut, other size, other scene, no permission"


@scenario(61)
def a_batch_that_finds_nothing_or_fails_throughout_says_so(bench: Bench) -> str:
    (bench.folder / "empty").mkdir()
    run = bench.refused(lambda: bench.run("batch", "empty", "-o", "out", "-q"), "no brackets", codes=[1, 2])
    source = samples.write_folders(bench.folder / "in", 3, SMALLEST)
    for folder in source.iterdir():
        (folder / "b.jpg").write_bytes(b"no photo")
    every = bench.run("batch", "in", "-o", "out", "-q")
    check(every.code == 1 and "0 done, 3 failed" in every.err, every.told)
    return f"none: exit {run.code}; all: exit {every.code}"


def _outputs(folder: Path) -> dict[str, str]:
    return {path.name: sha(path) for path in folder.glob("*.jpg")}


@scenario(62)
def a_killed_batch_goes_on_where_it_was(bench: Bench) -> str:
    samples.write_folders(bench.folder / "in", 50, SMALLEST)
    line = ("batch", "in", "-s", 1, "--resume", "--json")
    whole = bench.run(*line, "-o", "whole", patience=900)
    check(whole.code == 0, whole.told)
    process = bench.start([*line, "-o", "out"])
    while len(_outputs(bench.folder / "out")) < 25 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = {p.name: p.stat().st_mtime_ns for p in (bench.folder / "out").glob("*.jpg")}
    check(25 <= len(finished) < 50, len(finished), "finished before the kill")
    run = bench.run(*line, "-o", "out", patience=900)
    check(run.code == 0, run.told)
    summary = _events(run.out)[-1]
    check(summary["skipped"] == len(finished), len(finished), "finished before,", summary)
    again = [n for n, t in finished.items() if (bench.folder / "out" / n).stat().st_mtime_ns != t]
    check(not again, "done again:", again)
    check(_outputs(bench.folder / "out") == _outputs(bench.folder / "whole"), "other pictures")
    return f"{len(finished)} skipped, {summary['done']} done, all 50 as in an uninterrupted batch"


# Put on PYTHONPATH: whoever opens crash.jpg dies, but for the first process of all.
CRASH = """
import os, signal, sys
os.environ.setdefault("FIRST_OF_ALL", str(os.getpid()))
def crash(event, arguments):
    if event == "open" and str(arguments[0]).endswith("crash.jpg"):
        if os.environ["FIRST_OF_ALL"] != str(os.getpid()):
            os.kill(os.getpid(), signal.SIGSEGV)
sys.addaudithook(crash)
"""


@scenario(63)
def a_bracket_that_crashes_its_worker_costs_no_other(bench: Bench) -> str:
    if "--workers" not in bench.run("batch", "--help").out:
        raise SkippedError("this batch has no worker processes")
    source = samples.write_folders(bench.folder / "in", 4, SMALLEST)
    (source / "b2" / "b.jpg").rename(source / "b2" / "crash.jpg")
    (bench.folder / "hook").mkdir()
    (bench.folder / "hook" / "sitecustomize.py").write_text(CRASH)
    bench.environment["PYTHONPATH"] = str(bench.folder / "hook")
    run = bench.run("batch", "in", "-o", "out", "-s", 1, "--workers", 2, patience=300)
    check("Traceback" not in run.err, run.told)
    check(run.code == 1 and "3 done, 1 failed" in run.err, run.told)
    check(len(list((bench.folder / "out").glob("*.jpg"))) == 3, "outputs")
    return run.err.strip().splitlines()[-1]


@scenario(64)
def two_hundred_brackets_need_no_more_than_twenty(bench: Bench) -> str:
    source = samples.write_folders(bench.folder / "in", 1, SMALLEST)
    for number in range(2, 201):
        (source / f"b{number:03d}").symlink_to("b1")
    (bench.folder / "plan.toml").write_text(
        "".join(
            f'[[bracket]]\nname = "n{number:03d}"\nphotos = ["in/b1/a.jpg", "in/b1/b.jpg"]\n'
            for number in range(200)
        )
    )
    errors = (bench.folder / "log").open("w")
    process = bench.start(
        ("batch", "--plan", "plan.toml", "-o", "out", "-s", 1), stdout=subprocess.DEVNULL, stderr=errors
    )
    measured = []
    for count in (20, 200):
        while len(list((bench.folder / "out").glob("*.jpg"))) < count - 1 and process.poll() is None:
            time.sleep(0.01)
        measured.append(_resident_and_open(process.pid))
    code = process.wait(300)
    errors.close()
    check(code == 0, (bench.folder / "log").read_text()[-300:])
    (early, early_files), (late, late_files) = measured
    check(0 < late <= 1.05 * early, mib(early), "became", mib(late))
    check(late_files <= early_files + 2, early_files, "open files became", late_files)
    return f"resident {mib(early)} → {mib(late)}, open files {early_files} → {late_files}"


def _resident_and_open(pid: int) -> tuple[int, int]:
    """Return the resident bytes and the number of open files of a process, from /proc."""
    place = Path("/proc") / str(pid)
    if not place.exists():
        raise SkippedError("there is no /proc here, or the batch was too fast")
    resident = int((place / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, len(list((place / "fd").iterdir()))


@scenario(65)
def a_read_only_input_folder_is_enough(bench: Bench) -> str:
    source = samples.write_folders(bench.folder / "in", 2, SMALLEST)
    before = snapshot(source)
    with drivers.read_only(source):
        run = bench.run("batch", "in", "-o", "out", "-s", 2)
        check(run.code == 0, run.told)
    check(snapshot(source) == before, "the input was changed")
    for path in (bench.folder / "out").glob("*.jpg"):
        check(complete(path) == tuple(2 * np.array(SMALLEST)), path)
    return "2 of 2 done"
