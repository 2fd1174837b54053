"""`mffsr train`: the paper's three stages."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mffsr.cli.console import Console, exit_codes
from mffsr.errors import TrainingError, UsageError

if TYPE_CHECKING:
    from mffsr.training.photos import Photos
    from mffsr.training.stages import Stage
    from mffsr.training.train import Report

__all__ = ["train"]


class Which(str, Enum):
    """What to train."""

    fapn = "fapn"
    srn = "srn"
    joint = "joint"
    all = "all"


class Kind(str, Enum):
    """How low resolution comes about."""

    photo = "photo"
    clean = "clean"
    paper = "paper"


class Attention(str, Enum):
    """Table IV's variants of FAPN's attention."""

    sam_cam = "sam-cam"
    cam_sam = "cam-sam"
    sam = "sam"
    cam = "cam"
    none = "none"


def train(
    which: Annotated[Which, typer.Argument(metavar="STAGE", help="fapn, srn, joint, or all three in turn.")],
    data: Annotated[Path, typer.Option(help="Folder of sharp photographs.")],
    out: Annotated[Path, typer.Option(help="Run folder: weights, resumable state, log.")],
    scale: Annotated[int, typer.Option("-s", "--scale", min=2, max=4, help="Enlargement to train.")] = 2,
    degradation: Annotated[Kind, typer.Option(help="How photos are reduced.")] = Kind.photo,
    validation: Annotated[
        Path | None, typer.Option("--val", help="Folder of photographs to validate on.  [a few of --data]")
    ] = None,
    initial: Annotated[
        Path | None, typer.Option("--init", help="Start from these weights, of any scale.")
    ] = None,
    fapn: Annotated[
        Path | None, typer.Option(help="FAPN weights for the joint stage.  [the run's, or bundled]")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each stage.  [the paper-like schedule]")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples a step.")] = None,
    patch: Annotated[int | None, typer.Option(min=16, help="Low-resolution pixels a side.")] = None,
    rate: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so many minutes; go on with --resume.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where the run in --out stopped, exactly.")] = False,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 1000,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 250,
    affinity: Annotated[bool, typer.Option(help="Table II: affinity perception.")] = True,
    attention: Annotated[Attention, typer.Option(help="Table IV: FAPN's attention.")] = Attention.sam_cam,
    sdfc: Annotated[bool, typer.Option(help="Table II: shallow and deep feature combination.")] = True,
    geb: Annotated[bool, typer.Option(help="Table II: gradient embedding.")] = True,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    preview: Annotated[
        int, typer.Option(min=0, help="Write N synthetic brackets as a contact sheet, and stop.")
    ] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No messages, only errors.")] = False,
    debug: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Train the paper's stages: FAPN, then SRN, then SRN and D2 jointly."""
    console = Console(quiet=quiet)
    with exit_codes(console, debug=debug), _locked(out):
        from mffsr.device import choose
        from mffsr.model import FapnConfig
        from mffsr.training.preview import write_preview
        from mffsr.training.stages import STAGES
        from mffsr.training.train import RunOptions, join_processes, patch_needed, shorten, train_stage

        wanted = [s for s in STAGES if which is Which.all or s.name == which.value]
        stages = [
            shorten(
                s, steps=steps, batch=batch, patch=patch, rate=rate, warmup=min(s.warmup, steps or s.warmup)
            )
            for s in wanted
        ]
        runtime = choose(device, precision)
        processes = join_processes()
        console.quiet = quiet or processes.rank > 0
        console.message(f"device: {runtime.reason}")
        smallest = max(patch_needed(stage, scale) for stage in stages)
        photos, held_out = _photos(data, validation, smallest, runtime.device, console)
        if preview:
            console.result(str(write_preview(photos, out / "preview.png", preview, seed)))
            return
        options = RunOptions(
            scale=scale,
            degradation=degradation.value,
            seed=seed,
            fapn=FapnConfig(affinity=affinity, attention=attention.value),
            gradient_embedding=geb,
            shallow_deep=sdfc,
        )
        deadline = time.monotonic() + 60 * minutes if minutes else None
        stop = _Stop(deadline)
        for stage in stages:
            weights = train_stage(
                stage,
                options,
                photos,
                held_out,
                out,
                runtime,
                initial=_initial(stage, initial, out, scale, which),
                fapn=_guide(fapn, out) if stage.name == "joint" else None,
                resume=resume,
                processes=processes,
                validate_every=validate_every,
                save_every=save_every,
                on_report=lambda report: _report(report, console),
                should_stop=stop,
            )
            if stop.interrupted:
                raise KeyboardInterrupt
            console.result(str(weights))


class _Stop:
    """Whether training should end at the next step: Ctrl-C, SIGTERM or the time is up.

    A second Ctrl-C stops at once; the last saved state stays.
    """

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline
        self.interrupted = False
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: object) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def __call__(self) -> bool:
        return self.interrupted or (self.deadline is not None and time.monotonic() > self.deadline)


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Create the run folder and keep a second training out of it."""
    run.mkdir(parents=True, exist_ok=True)
    lock = (run / ".lock").open("w")
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows
        pass
    except OSError:
        lock.close()
        raise TrainingError(
            f"{run}: another training is running in this folder\nchoose another --out"
        ) from None
    with lock:
        yield


def _photos(
    data: Path, validation: Path | None, smallest: int, device: object, console: Console
) -> tuple[Photos, Photos]:
    """Load the training and the validation photographs."""
    import torch

    from mffsr.training.photos import find_photos, load_photos

    if not isinstance(device, torch.device):
        raise TypeError(type(device))
    paths = find_photos(data)
    if validation is not None:
        held_out = find_photos(validation)
    else:
        held_out = paths[:: max(1, len(paths) // 4)][:4]
        paths = [path for path in paths if path not in held_out] or held_out
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        console.progress("Decoding", done, len(paths))

    photos = load_photos(paths, device, smallest=smallest, progress=count)
    console.message(f"{len(photos)} photographs, {photos.megapixels:.1f} megapixels")
    return photos, load_photos(held_out, device, smallest=96)


def _initial(stage: Stage, given: Path | None, run: Path, scale: int, which: Which) -> Path | None:
    """Return the weights a stage starts from: those asked for, or what the stage before left in the run."""
    own = run / f"x{scale}.safetensors"
    if stage.name == "joint" and (which is Which.all or given is None):
        if not own.exists():
            raise UsageError(
                f"{own}: the joint stage starts from trained SRN weights\ntrain srn first, or use --init"
            )
        return own
    return None if stage.name == "fapn" and which is Which.all else given


def _guide(given: Path | None, run: Path) -> Path:
    from mffsr.checkpoint import weights_folder

    if given is not None:
        return given
    own = run / "fapn.safetensors"
    return own if own.exists() else weights_folder() / "fapn.safetensors"


def _report(report: Report, console: Console) -> None:
    if report.scores:
        scores = ", ".join(f"{name} {value:.4g}" for name, value in report.scores.items())
        console.message(f"{report.stage} {report.step}: loss {report.loss:.5f}, {scores}")
    elif report.step % 50 == 0:
        console.message(
            f"{report.stage} {report.step} of {report.steps}: loss {report.loss:.5f}, "
            f"{report.images_per_second:.1f} patches/s, {report.data_share:.0%} of the time on data"
        )
