"""The stages of one `mffsr train`: what each starts from, when it ends, and what is told of its course."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from mffsr.cli.console import Console, Terminated, terminating
from mffsr.errors import UsageError

if TYPE_CHECKING:
    from mffsr.device import Runtime
    from mffsr.training.photos import Photos
    from mffsr.training.processes import Processes
    from mffsr.training.stages import Stage
    from mffsr.training.train import Report, RunOptions

__all__ = ["Run", "Which", "check_weights"]


class Which(str, Enum):
    """What to train."""

    fapn = "fapn"
    srn = "srn"
    joint = "joint"
    all = "all"


class Run:
    """The stages of one command, one after the other."""

    def __init__(
        self,
        out: Path,
        which: Which,
        options: RunOptions,
        *,
        photos: Photos,
        held_out: Photos,
        runtime: Runtime,
        processes: Processes,
        console: Console,
    ) -> None:
        self.out, self.which, self.options = out, which, options
        self.photos, self.held_out = photos, held_out
        self.runtime, self.processes, self.console = runtime, processes, console

    def stages(
        self,
        stages: Sequence[Stage],
        *,
        initial: Path | None,
        fapn: Path | None,
        teachers: Sequence[Path],
        minutes: float | None,
        resume: bool,
        compiled: bool | None,
        validate_every: int,
        save_every: int,
    ) -> None:
        """Train the stages; raises KeyboardInterrupt or Terminated once the state is saved."""
        from mffsr.training.train import state_file, train_stage

        console = self.console
        stop = _Stop(time.monotonic() + 60 * minutes if minutes is not None else None)
        for stage in stages:
            size = f"{stage.patch}×{stage.patch}"
            console.message(f"{stage.name}: {stage.steps} steps of {stage.batch} patches of {size} pixels")
            state = state_file(self.out, stage, self.options.scale)
            begins_with = _initial(stage.name, initial, self.out, self.options.scale, self.which)
            guide = _guide(fapn, self.out) if stage.name == "joint" else None
            if resume:  # a slip in --out would else begin days of work anew, and say nothing
                found = f"goes on from {state}" if state.exists() else f"there is no {state}, it begins anew"
                console.message(f"{stage.name}: {found}")
            if begins_with is not None and not (resume and state.exists()):
                console.message(f"{stage.name}: begins with {begins_with}")
            if guide is not None:
                console.message(f"{stage.name}: finds the focus with {guide}")
            with console.live():
                weights, step = train_stage(
                    stage,
                    self.options,
                    self.photos,
                    self.held_out,
                    self.out,
                    self.runtime,
                    initial=begins_with,
                    fapn=guide,
                    teachers=() if self.which is Which.all and stage.name != "srn" else teachers,
                    resume=resume,
                    processes=self.processes,
                    compiled=compiled,
                    validate_every=validate_every,
                    save_every=save_every,
                    on_report=_Told(console),
                    should_stop=stop,
                )
            if step < stage.steps:
                kept = f"its state is kept in {self.out}, go on with --resume" if step else "nothing to keep"
                console.message(f"{stage.name} stopped after step {step} of {stage.steps}: {kept}")
                console.kept = step > 0
                break
            if self.processes.rank == 0:
                console.result(str(weights))
        self.processes.leave()
        stop.leave()


class _Stop:
    """Whether training should end at the next step: Ctrl-C, SIGTERM, SIGHUP or the time is up.

    A second signal stops at once; what was saved last stays.
    """

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.signal: int | None = None
        with contextlib.suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGINT, self._interrupt)
            for number in terminating():
                signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, frame: object) -> None:
        again = self.signal is not None
        self.signal = number
        if again:
            self.leave()

    def leave(self) -> None:
        """Raise what the signal that came, if any, stands for."""
        if self.signal is not None:
            raise KeyboardInterrupt if self.signal == signal.SIGINT else Terminated

    def __call__(self) -> bool:
        return self.signal is not None or (self.deadline is not None and time.monotonic() > self.deadline)


class _Told:
    """Tells of a stage's course: a bar where one can be drawn, lines every so often and at validations."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.begun: tuple[float, int] | None = None
        self.last = time.monotonic()
        self.busy: float | None = None

    def __call__(self, report: Report) -> None:
        """Take one report of the loop."""
        now = time.monotonic()
        self.begun = self.begun or (now, report.step)
        self.busy = self.busy if report.gpu_busy is None else report.gpu_busy
        if self.console.drawing:
            self.console.progress(f"Training {report.stage}", report.step, report.steps)
        every = 60 if self.console.drawing else 10  # seconds
        if not report.scores and report.step < report.steps and now - self.last < every:
            return
        self.last = now
        parts = [] if report.loss is None else [f"loss {report.loss:.5f}"]
        parts += [f"{name} {value:.4g}" for name, value in (report.scores or {}).items()]
        if report.images_per_second is not None:
            parts.append(f"{report.images_per_second:.1f} patches/s")
        if report.data_share is not None:
            parts.append(f"{report.data_share:.0%} of it making data")
        if self.busy is not None:
            parts.append(f"GPU {self.busy:.0%} busy")
        if report.step > self.begun[1] and report.step < report.steps and not self.console.drawing:
            rate = (now - self.begun[0]) / (report.step - self.begun[1])
            parts.append(f"{_duration(rate * (report.steps - report.step))} left")
        self.console.message(f"{report.stage} {report.step} of {report.steps}: {', '.join(parts)}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def check_weights(
    which: Which, run: Path, scale: int, *, initial: Path | None, fapn: Path | None, teachers: Sequence[Path]
) -> None:
    """Refuse weights that are not there, or of another kind or scale, before anything is read or trained.

    Raises UsageError or CheckpointError.
    """
    from mffsr.checkpoint import read_design

    if teachers and which not in (Which.srn, Which.all):
        raise UsageError(f"--teacher: teachers teach srn alone, not {which.value}")
    if which is Which.joint:
        initial, fapn = _initial(which.value, initial, run, scale, which), _guide(fapn, run)
    if initial is not None:
        read_design(
            initial,
            kind="fapn" if which is Which.fapn else "fn",
            scale=scale if which is Which.joint else None,
        )
    if fapn is not None:
        read_design(fapn, kind="fapn")
    for teacher in teachers:
        read_design(teacher, kind="fn", scale=scale)


def _initial(stage: str, given: Path | None, run: Path, scale: int, which: Which) -> Path | None:
    """Return the weights a stage starts from: those asked for, or what the stage before left in the run."""
    own = run / f"x{scale}.safetensors"
    if stage == "joint" and (which is Which.all or given is None):
        if not own.exists():
            raise UsageError(
                f"{own}: the joint stage starts from trained SRN weights\ntrain srn first, or use --init"
            )
        return own
    return None if stage == "fapn" and which is Which.all else given


def _guide(given: Path | None, run: Path) -> Path:
    from mffsr.checkpoint import weights_folder

    if given is not None:
        return given
    own = run / "fapn.safetensors"
    return own if own.exists() else weights_folder() / "fapn.safetensors"
