"""`mffsr batch`: a folder of brackets → one all-in-focus photo of each."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mffsr.cli import fuse as fuse_command
from mffsr.cli import fuse_job
from mffsr.cli.batch_report import BracketConsole, Tally, named
from mffsr.cli.console import Console, exit_codes
from mffsr.cli.fuse_job import Depth, Framing, Motion, OnBadFrame, OnExists, Prefer
from mffsr.errors import PhotoError, UsageError

if TYPE_CHECKING:
    from mffsr.batch import Reader
    from mffsr.device import Runtime
    from mffsr.fuse import Fusion
    from mffsr.model import JointModel
    from mffsr.photo.brackets import Bracket, Found

__all__ = ["batch"]

TEMPLATE = "{bracket}_x{scale}{ext}"
NAMED = 5  # photos without a bracket that are named one by one


class Group(str, Enum):
    """How photos are put into brackets."""

    auto = "auto"
    folder = "folder"
    time = "time"
    none = "none"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all brackets share."""

    out: Path
    template: str
    scale: int
    tile: int | None
    align: bool
    framing: Framing
    depth: Depth
    quality: int
    focus_map: str | None
    on_exists: OnExists


def batch(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of brackets: sub-folders, or photos that are grouped.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder to write into.  [FOLDER-fused]")
    ] = None,
    group: Annotated[
        Group, typer.Option(help="auto: sub-folders, and loose photos by time; none: all are one bracket.")
    ] = Group.auto,
    plan: Annotated[
        Path | None, typer.Option(help="Take the brackets from this TOML file; with -n FOLDER, write it.")
    ] = None,
    template: Annotated[str, typer.Option(help="Name of each output, inside the output folder.")] = TEMPLATE,
    resume: Annotated[
        bool, typer.Option(help="Skip what was finished with the same photos, options and weights.")
    ] = False,
    scale: Annotated[
        int, typer.Option("-s", "--scale", min=1, max=4, help="Enlargement; 1 = fusion alone.")
    ] = 2,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:N, mps or cpu.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    weights: Annotated[
        str, typer.Option(help="Name of a bundled set, a weight file or a folder of them.")
    ] = "photo",
    tile: Annotated[str, typer.Option(help="auto, or the side of a tile in pixels.")] = "auto",
    max_memory: Annotated[str, typer.Option(help="Most memory to use, such as 4G.  [what is free]")] = "",
    align: Annotated[bool, typer.Option("--align/--no-align", help="Register the photos first.")] = True,
    model: Annotated[
        Motion, typer.Option(help="How frames may move: similarity = shift, rotation and scale.")
    ] = Motion.similarity,
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="Cut to the field that all photos show.")
    ] = True,
    on_bad_frame: Annotated[
        OnBadFrame, typer.Option(help="A photo that does not belong: fail, or drop it with a warning.")
    ] = OnBadFrame.fail,
    prefer: Annotated[
        Prefer | None,
        typer.Option(help="Where photos tie, take the one focused nearer or farther.  [the clearer]"),
    ] = None,
    depth: Annotated[Depth, typer.Option(help="Bits per channel; auto = as the photos.")] = Depth.auto,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Quality of JPEG and WebP.")] = 95,
    focus_map: Annotated[
        str | None, typer.Option(help='Also write focus maps, named so: "{bracket}_map.png".')
    ] = None,
    on_exists: Annotated[OnExists, typer.Option(help="What to do where the output exists.")] = OnExists.error,
    force: Annotated[bool, typer.Option("-f", "--force", help="Same as --on-exists overwrite.")] = False,
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Print the plan (or write it to --plan), and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print an event a line as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No messages, only errors.")] = False,
    debug: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Fuse many brackets, each into one all-in-focus photo, and enlarge them."""
    console = Console(quiet=quiet, as_json=as_json)
    with exit_codes(console, debug=debug):
        if folder is None and plan is None:
            raise UsageError("nothing to do: expected a FOLDER, or a --plan")
        out = output or (Path() if dry_run and folder is None else _default_out(folder))
        existing = OnExists.overwrite if force else on_exists
        writes_plan = dry_run and plan is not None and folder is not None
        found = _brackets(folder, None if writes_plan else plan, group.value, out, console)
        if dry_run:
            _dry_run(found, folder, plan if writes_plan else None, existing, console)
            return
        options = Options(
            out=out,
            template=template,
            scale=scale,
            tile=fuse_job.parse_tile(tile),
            align=align,
            framing=Framing(
                crop=crop,
                on_bad_frame=on_bad_frame.value,
                prefer=prefer.value if prefer else None,
                model=model.value,
            ),
            depth=depth,
            quality=quality,
            focus_map=focus_map,
            on_exists=existing,
        )
        _check_templates(options, len(found.brackets))
        _check_out(out)
        memory = fuse_job.parse_memory(max_memory)
        worker = _worker(options, device, precision, weights, memory, console)
        _run(found.brackets, worker, resume, memory, console, debug=debug)


def _default_out(folder: Path | None) -> Path:
    if folder is None:
        raise UsageError("a plan does not say where to write: expected -o OUT")
    real = Path(os.path.realpath(folder))
    return real.with_name(f"{real.name}-fused")


def _brackets(folder: Path | None, plan: Path | None, group: str, out: Path, console: Console) -> Found:
    """Find the brackets; raises UsageError where there are none."""
    from mffsr.batch_plan import read_plan
    from mffsr.batch_record import Records
    from mffsr.photo.brackets import Found, find_brackets

    if plan is not None:
        found = Found(brackets=read_plan(plan, folder))
    else:
        if folder is None:
            raise UsageError("expected a FOLDER")
        console.message(f"looking for brackets in {folder}")
        skip = Records(out).outputs()
        if os.path.realpath(out) != os.path.realpath(folder):
            skip.add(os.path.realpath(out))
        found = find_brackets(folder, group=group, skip=skip)
    for path, why in found.left_out[:NAMED]:
        console.message(f"{path}: in no bracket ({why})")
    if len(found.left_out) > NAMED:
        console.message(f"{len(found.left_out) - NAMED} more in no bracket; --dry-run lists them")
    if not found.brackets:
        raise UsageError(
            f"{plan or folder}: no brackets found\na bracket is a folder of photos, or photos of one scene"
        )
    return found


def _dry_run(
    found: Found, folder: Path | None, plan: Path | None, on_exists: OnExists, console: Console
) -> None:
    """Print the plan, or write it to `plan`."""
    from mffsr.batch_plan import plan_text

    text = plan_text(found, folder or Path())
    data = {
        "event": "plan",
        "brackets": [{**named(b), "why": b.why} for b in found.brackets],
        "left_out": [{"path": str(path), "why": why} for path, why in found.left_out],
    }
    if plan is None:
        console.result(text.rstrip("\n"), data)
        return
    from mffsr.photo import atomic_output

    with atomic_output(plan, overwrite=on_exists is OnExists.overwrite) as stream:
        stream.write(text.encode())
    console.message(f"{len(found.brackets)} brackets")
    console.result(str(plan), data)


def _check_out(out: Path) -> None:
    """Refuse an output folder that cannot be written to, before anything is computed; PhotoError."""
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise PhotoError(f"{out}: cannot be written into: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PhotoError(f"{out}: cannot be written into: no permission to write into {place}")


def _check_templates(options: Options, brackets: int) -> None:
    from mffsr.batch_plan import check_template

    check_template(options.template, brackets)
    if options.focus_map is not None:
        check_template(options.focus_map, brackets)
        if not options.focus_map.lower().endswith(".png"):
            raise UsageError(f"{options.focus_map}: the focus map is a PNG file")


def _worker(
    options: Options, device: str, precision: str, weights: str, memory: int | None, console: Console
) -> _Fuser:
    """Load the model once."""

    from mffsr.checkpoint import load_model
    from mffsr.device import choose

    runtime = choose(device, precision, memory)
    console.message(f"device: {runtime.reason}")
    model, parts = load_model(options.scale, weights)
    model = runtime.place(model)
    provenance = {"Weights": " ".join(f"{p.path.name}:{p.sha256[:16]}" for p in parts)}
    options.out.mkdir(parents=True, exist_ok=True)
    return _Fuser(options, model, runtime, provenance, [p.sha256 for p in parts], console)


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A fused bracket that is not written yet."""

    job: fuse_job.Job
    fusion: Fusion
    focus_map: Path | None
    started: float
    console: Console


class _Fuser:
    """Does one bracket after the other exactly as `mffsr fuse` does: see `mffsr.batch.Worker`."""

    def __init__(
        self,
        options: Options,
        model: JointModel,
        runtime: Runtime,
        provenance: dict[str, str],
        digests: list[str],
        console: Console,
    ) -> None:
        self.options, self.model, self.runtime = options, model, runtime
        self.provenance, self.digests, self.console = provenance, digests, console

    def deciding(self) -> dict[str, Any]:
        """Return the options that change results, for --resume."""
        from mffsr import __version__

        return {
            "version": __version__,
            "weights": self.digests,
            "provenance": self.provenance,
            "device": self.runtime.device.type,
            "precision": self.runtime.precision,
            "scale": self.options.scale,
            "align": self.options.align,
            **asdict(self.options.framing),
            "depth": self.options.depth.value,
            "quality": self.options.quality,
            "focus_map": self.options.focus_map,
        }

    def target(self, bracket: Bracket) -> Path:
        """Return where the photo of a bracket goes."""
        from mffsr.batch_plan import inside, target_name
        from mffsr.photo import read_header

        depth = max(read_header(photo).bit_depth for photo in bracket.photos)
        extension = fuse_job.default_output(Path(bracket.photos[0]), 1, depth).suffix
        name = target_name(self.options.template, bracket, self.options.scale, extension)
        return inside(self.options.out, name)

    def compute(self, bracket: Bracket, target: Path, read: Reader, *, overwrite: bool) -> _Done | None:
        """Check and fuse a bracket; None where the output exists and is to be skipped."""
        from mffsr.batch_plan import inside, target_name

        started = time.perf_counter()
        options, console = self.options, BracketConsole(self.console, bracket.name)
        on_exists = OnExists.overwrite if overwrite else options.on_exists
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            job = fuse_job.prepare(
                list(bracket.photos), target, options.scale, options.depth, on_exists, console
            )
        except typer.Exit:
            return None
        job = replace(job, framing=options.framing)
        focus_map = None
        if options.focus_map is not None:
            plain = type(bracket)(name=bracket.name, photos=bracket.photos)
            focus_map = inside(options.out, target_name(options.focus_map, plain, options.scale, ".png"))
            if job.output in (focus_map, fuse_job.preview_name(focus_map)):
                raise UsageError(f"{focus_map}: the focus map would overwrite the photo\nname it otherwise")
            focus_map.parent.mkdir(parents=True, exist_ok=True)
            fuse_job.check_focus_map(focus_map, list(bracket.photos), job)
        fusion = fuse_command.run_job(
            job, self.model, self.runtime, options.tile, options.align, self.provenance, console, read
        )
        return _Done(job=job, fusion=fusion, focus_map=focus_map, started=started, console=console)

    def files(self, result: _Done) -> list[Path]:
        """Return what `write` writes."""
        maps = [result.focus_map, fuse_job.preview_name(result.focus_map)] if result.focus_map else []
        return [result.job.output, *maps]

    def write(self, result: _Done) -> dict[str, Any]:
        """Write a fused bracket and return what --json tells of it."""
        fuse_command.write_result(
            result.job, result.fusion, self.options.quality, result.focus_map, result.console
        )
        seconds = time.perf_counter() - result.started
        return fuse_command.describe(result.job, result.fusion, self.runtime, seconds, result.console)


def _run(
    brackets: list[Bracket],
    worker: _Fuser,
    resume: bool,
    memory: int | None,
    console: Console,
    *,
    debug: bool,
) -> None:
    """Do the brackets, and exit with 1 if any failed."""
    import torch

    from mffsr.batch import run_batch
    from mffsr.device import available_memory

    spare = available_memory(torch.device("cpu"))
    tally = Tally(len(brackets), console, debug=debug)
    clock = time.perf_counter()
    try:
        with console.live():
            run_batch(
                brackets,
                worker,
                out=worker.options.out,
                options=json.loads(json.dumps(worker.deciding())),
                resume=resume,
                ahead=min(spare, memory or spare) // 8,  # the engine leaves a fifth of what is free
                started=tally.started,
                ended=tally.ended,
                warn=console.warning,
            )
    finally:
        tally.summary(time.perf_counter() - clock)
    if tally.failures:
        raise typer.Exit(1)
