"""What every scenario has at hand: a folder with a bracket, the program, what may be expected of it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import samples
from numpy.typing import NDArray
from PIL import Image

HERE = Path(__file__).resolve().parent
PROGRAM = Path(sys.executable).with_name("mffsr")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONDONTWRITEBYTECODE": "1"}
LINES = 5  # most lines that a failing run may print
PATIENCE = 600.0  # s for a run that says nothing else
SMALL = (96, 64)


class SkippedError(Exception):
    """A scenario cannot be driven here; the text says why."""


class FailedError(AssertionError):
    """The program did not do what was expected of it."""


def check(condition: object, *told: object) -> None:
    """Fail the scenario unless the condition holds."""
    if not condition:
        raise FailedError(" ".join(str(part) for part in told))


@dataclass(frozen=True, kw_only=True)
class Run:
    """How a run ended."""

    code: int  # negative: the signal it died of
    out: str
    err: str
    seconds: float
    cpu: float  # seconds of computing: what the run would have taken on a machine of its own
    peak: int  # bytes, resident

    @property
    def told(self) -> str:
        """Code and last words, for messages."""
        return f"[code {self.code}: {' / '.join(self.err.strip().splitlines()[-3:])[-300:]}]"


def complete(path: Path) -> tuple[int, int]:
    """Return the size of a picture of which every pixel can be decoded; raises FailedError."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path) as image:
            image.load()
            return image.size
    except Exception as fault:
        raise FailedError(f"{path.name} is no complete picture: {fault}") from fault
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def pixels_of(path: Path) -> NDArray[np.uint8]:
    """Return the pixels of an 8-bit picture."""
    with Image.open(path) as image:
        return np.array(image)


def sha(path: Path) -> str:
    """Return the digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def snapshot(folder: Path) -> dict[str, str]:
    """Return everything below a folder: digests of files, targets of links, kinds of the rest."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace")
        if path.is_symlink():
            found[name] = f"link {os.readlink(path)}"
        elif path.is_file():
            found[name] = sha(path)
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


def leftovers(folder: Path) -> list[str]:
    """Return the names of temporary files below a folder."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*") if path.suffix == ".tmp"]


@dataclass(kw_only=True)
class Bench:
    """A folder of its own for one scenario, with a.jpg and b.jpg in it."""

    folder: Path
    corpus: Path | None = None
    slow: bool = False
    environment: dict[str, str] = field(default_factory=lambda: dict(ENVIRONMENT))

    @property
    def python(self) -> str:
        """The Python that the program is installed for."""
        return sys.executable

    def bundled(self, name: str) -> Path:
        """Return the path of a bundled weight file."""
        code = "from mffsr.checkpoint import weights_folder; print(weights_folder())"
        return Path(self.spawn([self.python, "-c", code]).out.strip()) / f"{name}.safetensors"

    def need_slow(self, minutes: int) -> None:
        """Skip the scenario unless --slow was given."""
        if not self.slow:
            raise SkippedError(f"takes about {minutes} minutes: run with --slow")

    def need_corpus(self) -> Path:
        """Return the folder of foreign test photos; skips the scenario where there is none."""
        if self.corpus is None:
            raise SkippedError("no folder of test photos: give --corpus")
        return self.corpus

    def sub(self, name: str) -> Bench:
        """Return a bench in a folder below this one, with a bracket of its own."""
        folder = self.folder / name
        folder.mkdir()
        for photo in ("a.jpg", "b.jpg"):
            shutil.copy(self.folder / photo, folder)
        return Bench(folder=folder, corpus=self.corpus, slow=self.slow, environment=dict(self.environment))

    def start(
        self, command: Sequence[object], *, before: Sequence[object] = (), **given: object
    ) -> subprocess.Popen[str]:
        """Start the program with the arguments `command`, by way of the command `before`."""
        line = [*map(str, before), str(PROGRAM), *map(str, command)]
        pipe = subprocess.PIPE
        options = {"cwd": self.folder, "env": self.environment, "text": True, "stdout": pipe, "stderr": pipe}
        process: subprocess.Popen[str] = subprocess.Popen(line, **options | given)  # type: ignore[call-overload]
        return process

    def run(self, *command: object, before: Sequence[object] = (), patience: float = PATIENCE) -> Run:
        """Run the program to its end."""
        return self.spawn([*before, PROGRAM, *command], patience=patience)

    def spawn(self, line: Sequence[object], *, patience: float = PATIENCE) -> Run:
        """Run any command to its end; raises FailedError where it takes longer than `patience` seconds."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            started = time.monotonic()
            process = subprocess.Popen(
                [os.fsencode(str(part)) for part in line],
                cwd=self.folder, env=self.environment, stdout=out, stderr=err, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            status, cpu, peak = _wait(process.pid, started + patience)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.monotonic() - started
            out.seek(0)
            err.seek(0)
            told = [stream.read().decode("utf-8", "backslashreplace") for stream in (out, err)]
        if seconds >= patience:
            raise FailedError(f"still running after {patience:.0f} s: {' '.join(map(str, line))[:200]}")
        return Run(code=process.returncode, out=told[0], err=told[1], seconds=seconds, cpu=cpu, peak=peak)

    def fuse(
        self,
        *options: object,
        photos: Sequence[object] = ("a.jpg", "b.jpg"),
        out: str | None = "out.png",
        scale: int = 3,
        before: Sequence[object] = (),
        patience: float = PATIENCE,
    ) -> Run:
        """Run `mffsr fuse` on the bracket, quietly."""
        line: list[object] = ["fuse", *options, "-q", "--scale", scale]
        line += [] if out is None else [f"--output={out}"]
        return self.run(*line, "--", *photos, before=before, patience=patience)

    def good(self, *options: object, **given: object) -> Run:
        """Run `mffsr fuse`, which must succeed."""
        run = self.fuse(*options, **given)  # type: ignore[arg-type]
        check(run.code == 0, "exit code 0 was expected", run.told)
        check("Traceback" not in run.err, run.told)
        return run

    def refused(
        self, run: Callable[[], Run], *words: str, codes: Sequence[int] = (1, 2), within: float = 30.0
    ) -> Run:
        """Do a run that must fail cleanly: code, few lines that say `words`, no file changed or added."""
        before = snapshot(self.folder)
        ended = run()
        check(ended.code in codes, f"exit code {codes} was expected", ended.told)
        check("Traceback" not in ended.err, "traceback", ended.told)
        count = len(ended.err.strip().splitlines())
        check(1 <= count <= LINES, f"{count} lines on stderr", ended.told)
        for word in words:
            check(word in ended.err, f"{word!r} is not said", ended.told)
        check(ended.cpu < within, f"refused only after {ended.cpu:.1f} s", ended.told)
        after = snapshot(self.folder)
        check(
            after == before, "files changed:", {n for n in {*before, *after} if before.get(n) != after.get(n)}
        )
        return ended

    def refuses(
        self, *options: object, words: Sequence[str] = (), codes: Sequence[int] = (1, 2), **given: object
    ) -> Run:
        """Run `mffsr fuse`, which must refuse."""
        return self.refused(lambda: self.fuse(*options, **given), *words, codes=codes)  # type: ignore[arg-type]


def _wait(pid: int, until: float) -> tuple[int, float, int]:
    """Wait for a child; kill it when its time is over. Return its status, computing time and largest size."""
    pause = 0.01
    while True:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            until = float("inf")
        time.sleep(pause)


def new_bench(root: Path, number: int, corpus: Path | None, slow: bool) -> Bench:
    """Make the folder of a scenario with its bracket."""
    folder = root / f"{number:02d}"
    folder.mkdir()
    folder.chmod(0o755)
    samples.write_bracket(folder, SMALL)
    return Bench(folder=folder, corpus=corpus, slow=slow)


def mib(count: int) -> str:
    """Return bytes as text."""
    return f"{count / (1 << 20):.0f} MiB"
