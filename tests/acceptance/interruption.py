"""Ctrl-C and SIGTERM at any moment. Scenarios 6 and 7."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path

import samples
from bench import Bench, SkippedError, check, complete, snapshot
from registry import scenario

MOMENTS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.6, 0.9, 1.2, 1.6, 2.0, 2.4, 2.8, 3.3, 4.0, 5.0)
PROMPT = 2.0  # s of computing from the signal to the end: what it takes on a machine of its own


def _computing(pid: int) -> float:
    """Return the seconds of computing of a process up to now; skips where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise SkippedError("there is no /proc here") from None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children() -> float:
    """Return the seconds of computing of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _ends_cleanly(bench: Bench, number: signal.Signals, code: int) -> str:
    """Send a signal after each of MOMENTS; return the slowest end."""
    samples.write_bracket(bench.folder, (300, 200))
    before = snapshot(bench.folder)
    slowest, done = 0.0, 0
    for moment in MOMENTS:
        process = bench.start(("fuse", "a.jpg", "b.jpg", "-q", "--scale", "3", "-o", "out.png"))
        time.sleep(moment)
        spent = _children() + _computing(process.pid)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        slowest = max(slowest, _children() - spent)
        output = bench.folder / "out.png"
        if output.exists():  # it was faster, to the end or to the last step before it
            complete(output)
            output.unlink()
            done += 1
        if process.returncode == 0:
            continue
        # Before the program's first line Python speaks for itself, or the system ends it without a word.
        early = ", in main" not in errors and "Traceback" in errors and moment < 0.3
        early |= process.returncode == -number and not errors
        check(process.returncode == code or early, moment, "s: code", process.returncode, errors[-300:])
        check("Traceback" not in errors or early, moment, "s:", errors[-400:])
        check(snapshot(bench.folder) == before, moment, "s: files changed", snapshot(bench.folder).keys())
    check(slowest <= PROMPT, f"it took {slowest:.1f} s to end")
    return f"{len(MOMENTS)} moments ({done} after the end), slowest end {slowest:.1f} s"


@scenario(6)
def ctrl_c_at_any_moment_ends_cleanly_and_a_batch_keeps_what_is_finished(bench: Bench) -> str:
    told = _ends_cleanly(bench, signal.SIGINT, 130)
    samples.write_folders(bench.folder / "in", 8)
    out = bench.folder / "out"
    process = bench.start(("batch", "in", "-o", "out", "-s", "3"))
    while len(list(out.glob("*.jpg"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    spent = _children() + _computing(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    seconds = _children() - spent
    check(process.returncode == 130, "batch: code", process.returncode, errors[-300:])
    check(seconds <= PROMPT, f"the batch took {seconds:.1f} s to end")
    check("Traceback" not in errors and " done" in errors, errors[-400:])
    finished = list(out.glob("*.jpg"))
    check(2 <= len(finished) < 8, len(finished), "outputs")
    for path in finished:
        complete(path)
    check(not list(out.rglob("*.tmp")), "temporary files", list(out.rglob("*.tmp")))
    return f"{told}; batch: {len(finished)} of 8 kept, ended in {seconds:.1f} s"


@scenario(7)
def sigterm_at_any_moment_ends_cleanly(bench: Bench) -> str:
    return _ends_cleanly(bench, signal.SIGTERM, 143)
