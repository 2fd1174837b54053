"""`mffsr batch --cluster` and `--workers`: what is sent to the workers, and what they tell on the way."""

from __future__ import annotations

import builtins
import os
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mffsr import __version__
from mffsr.batch_cluster import Told, new_run, run_cluster
from mffsr.batch_workers import Stopped, Teller, cluster, threads
from mffsr.cli.batch_worker import Computing, Fuser, Options, load_fuser, map_of, target_of
from mffsr.cli.console import Console, failure_text
from mffsr.cli.outputs import with_preview
from mffsr.errors import ClusterError, MffsrError
from mffsr.text import file_of

if TYPE_CHECKING:
    from mffsr.batch import Outcome
    from mffsr.cli.batch_report import Tally
    from mffsr.photo.brackets import Bracket

__all__ = ["fuse_remotely"]

EVERY = 0.25  # s between two words about the progress of one stage
_busy = threading.Lock()  # a worker does one bracket at a time, however many threads it has
_loaded: dict[Remote, Fuser] = {}  # one at most


def fuse_remotely(
    brackets: Sequence[Bracket],
    options: Options,
    computing: Computing,
    address: str | None,
    *,
    resume: bool,
    tally: Tally,
    console: Console,
) -> None:
    """Do the brackets on a cluster, or, without an address, in `computing.processes` processes here.

    Raises ClusterError where that is not there or not fit, CheckpointError where the weights are not there.
    """
    from mffsr.batch import Claims

    console.message(f"looking for workers at {address}" if address is not None else "starting workers")
    with cluster(address, computing.processes) as client:
        task = _task(brackets, options, computing, resume)
        options.out.mkdir(parents=True, exist_ok=True)
        if options.report is not None:
            options.report.index.parent.mkdir(parents=True, exist_ok=True)
        claims = Claims(brackets)

        def claim(bracket: Bracket) -> None:
            claims.claim(target_of(options, bracket), bracket)
            if (focus_map := map_of(options, bracket)) is not None:
                for path in with_preview(focus_map):
                    claims.claim(path, bracket)

        def progress(number: int, stage: str, done: int, total: int) -> None:
            if console.drawing:
                console.progress(f"Worker {number}", done, total)

        with console.live():
            run_cluster(
                client,
                [_absolute(bracket) for bracket in brackets],
                task,
                claim=claim,
                told=Told(
                    started=tally.started,
                    ended=lambda outcome: tally.ended(_as_given(outcome, brackets, options)),
                    progress=progress,
                    message=console.message,
                    warning=console.warning,
                ),
            )


def _task(brackets: Sequence[Bracket], options: Options, computing: Computing, resume: bool) -> Remote:
    """Return what the workers are to do, all names absolute; raises CheckpointError."""
    from mffsr.checkpoint import load_model, weights_folder

    report = options.report
    parts = load_model(options.scale, computing.weights)[1]
    if any(not part.path.is_relative_to(weights_folder()) for part in parts):
        computing = replace(computing, weights=os.path.abspath(computing.weights))
    return Remote(
        run=new_run(),
        options=replace(
            options,
            out=Path(os.path.abspath(options.out)),
            report=report and replace(report, index=Path(os.path.abspath(report.index))),
        ),
        computing=computing,
        resume=resume,
        version=__version__,
        weights=tuple(part.sha256 for part in parts),
        photo=Path(os.path.abspath(file_of(brackets[0].photos[0]))),
    )


def _absolute(bracket: Bracket) -> Bracket:
    return replace(bracket, photos=[Path(os.path.abspath(photo)) for photo in bracket.photos])


def _as_given(outcome: Outcome, brackets: Sequence[Bracket], options: Options) -> Outcome:
    """Name files as the command line did, not as the workers know them."""
    bracket, out = brackets[outcome.index - 1], options.out
    details = dict(outcome.details)
    if "output" in details:
        details["output"] = str(out / os.path.relpath(details["output"], os.path.abspath(out)))
    if details.get("report") is not None and options.report is not None:
        details["report"] = str(options.report.page(Path(details["output"]), out))
    if "frames" in details:
        pairs = zip(details["frames"], bracket.photos, strict=True)
        details["frames"] = [{**frame, "path": str(photo)} for frame, photo in pairs]
    return replace(outcome, bracket=bracket, details=details)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """What each worker does: see `mffsr.batch_cluster.Task`."""

    run: str
    options: Options
    computing: Computing
    resume: bool
    version: str  # of mffsr
    weights: tuple[str, ...]  # their digests
    photo: Path  # one that every worker must see

    def prepare(self) -> dict[str, str]:
        """Load the model; return device and precision. Raises ClusterError for a worker that is not fit."""
        if __version__ != self.version:
            raise ClusterError(f"has mffsr {__version__}, expected {self.version} as here")
        report = self.options.report
        for path in (self.options.out, self.photo, *([report.index.parent] if report else [])):
            if not path.exists():
                raise ClusterError(f"does not see {path}\nthe folder must have the same name everywhere")
        with _busy:
            fuser = self._fuser()
        return {"device": fuser.runtime.device.type, "precision": fuser.runtime.precision}

    def do(self, bracket: Bracket, *, again: bool) -> Outcome | None:
        """Do a bracket as a batch of one; None where the run was interrupted."""
        from mffsr.batch import run_batch

        outcomes: list[Outcome] = []
        console = RemoteConsole(Teller(self.run))
        with _busy:
            fuser = self._fuser()
            fuser.console = console
            try:
                run_batch(
                    [bracket],
                    fuser,
                    out=self.options.out,
                    options=fuser.deciding(),
                    resume=self.resume or again,
                    ended=outcomes.append,
                    warn=console.warning,
                )
            except Stopped:
                return None
        return replace(outcomes[0], error=_sendable(outcomes[0].error))

    def _fuser(self) -> Fuser:
        """Load the model, once in a process; raises ClusterError where its weights are others."""
        import torch

        torch.set_num_threads(threads())  # of this thread; where Dask starts processes it allows them one
        if self not in _loaded:
            _loaded.clear()
            fuser = load_fuser(self.options, self.computing, Console(quiet=True))
            if tuple(fuser.digests) != self.weights:
                found, expected = (" ".join(d[:16] for d in ds) for ds in (fuser.digests, self.weights))
                raise ClusterError(
                    f"has other weights {self.computing.weights}: {found}, expected {expected}"
                )
            _loaded[self] = fuser
        return _loaded[self]


def _sendable(error: BaseException | None) -> BaseException | None:
    """Return an error that surely can be sent: one of ours or of Python's, else one that tells of it."""
    if error is None:
        return None
    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, MffsrError) and type(error).__name__ not in vars(builtins):
        error = RuntimeError(failure_text(error))
    setattr(error, "__notes__", [f"In the worker:\n{trace}"])  # noqa: B010 - Python 3.10 has no add_note
    return error


class RemoteConsole(Console):
    """What a bracket says in a worker: the client is told, and Stopped raised where it was interrupted."""

    def __init__(self, teller: Teller) -> None:
        super().__init__(quiet=True)
        self._teller = teller
        self._said: tuple[str, float] = ("", 0.0)

    @property
    def drawing(self) -> bool:
        """Progress is always told."""
        return True

    def warning(self, text: str, *, always: bool = False) -> None:
        """Tell of something that the user should look at; with --quiet the client keeps it to itself."""
        self._teller.tell("warning", text)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tell how far a stage is, not too often."""
        now = time.monotonic()
        if done == total or self._said[0] != stage or now - self._said[1] > EVERY:
            self._said = (stage, now)
            self._teller.tell("progress", stage, done, total)
