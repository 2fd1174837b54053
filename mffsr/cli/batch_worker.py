"""What does one bracket of `mffsr batch`: exactly what `mffsr fuse` does, with the model loaded once."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from mffsr.cli import fuse as fuse_command
from mffsr.cli import fuse_job
from mffsr.cli.batch_report import BracketConsole
from mffsr.cli.console import Console
from mffsr.cli.fuse_job import Depth, Framing, OnExists
from mffsr.cli.outputs import check_outputs, default_suffix
from mffsr.cli.reports import BatchReport, Report, making_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mffsr.batch import Reader
    from mffsr.device import Runtime
    from mffsr.engine import Fusion
    from mffsr.model import JointModel
    from mffsr.photo.brackets import Bracket
    from mffsr.report import Making

__all__ = ["Computing", "Fuser", "Options", "load_fuser", "map_of", "target_of"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all brackets share."""

    out: Path
    template: str
    scale: int
    tile: int | None
    framing: Framing
    depth: Depth
    quality: int
    focus_map: str | None
    on_exists: OnExists
    max_pixels: int  # that a photo may have
    report: BatchReport | None = None


@dataclass(frozen=True, kw_only=True)
class Computing:
    """Where and with what to compute, as it was asked for."""

    device: str
    precision: str
    weights: str
    memory: int | None  # bytes
    processes: int = 1  # that share memory and device


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A fused bracket that is not written yet."""

    job: fuse_job.Job
    fusion: Fusion
    report: Report | None
    started: float
    console: Console


@dataclass
class Fuser:
    """Does one bracket after the other exactly as `mffsr fuse` does: see `mffsr.batch.Worker`."""

    options: Options
    model: JointModel
    runtime: Runtime
    provenance: dict[str, str]
    making: Making
    console: Console

    def __post_init__(self) -> None:
        self.digests = [digest for _, digest in self.making.weights]
        self.max_pixels = self.options.max_pixels

    def deciding(self) -> dict[str, Any]:
        """Return the options that change results, as JSON has them, for --resume."""
        from mffsr import __version__

        options = {
            "version": __version__,
            "weights": self.digests,
            "provenance": self.provenance,
            "device": self.runtime.device.type,
            "precision": self.runtime.precision,
            "scale": self.options.scale,
            **asdict(self.options.framing),
            "depth": self.options.depth.value,
            "quality": self.options.quality,
            "focus_map": self.options.focus_map,
        }
        return dict(json.loads(json.dumps(options)))

    def target(self, bracket: Bracket) -> Path:
        """Return where the photo of a bracket goes."""
        return target_of(self.options, bracket)

    def complete(self, output: Path) -> bool:
        """Return whether the report of a finished photo is there, if one is asked for."""
        from mffsr.report import is_ours

        report = self.options.report
        return report is None or is_ours(report.page(output, self.options.out))

    def compute(self, bracket: Bracket, target: Path, read: Reader, *, begun: Sequence[Path]) -> _Done | None:
        """Check and fuse a bracket; None where the output exists and is to be skipped."""
        started = time.perf_counter()
        options, console = self.options, BracketConsole(self.console, bracket.name)
        on_exists = options.on_exists
        focus_map = map_of(options, bracket)
        if begun:
            on_exists = OnExists.overwrite
            target, focus_map = begun[0], begun[1] if focus_map is not None else None
        for path in (target, focus_map or target):
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            job = fuse_job.prepare(
                list(bracket.photos),
                target,
                scale=options.scale,
                depth=options.depth,
                on_exists=on_exists,
                max_pixels=options.max_pixels,
                framing=options.framing,
                focus_map=focus_map,
                console=console,
            )
        except typer.Exit:
            return None
        report = self._report(job)
        fusion = fuse_command.run_job(
            job,
            self.model,
            self.runtime,
            tile=options.tile,
            provenance=self.provenance,
            console=console,
            read=read,
            report=report,
        )
        return _Done(job=job, fusion=fusion, report=report, started=started, console=console)

    def _report(self, job: fuse_job.Job) -> Report | None:
        """Return the report of a bracket, if one was asked for; PhotoError where it cannot be written."""
        from mffsr.photo import resolve_target

        asked = self.options.report
        if asked is None:
            return None
        page = asked.page(job.output, self.options.out)
        page.parent.mkdir(parents=True, exist_ok=True)
        check_outputs([*job.outputs, page], job.photos)
        overwrite = self.options.on_exists is OnExists.overwrite or asked.may_replace(page)
        resolve_target(page, overwrite=overwrite)
        return Report(page, job.scale, self.making, overwrite=overwrite)

    def files(self, result: _Done) -> list[Path]:
        """Return what `write` writes."""
        return result.job.outputs

    def write(self, result: _Done) -> dict[str, Any]:
        """Write a fused bracket and return what --json tells of it."""
        fuse_command.write_result(result.job, result.fusion, self.options.quality, result.console)
        seconds = time.perf_counter() - result.started
        told = fuse_command.describe(result.job, result.fusion, self.runtime, seconds, result.console)
        if result.report is not None:
            result.report.write(told, result.console)
        return told


def target_of(options: Options, bracket: Bracket) -> Path:
    """Return where the photo of a bracket goes; raises PhotoError where its photos cannot be read."""
    from mffsr.batch_plan import inside, target_name
    from mffsr.photo import read_header

    deepest = max(read_header(photo).bit_depth for photo in bracket.photos)
    extension = default_suffix(Path(bracket.photos[0]), fuse_job.wanted_depth(options.depth, deepest))
    return inside(options.out, target_name(options.template, bracket, options.scale, extension))


def map_of(options: Options, bracket: Bracket) -> Path | None:
    """Return where the focus map of a bracket goes, if one was asked for."""
    from mffsr.batch_plan import inside, target_name

    if options.focus_map is None:
        return None
    plain = replace(bracket, output=None)
    return inside(options.out, target_name(options.focus_map, plain, options.scale, ".png"))


def load_fuser(options: Options, computing: Computing, console: Console) -> Fuser:
    """Load the model once."""
    from mffsr.checkpoint import load_model, provenance
    from mffsr.device import choose

    runtime = choose(computing.device, computing.precision, computing.memory)
    share = computing.processes
    runtime = replace(runtime, memory=runtime.memory // share, limit=runtime.limit // share)
    console.message(f"device: {runtime.reason}")
    model, parts = load_model(options.scale, computing.weights)
    model = runtime.place(model)
    making = making_of(options.report.command if options.report else "", runtime, parts)
    return Fuser(options, model, runtime, provenance(parts), making, console)
