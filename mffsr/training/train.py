"""The training loop: one stage after the other, resumable at any step, on any number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mffsr.device import Runtime
from mffsr.training.batches import FOCUS_SCALES, LR_MARGIN, MARGIN
from mffsr.training.log import COLUMNS
from mffsr.training.meter import Meter, gpu_meter
from mffsr.training.photos import Photos
from mffsr.training.processes import Processes
from mffsr.training.stages import Stage
from mffsr.training.trainer import RunOptions, Trainer, learning_rate, log_file, state_file, weight_file

__all__ = [
    "Report",
    "RunOptions",
    "log_file",
    "patch_needed",
    "state_file",
    "train_stage",
    "weight_file",
    "with_changes",
]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the loop tells every few steps; at step 0 only the scores of the network it begins with."""

    stage: str
    step: int
    steps: int
    loss: float | None  # mean since the last report
    rate: float
    seconds: float  # since the last report, without validation and saving
    images_per_second: float | None
    data_share: float | None  # of that time spent on making batches; None where that is done beside training
    gpu_busy: float | None  # share of that time, as the driver tells it
    scores: Mapping[str, float] | None  # validation, where it was due


def patch_needed(stage: Stage, scale: int) -> int:
    """Return the smallest side of a photo, in pixels, that this stage can cut its patches from."""
    if stage.name == "fapn":
        return (stage.patch + 2 * MARGIN) * FOCUS_SCALES[-1]
    return (stage.patch + 2 * LR_MARGIN) * scale + 2 * MARGIN


def with_changes(
    stage: Stage,
    *,
    steps: int | None = None,
    batch: int | None = None,
    patch: int | None = None,
    rate: float | None = None,
    warmup: int | None = None,
) -> Stage:
    """Return the stage with the given fields replaced, None meaning unchanged."""
    return replace(
        stage,
        steps=stage.steps if steps is None else steps,
        batch=stage.batch if batch is None else batch,
        patch=stage.patch if patch is None else patch,
        rate=stage.rate if rate is None else rate,
        warmup=stage.warmup if warmup is None else warmup,
    )


def train_stage(
    stage: Stage,
    options: RunOptions,
    photos: Photos,
    validation: Photos,
    run: Path,
    runtime: Runtime,
    *,
    initial: Path | None = None,
    fapn: Path | None = None,
    teachers: Sequence[Path] = (),
    resume: bool = False,
    processes: Processes | None = None,
    compiled: bool | None = None,
    validate_every: int = 1000,
    save_every: int = 250,
    report_every: int = 10,
    on_report: Callable[[Report], None] = lambda report: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[Path, int]:
    """Train one stage; return its weight file and the step that it ends with.

    The file is `fapn.safetensors` or `x<scale>.safetensors` in `run`. `initial` starts from given weights:
    what fits is taken, of any scale but in the joint stage. `fapn` is the fixed FAPN of the joint stage,
    `teachers` are weights of the stage `srn` and of its scale, see `mffsr.training.teachers`.
    `resume` goes on from the run's last saved state, exactly. Ends at the next step once `should_stop()` is
    true in any process; the state is saved then. `compiled` None: where that pays, on CUDA. Raises
    TrainingError when the loss is not finite: the last good state is kept.
    """
    processes = processes or Processes()
    with processes.together():
        trainer = Trainer(
            stage,
            options,
            photos,
            validation,
            run,
            runtime,
            initial=initial,
            fapn=fapn,
            teachers=teachers,
            processes=processes,
            compiled=compiled,
        )
        begun = trainer.resume() if resume and trainer.state.exists() else 0
    with gpu_meter(runtime.device) as meter, trainer.working():
        reporter = _Reporter(trainer, on_report, meter)
        every = _Every(validate=validate_every, save=save_every, report=report_every)
        step = _go_on(trainer, reporter, every, begun, should_stop)
    processes.any(False)  # rank 0 has written
    return trainer.weights, step


class _Every(NamedTuple):
    """After how many steps each is due."""

    validate: int
    save: int
    report: int


def _go_on(
    trainer: Trainer, reporter: _Reporter, every: _Every, begun: int, should_stop: Callable[[], bool]
) -> int:
    """Train from the step after `begun` to the stage's last, or until stopped; return the last one done."""
    processes, steps, step = trainer.processes, trainer.stage.steps, begun
    if processes.rank == 0:
        trainer.log.begin(step)
    if step == 0:
        reporter.report(0, validate=True)
    while step < steps and not processes.any(should_stop()):
        reporter.step(step)
        step += 1
        due = step % every.validate == 0 or step == steps
        saving = step % every.save == 0 or due
        if step % every.report == 0 or saving:
            reporter.report(step, validate=due)
        if saving:
            trainer.save(step)
            reporter.restart()
    if step % every.save and step % every.validate and begun < step < steps:  # stopped in between
        if reporter.steps:
            reporter.report(step, validate=False)
        trainer.save(step)
    return step


class _Reporter:
    """Takes the steps, counts the time that they take, and tells of both."""

    def __init__(self, trainer: Trainer, on_report: Callable[[Report], None], meter: Meter | None) -> None:
        self.trainer, self.on_report, self.meter = trainer, on_report, meter
        self.restart()

    def restart(self) -> None:
        """Count time from now on."""
        self.clock, self.data_time, self.steps = time.perf_counter(), 0.0, 0

    def step(self, step: int) -> None:
        """Train one step."""
        begun = time.perf_counter()
        batch = self.trainer.batch(step)
        self.data_time += time.perf_counter() - begun
        self.trainer.step(step, batch)
        self.steps += 1

    def report(self, step: int, *, validate: bool) -> None:
        """Tell of the steps since the last report; raises TrainingError where they went wrong."""
        trainer, stage, first = self.trainer, self.trainer.stage, self.trainer.processes.rank == 0
        loss = trainer.mean_loss(step) if self.steps else None
        elapsed = time.perf_counter() - self.clock
        images = self.steps * stage.batch * trainer.processes.count
        report = Report(
            stage=stage.name,
            step=step,
            steps=stage.steps,
            loss=loss,
            rate=learning_rate(stage, max(0, step - 1)),
            seconds=elapsed,
            images_per_second=images / elapsed if self.steps else None,
            data_share=self.data_time / elapsed if self.steps and not trainer.makes_ahead else None,
            gpu_busy=self.meter.read() if self.meter else None,
            scores=trainer.validate() if validate and first else None,
        )
        if first:
            numbers = {name: getattr(report, name) for name in COLUMNS}
            trainer.log.add(numbers | dict(report.scores or {}))
            if report.scores:
                trainer.log.draw(f"{stage.name} x{trainer.options.scale}" if stage.name != "fapn" else "fapn")
        self.on_report(report)
        self.restart()
