"""What the user sees: messages and progress on stderr, results on stdout, exit codes.

0 all done · 1 something could not be done · 2 usage, or nothing to do · 130 Ctrl-C · 143 SIGTERM, SIGHUP
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import typer

from mffsr.errors import MffsrError, UsageError, is_out_of_memory
from mffsr.text import visible

__all__ = ["Console", "Terminated", "exit_codes", "failure_text", "terminating"]

STAGES = {
    "brackets": "Brackets",
    "read": "Reading",
    "align": "Registering",
    "focus": "Finding focus",
    "enlarge": "Enlarging",
}
LINES = 5  # most lines that a failure prints
LONGEST = 300  # characters of a message that is not ours
AGAIN = 0.02  # s until a signal that nobody heard is repeated


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds like Ctrl-C, so that temporary files are removed."""


def terminating() -> list[int]:
    """Return the signals that terminate: SIGTERM and, unless it is ignored as under nohup, SIGHUP."""
    hangup: int | None = getattr(signal, "SIGHUP", None)  # the terminal was closed; not on Windows
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return [signal.SIGTERM]
    return [signal.SIGTERM, hangup]


class _Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into exceptions; remembers them, as a library may raise its own."""

    def __init__(self) -> None:
        self.last: int | None = None
        self._replaced, sys.unraisablehook = sys.unraisablehook, self._unheard
        self._handlers: dict[int, Any] = {}
        with contextlib.suppress(ValueError):  # not the main thread
            for number in terminating():
                self._handlers[number] = signal.signal(number, self._take)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._take)

    def restore(self) -> None:
        """Let signals do what they did before: nobody would catch an exception any more."""
        sys.unraisablehook = self._replaced
        for number, handler in self._handlers.items():
            if handler is not None:  # one that is not Python's cannot be put back
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.last = number
        if _loading("torch"):  # an exception there would abort the process; nothing has been written yet
            with contextlib.suppress(OSError):  # the terminal is gone
                os.write(2, b"error: interrupted\n" if number == signal.SIGINT else b"error: terminated\n")
            os._exit(130 if number == signal.SIGINT else 143)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def _unheard(self, raised: sys.UnraisableHookArgs) -> None:
        """Ask once more, a little later: an exception out of a destructor or a callback ends nothing."""
        if self.last is not None and isinstance(raised.exc_value, KeyboardInterrupt | Terminated):
            threading.Timer(AGAIN, signal.raise_signal, (self.last,)).start()
        else:
            self._replaced(raised)


def _loading(name: str) -> bool:
    """Return whether a module is being imported at this moment."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def printable(text: str) -> str:
    """Return text with control characters and lone surrogates escaped: file names may hold anything."""
    encoding = sys.stderr.encoding or "utf-8"
    return visible(text).encode(encoding, "backslashreplace").decode(encoding)


class Console:
    """The terminal of one command."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self.warnings: list[str] = []
        self.unprinted = False  # results could not be printed
        self.kept = False  # what is unfinished was saved, to be gone on with
        self._live: Any = None
        self._tasks: dict[str, Any] = {}
        self._last: dict[str, float] = {}

    @property
    def drawing(self) -> bool:
        """Whether progress bars are being drawn."""
        return self._live is not None

    def message(self, text: str, *, always: bool = False) -> None:
        """Say something on stderr, unless --quiet."""
        if always or not self.quiet:
            self._write(text)

    def warning(self, text: str, *, always: bool = False) -> None:
        """Say something that the user should look at; it is also kept for --json.

        `always`: even with --quiet, as what the exit code tells of needs its cause.
        """
        self.warnings.append(text)
        if always or not self.quiet:
            self._write(f"warning: {text}")

    def error(self, text: str) -> None:
        """Say why the command fails, in at most five lines."""
        lines = printable(text).splitlines()[:LINES]
        self._write("\n".join([f"error: {lines[0] if lines else text}", *lines[1:]]))

    def result(self, text: str, data: Any = None) -> None:
        """Print the result on stdout: `data` as JSON with --json, else `text`.

        Where that fails, as on a full disk, work goes on all the same; the exit code will tell.
        """
        out = text
        if self.as_json:
            out = json.dumps(data, ensure_ascii=False)
            if any("\ud800" <= c <= "\udfff" for c in out):  # a name that is not UTF-8
                out = json.dumps(data)
        try:
            self._print(out + "\n")
            sys.stdout.flush()
        except OSError as error:
            if not isinstance(error, BrokenPipeError):  # else nobody listens, which is no fault
                self.unprinted = True
                self.warning(f"results cannot be printed: {failure_text(error)}", always=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except UnicodeEncodeError:
            sys.stdout.write(out.encode("ascii", "backslashreplace").decode() + "\n")

    def _print(self, out: str) -> None:
        """Write to stdout: names fit to be seen on a terminal, and byte for byte as they are elsewhere."""
        stream = getattr(sys.stdout, "buffer", None)
        if sys.stdout.isatty():
            sys.stdout.write(out if self.as_json else printable(out))
        elif self.as_json or stream is None:
            sys.stdout.write(out.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"))
        else:
            sys.stdout.flush()
            stream.write(os.fsencode(out))

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show how far a stage is: a bar with ETA on a terminal, a few plain lines elsewhere."""
        if self.quiet:
            return
        label = STAGES.get(stage, stage)
        if self._live is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._live.add_task(label, total=total, completed=done)
            self._live.update(self._tasks[stage], completed=done, total=total)
            return
        now = time.monotonic()
        if done == total or now - self._last.setdefault(stage, now) > 10:
            self._last[stage] = now
            self._write(f"{label}: {done} of {total}")

    def begin_again(self, *, but: str) -> None:
        """Set all bars back, but one: the stages begin again, for another photo."""
        for stage, task in self._tasks.items():
            if stage != but:
                self._live.reset(task)

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Draw progress bars while the block runs, where stderr is a terminal that can."""
        if self.quiet or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            yield
            return
        import rich.console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        screen = rich.console.Console(stderr=True)
        columns = (
            TextColumn("{task.description:<13}", markup=False),
            BarColumn(bar_width=max(10, min(60, screen.width - 36))),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        # Results are no part of the display, unless both go to the same terminal.
        with Progress(*columns, console=screen, redirect_stdout=sys.stdout.isatty()) as live:
            self._live = live
            try:
                yield
            finally:
                self._live, self._tasks = None, {}

    def _write(self, text: str) -> None:
        text = printable(text)
        with contextlib.suppress(BrokenPipeError, OSError):
            if self._live is not None:
                self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                sys.stderr.write(text + "\n")
                sys.stderr.flush()


@contextlib.contextmanager
def exit_codes(console: Console, *, debug: bool = False) -> Iterator[None]:
    """Turn every way a command can end into its message and exit code."""
    signals = _Signals()
    try:
        yield
        if console.unprinted:
            raise typer.Exit(1)
    except UsageError as error:
        console.error(str(error))
        raise typer.Exit(2) from None
    except MffsrError as error:
        if debug:
            raise
        console.error(str(error))
        raise typer.Exit(1) from None
    except (KeyboardInterrupt, Terminated) as error:
        raise _interrupted(console, isinstance(error, Terminated)) from None
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except Exception as error:
        if signals.last is not None:
            raise _interrupted(console, signals.last != signal.SIGINT) from None
        if debug:
            raise
        console.error(failure_text(error))
        raise typer.Exit(1) from None
    finally:
        signals.restore()


def _interrupted(console: Console, terminated: bool) -> typer.Exit:
    """Say so, and return how to leave."""
    left = "" if console.kept else "; nothing unfinished was left behind"
    console.error(f"{'terminated' if terminated else 'interrupted'}{left}")
    return typer.Exit(143 if terminated else 130)


def failure_text(error: BaseException) -> str:
    """Return what to say of an error: the text of our own, the system's words, or at least its kind."""
    if isinstance(error, MffsrError):
        return str(error)
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or str(error) or type(error).__name__}"
    text = " ".join(str(error).split())[:LONGEST]
    if is_out_of_memory(error):
        return "not enough memory\nclose other programs, or use a smaller --tile (train: --batch or --patch)"
    if isinstance(error, NotImplementedError) and "MPS" in text:
        return f"{text}\nset PYTORCH_ENABLE_MPS_FALLBACK=1, or use --device cpu"
    return f"{type(error).__name__}: {text}\nthis should not happen; --debug shows where it did"
