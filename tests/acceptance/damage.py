"""Reads photos that were damaged on purpose, in a process of its own, so that a crash is seen and survived.

    python damage.py FILE flips COUNT | cuts     one line for each: what was done, what came of it, seconds

As a script it is the process that reads. `flip_bits` and `cut` start it, and start it again past a crash.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SLOWEST = 10.0  # s for one file


class Tally(NamedTuple):
    """What became of the damaged versions of one file."""

    tried: int
    accepted: list[str]  # how they were damaged
    broken: list[str]  # those that a crash, a foreign error or a long wait came of
    slowest: float


def damaged(whole: bytes, how: str) -> bytes:
    """Return a file with one bit flipped ("flip N", of a random place) or cut ("cut N" per cent)."""
    kind, number = how.split()
    if kind == "cut":
        return whole[: len(whole) * int(number) // 100]
    place = random.Random(int(number)).randrange(len(whole) * 8)
    changed = bytearray(whole)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def plan(kind: str, count: int) -> list[str]:
    """Return the damages to try."""
    return [f"flip {n}" for n in range(count)] if kind == "flips" else [f"cut {n}" for n in range(1, 100)]


def try_all(path: Path, kind: str, count: int = 200) -> Tally:
    """Let the reader read every damaged version of a file."""
    todo, accepted, broken = plan(kind, count), [], []
    tried, slowest = len(todo), 0.0
    while todo:
        line = [sys.executable, __file__, str(path), *todo]
        with tempfile.TemporaryFile() as errors:
            reader = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=errors)
            while todo:
                answer = _line(reader)
                if answer is None:
                    broken.append(f"{todo.pop(0)}: {_end(reader)}")
                    break
                how, outcome, seconds = answer.split("\t")
                todo.remove(how)
                slowest = max(slowest, float(seconds))
                if outcome == "accepted":
                    accepted.append(how)
                elif outcome != "refused":
                    broken.append(f"{how}: {outcome}")
            reader.kill()
            reader.wait()
    return Tally(tried, accepted, broken, slowest)


def _line(reader: subprocess.Popen[bytes]) -> str | None:
    """Return the next line of the reader, None where it ended or says nothing for too long."""
    assert reader.stdout is not None
    until = time.monotonic() + 6 * SLOWEST  # of which it needs some for starting
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([reader.stdout], [], [], max(0.0, until - time.monotonic()))
        part = os.read(reader.stdout.fileno(), 1) if ready else b""
        if not part:
            return None
        text += part
    return text.decode().rstrip("\n")


def _end(reader: subprocess.Popen[bytes]) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return f"the reader ended with {reader.wait(1)}"
    return "the reader hangs"


def _read(path: Path) -> str:
    """Return "accepted", "refused", or what is wrong with how it was refused."""
    from mffsr.errors import PhotoError
    from mffsr.photo import read_photo

    try:
        read_photo(path)
    except PhotoError as fault:
        told = str(fault)
        return "refused" if str(path) in told and "\n" not in told else f"refused badly: {told!r}"
    except BaseException as fault:  # noqa: BLE001 - any other error is what is looked for
        return f"{type(fault).__name__}: {' '.join(str(fault).split())[:100]}"
    return "accepted"


def main() -> None:
    """Read a file, damaged in every way that is asked for."""
    source, whole = Path(sys.argv[1]), Path(sys.argv[1]).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"damaged{source.suffix}"
        for how in sys.argv[2:]:
            path.write_bytes(damaged(whole, how))
            started = time.process_time()
            outcome = _read(path)
            seconds = time.process_time() - started
            outcome = outcome if seconds <= SLOWEST else f"took {seconds:.0f} s"
            sys.stdout.write(f"{how}\t{outcome}\t{seconds:.3f}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
