"""`mffsr train`: the paper's three stages."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mffsr.cli import options as opt
from mffsr.cli.console import Console, exit_codes
from mffsr.cli.train_run import Run, Which, check_weights
from mffsr.errors import TrainingError, UsageError
from mffsr.limits import SCALES

if TYPE_CHECKING:
    from mffsr.device import Runtime
    from mffsr.training.photos import Photos
    from mffsr.training.processes import Processes
    from mffsr.training.stages import Stage

__all__ = ["train"]


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
    scale: Annotated[
        int,
        typer.Option(
            "-s",
            "--scale",
            metavar="|".join(map(str, SCALES)),
            callback=opt.one_of(*SCALES),
            help="Enlargement to train.",
        ),
    ] = 2,
    degradation: Annotated[Kind, typer.Option(help="How photos are reduced.")] = Kind.photo,
    validation: Annotated[
        Path | None,
        typer.Option("--val", help="Folder of photographs to validate on, 24 at most.  [a few of --data]"),
    ] = None,
    initial: Annotated[
        Path | None, typer.Option("--init", help="Start from these weights, of any scale.")
    ] = None,
    fapn: Annotated[
        Path | None, typer.Option(help="FAPN weights for the joint stage.  [the run's, or bundled]")
    ] = None,
    teachers: Annotated[
        list[Path] | None,
        typer.Option("--teacher", help="Weights of this scale to learn from as well (srn; repeatable)."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of each stage.  [the paper-like schedule]")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per step and process.")] = None,
    patch: Annotated[int | None, typer.Option(min=16, help="Low-resolution pixels a side.")] = None,
    rate: Annotated[float | None, typer.Option(callback=opt.positive, help="Highest learning rate.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")] = 0,
    minutes: Annotated[
        float | None,
        typer.Option(callback=opt.positive, help="Stop after so many minutes; go on with --resume."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where the run in --out stopped, exactly.")] = False,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations.")] = 1000,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between saved states.")] = 250,
    affinity: Annotated[
        bool, typer.Option(help="Affinity perception; switch off for Table II's ablation.")
    ] = True,
    attention: Annotated[
        Attention, typer.Option(help="FAPN's attention; the others are Table IV's ablations.")
    ] = Attention.sam_cam,
    sdfc: Annotated[
        bool, typer.Option(help="Shallow and deep feature combination; switch off for Table II's ablation.")
    ] = True,
    geb: Annotated[bool, typer.Option(help="Gradient embedding; switch off for Table II's ablation.")] = True,
    device: opt.Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    compiled: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="torch.compile.  [on CUDA]")
    ] = None,
    preview: Annotated[
        int, typer.Option(min=0, help="Write N synthetic brackets as a contact sheet, and stop.")
    ] = 0,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Train the paper's stages: FAPN, then SRN, then SRN and D2 jointly."""
    console = Console(quiet=quiet)
    with exit_codes(console, debug=debug):
        from mffsr.model import FapnConfig
        from mffsr.training.photos import REDUCED
        from mffsr.training.processes import join
        from mffsr.training.stages import STAGES
        from mffsr.training.train import RunOptions, with_changes

        stages = [
            with_changes(
                s, steps=steps, batch=batch, patch=patch, rate=rate, warmup=min(s.warmup, steps or s.warmup)
            )
            for s in STAGES
            if which is Which.all or s.name == which.value
        ]
        options = RunOptions(
            scale=scale,
            degradation=degradation.value,
            seed=seed,
            fapn=FapnConfig(affinity=affinity, attention=attention.value),
            gradient_embedding=geb,
            shallow_deep=sdfc,
        )
        sheet = out / "preview.png"
        _check_out(out, data, validation)
        runtime = _runtime(device, precision)
        processes = join(runtime.device)
        console.quiet = quiet or processes.rank > 0
        console.message(f"device: {runtime.reason}")
        with processes.together():
            if not preview:
                check_weights(which, out, scale, initial=initial, fapn=fapn, teachers=teachers or [])
            paths = _find(data, validation, console)
        with _locked(out, processes):
            with processes.together(), console.live():
                if not preview:
                    _check_folder(out, stages, scale, resume=resume)
                elif sheet.exists():
                    raise UsageError(f"{sheet}: exists already\nmove it away, or choose another --out")
                reduced = () if preview else REDUCED  # its pictures are as large as the smallest allows
                photos, held_out = _load(*paths, stages, scale, runtime, console, reduced=reduced)
            if preview:
                from mffsr.training.preview import write_preview

                console.result(str(write_preview(photos, sheet, preview, seed)))
                return
            run = Run(
                out,
                which,
                options,
                photos=photos,
                held_out=held_out,
                runtime=runtime,
                processes=processes,
                console=console,
            )
            run.stages(
                stages,
                initial=initial,
                fapn=fapn,
                teachers=teachers or [],
                minutes=minutes,
                resume=resume,
                compiled=compiled,
                validate_every=validate_every,
                save_every=save_every,
            )


def _runtime(device: str, precision: str) -> Runtime:
    """Choose device and precision; under torchrun each process takes the GPU of its own number."""
    import torch

    from mffsr.device import choose

    local = os.environ.get("LOCAL_RANK")
    if local is not None and device in ("auto", "cuda") and torch.cuda.is_available():
        device = f"cuda:{local}"
    runtime = choose(device, precision)
    if runtime.dtype == torch.float16:
        if precision != "auto":
            raise UsageError("precision fp16: gradients would vanish in it\nuse bf16, fp32 or auto to train")
        runtime = choose(device, "fp32")
    return runtime


@contextmanager
def _locked(run: Path, processes: Processes) -> Iterator[None]:
    """Create the run folder and keep a second training out of it; the first process does so for all."""
    with contextlib.ExitStack() as held:
        with processes.together():
            if processes.rank == 0:
                held.enter_context(_lock(run))
                for left in run.glob(".mffsr-*.tmp"):  # of a run that was killed while it wrote
                    left.unlink(missing_ok=True)
        yield


@contextmanager
def _lock(run: Path) -> Iterator[None]:
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(
                f"{run}: another training is running in this folder\nchoose another --out"
            ) from None
        except (ImportError, OSError):  # Windows, or a file system without locks
            pass
        yield


def _check_out(out: Path, data: Path, validation: Path | None) -> None:
    """Refuse a run folder that is none, or one among photographs, of which its pictures would be some."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is no folder\nchoose another --out")
    run = Path(os.path.realpath(out))
    for folder in (data, validation):
        if folder is None:
            continue
        if Path(os.path.realpath(folder)) in (run, *run.parents):  # sub-folders are read as well
            raise UsageError(
                f"{out}: is or lies in {folder}, whose photographs are read: its curves would be some\n"
                "choose another --out"
            )


def _check_folder(run: Path, stages: Sequence[Stage], scale: int, *, resume: bool) -> None:
    """Refuse to overwrite a run that is there."""
    from mffsr.training.train import log_file, state_file, weight_file

    for stage in stages:
        state, weights = state_file(run, stage, scale), weight_file(run, stage, scale)
        if state.exists() and not resume:
            raise UsageError(
                f"{state}: this folder holds a training of {stage.name} already\n"
                "go on with it by --resume, or choose another --out"
            )
        if stage.name != "joint" and weights.exists() and not state.exists():  # joint begins with them
            raise UsageError(
                f"{weights}: trained weights without {state.name}, which training would replace\n"
                "move them away, or choose another --out"
            )
        log = log_file(run, stage, scale)
        for path in (log, log.with_suffix(".png")):
            if path.exists() and not state.exists() and not resume:
                raise UsageError(
                    f"{path}: a log without {state.name}, which training would replace\n"
                    "begin it anew by --resume, move it away, or choose another --out"
                )
        if stage.name == "srn" and state.exists():
            _check_joint(run, stage, scale)


def _check_joint(run: Path, srn: Stage, scale: int) -> None:
    """Refuse to go on with an unfinished SRN once the joint stage has begun: both write the same weights."""
    from mffsr.checkpoint import read_header
    from mffsr.training.stages import STAGES
    from mffsr.training.state import read_info
    from mffsr.training.train import state_file, weight_file

    joint, weights = state_file(run, STAGES[-1], scale), weight_file(run, srn, scale)
    info = read_info(state_file(run, srn, scale))
    step, steps = int(info["step"]), int(info["stage"]["steps"])
    if step >= steps:
        return
    if joint.exists() or (weights.exists() and read_header(weights).get("stage") == "joint"):
        raise UsageError(
            f"{weights}: trained jointly since srn stopped after step {step} of {steps}, and srn would "
            "replace it\n"
            f"train joint with --resume, or move it and {joint.name} away, or choose another --out"
        )


def _find(data: Path, validation: Path | None, console: Console) -> tuple[list[Path], list[Path]]:
    """List the photographs to train on and those to validate on, none of them in both lists.

    Raises UsageError for too few.
    """
    from mffsr.training.photos import FEWEST, find_photos, hold_out
    from mffsr.training.validate import MOST

    paths = find_photos(data, FEWEST)
    if validation is None:
        return hold_out(paths)
    held_out = find_photos(validation)  # which may lie below `data`
    apart = {os.path.realpath(path) for path in held_out}
    paths = [path for path in paths if os.path.realpath(path) not in apart]
    if not paths:
        raise UsageError(f"{data}: all of its photographs are validated on\nchoose another --val")
    if len(held_out) > MOST:
        console.message(f"{validation}: the first {MOST} of {len(held_out)} photographs are validated on")
        held_out = held_out[:MOST]
    return paths, held_out


def _load(
    paths: Sequence[Path],
    held_out: Sequence[Path],
    stages: Sequence[Stage],
    scale: int,
    runtime: Runtime,
    console: Console,
    *,
    reduced: Sequence[float],
) -> tuple[Photos, Photos]:
    """Load the training and the validation photographs, the former in so many `reduced` sizes as well."""
    from mffsr.training.photos import load_photos
    from mffsr.training.train import patch_needed
    from mffsr.training.validate import SMALLEST

    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        console.progress("Decoding", done, len(paths) + len(held_out))

    smallest = max(patch_needed(stage, scale) for stage in stages)
    photos = load_photos(
        paths,
        runtime.device,
        smallest=smallest,
        reduced=reduced,
        instead=", or train with a smaller --patch",
        progress=count,
    )
    scored = load_photos(
        held_out,
        runtime.device,
        smallest=SMALLEST,
        purpose="validation",
        instead=", or name others by --val",
        progress=count,
    )
    copies = " with their smaller copies" if reduced else ""
    console.message(
        f"{len(paths)} photographs, {photos.megapixels:.1f} megapixels{copies}; {len(scored)} to validate on"
    )
    return photos, scored
