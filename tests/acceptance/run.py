"""Drive the installed program through fires and floods, as a user would, and print how it fares.

    python tests/acceptance/run.py [--only 12,13,60-65] [--corpus DIR] [--out TABLE] [--slow]

Every scenario is a function in one of the files beside this one; its name says what it does. It has a folder
of its own with a small generated bracket, and runs the `mffsr` of the Python that runs this script. What the
machine does not allow (mounting, cgroups, tracing) is skipped with the reason. Exit status 1 if one failed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import batches
import checkpoints
import frames
import inputs
import interruption
import limits
import trainings
import writing
from bench import PROGRAM, FailedError, SkippedError, new_bench
from registry import SCENARIOS, Scenario

MODULES = (writing, interruption, inputs, frames, limits, checkpoints, batches, trainings)
CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"


def numbers(text: str) -> set[int]:
    """Return the numbers of something like 1,4,10-12."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def attempt(one: Scenario, root: Path, corpus: Path | None, slow: bool) -> tuple[str, str]:
    """Drive one scenario; return what became of it, and the figure or reason."""
    try:
        return "passed", one.drive(new_bench(root, one.number, corpus, slow))
    except SkippedError as reason:
        return "skipped", str(reason)
    except FailedError as fault:
        return "FAILED", str(fault)
    except Exception:  # noqa: BLE001 - a fault of this script is no pass either
        return "FAILED", "the driver broke: " + " / ".join(traceback.format_exc().splitlines()[-4:])


def main() -> int:
    """Drive the scenarios asked for and print the table."""
    # What a shell starts in the background ignores Ctrl-C, and so would the programs that this one starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", type=numbers, default=set(SCENARIOS), help="such as 1,4,10-12")
    parser.add_argument(
        "--corpus", type=Path, default=CORPUS, help="folder of test photos with manifest.json"
    )
    parser.add_argument("--out", type=Path, help="also write the table into this file")
    parser.add_argument("--slow", action="store_true", help="also what takes many minutes")
    options = parser.parse_args()
    if not PROGRAM.exists():
        parser.error(f"{PROGRAM} is not there: run this with the Python that mffsr is installed for")
    corpus = options.corpus.resolve() if (options.corpus / "manifest.json").exists() else None
    lines = []
    tally = dict.fromkeys(("passed", "FAILED", "skipped"), 0)
    with tempfile.TemporaryDirectory(prefix="mffsr-acceptance-") as name:
        Path(name).chmod(0o755)
        for one in sorted(SCENARIOS.values()):
            if one.number not in options.only:
                continue
            started = time.monotonic()
            outcome, told = attempt(one, Path(name), corpus, options.slow)
            tally[outcome] += 1
            seconds = time.monotonic() - started
            lines.append(f"{one.number:>2}  {outcome:<7}  {one.name}: {told}  ({seconds:.0f} s)")
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
    lines.append(f"{tally['passed']} passed, {tally['FAILED']} failed, {tally['skipped']} skipped")
    sys.stdout.write(lines[-1] + "\n")
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if tally["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
