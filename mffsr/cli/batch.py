"""`mffsr batch`: a folder of brackets → one all-in-focus photo of each."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mffsr.cli import fuse_job
from mffsr.cli import options as opt
from mffsr.cli.batch_dry_run import print_plan, write_plan
from mffsr.cli.batch_report import Tally
from mffsr.cli.batch_worker import Computing, Options, load_fuser
from mffsr.cli.console import Console, exit_codes
from mffsr.cli.fuse_job import Depth, Framing, Motion, OnBadFrame, OnExists
from mffsr.cli.reports import settle_index, write_index
from mffsr.errors import PhotoError, UsageError
from mffsr.limits import MAX_MEGAPIXELS

if TYPE_CHECKING:
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


def batch(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of brackets: sub-folders, or photos that are grouped.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FOLDER", help="Folder to write into.  [FOLDER-fused]"),
    ] = None,
    group: Annotated[
        Group, typer.Option(help="auto: sub-folders, and loose photos by time; none: all are one bracket.")
    ] = Group.auto,
    plan: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.toml", help="Take the brackets from this TOML file; with -n FOLDER, write it."
        ),
    ] = None,
    template: Annotated[
        str, typer.Option(metavar="NAME", help="Name of each output, inside the output folder.")
    ] = TEMPLATE,
    resume: Annotated[
        bool, typer.Option(help="Skip what was finished with the same photos, options and weights.")
    ] = False,
    scale: opt.Scale = 2,
    device: opt.Device = "auto",
    precision: opt.Precision = "auto",
    weights: opt.Weights = "photo",
    tile: opt.Tile = "auto",
    max_memory: opt.MaxMemory = "",
    max_megapixels: opt.MaxMegapixels = MAX_MEGAPIXELS,
    align: opt.Align = True,
    motion: opt.Motion = Motion.similarity,
    exposure: opt.Exposure = True,
    crop: opt.Crop = True,
    on_bad_frame: opt.OnBadFrame = OnBadFrame.fail,
    prefer: opt.Prefer = None,
    clear_halos: opt.ClearHalos = True,
    depth: opt.Depth = Depth.auto,
    quality: opt.Quality = 95,
    focus_map: Annotated[
        str | None, typer.Option(metavar="NAME", help='Also write focus maps, named so: "{bracket}_map.png".')
    ] = None,
    report: opt.Report = None,
    on_exists: opt.OnExists = OnExists.error,
    force: opt.Force = False,
    workers: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Processes to share the brackets on this machine (extra: cluster)."
        ),
    ] = 1,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Send the brackets to this Dask scheduler (extra: cluster)."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "-n",
            "--dry-run",
            help="Print the plan, with sizes, tiles and memory (or write it to --plan), and stop.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON event per line.")] = False,
    quiet: opt.Quiet = False,
    version: opt.Version = False,
    debug: opt.Debug = False,
) -> None:
    """Fuse many brackets, each into one all-in-focus photo, and enlarge them."""
    console = Console(quiet=quiet, as_json=as_json)
    with exit_codes(console, debug=debug):
        if folder is None and plan is None:
            raise UsageError("nothing to do: expected a FOLDER, or a --plan")
        if cluster is not None and workers > 1:
            raise UsageError("--workers are processes here, --cluster has its own: expected one of them")
        if cluster is not None and not cluster.strip():
            raise UsageError("--cluster: the address is empty\nexpected something like tcp://10.0.0.1:8786")
        out = output or (Path() if dry_run and folder is None else _default_out(folder))
        existing = fuse_job.settle_existing(on_exists, force=force)
        writes_plan = dry_run and plan is not None and folder is not None
        max_pixels = max_megapixels * 1_000_000
        options = Options(
            out=out,
            template=template,
            scale=scale,
            tile=fuse_job.parse_tile(tile),
            framing=Framing(
                align=align,
                crop=crop,
                exposure=exposure,
                on_bad_frame=on_bad_frame.value,
                prefer=prefer.value if prefer else None,
                clear_halos=clear_halos,
                motion=motion.value,
            ),
            depth=depth,
            quality=quality,
            focus_map=focus_map,
            on_exists=existing,
            max_pixels=max_pixels,
            report=settle_index(report, out, existing, resume=resume) if report is not None else None,
        )
        computing = Computing(
            device=device,
            precision=precision,
            weights=weights,
            memory=fuse_job.parse_memory(max_memory),
            processes=workers,
        )
        _check_templates(options)
        if not dry_run:
            _check_out(out)
        console.message("looking for device and weights")
        _check_computing(computing, scale, here=cluster is None)
        found = _brackets(folder, None if writes_plan else plan, group.value, out, max_pixels, console)
        _check_templates(options, len(found.brackets))
        _check_format(options, found.brackets)
        computing = replace(computing, processes=min(workers, len(found.brackets)))
        root = folder or Path()
        if plan is not None and writes_plan:
            write_plan(found, root, plan, overwrite=existing is OnExists.overwrite, console=console)
            return
        if dry_run:
            fuser = load_fuser(options, computing, console) if cluster is None else None
            print_plan(found, root, options, fuser, console)
            return
        _run(found.brackets, options, computing, cluster, resume=resume, console=console, debug=debug)


def _default_out(folder: Path | None) -> Path:
    if folder is None:
        raise UsageError("a plan does not say where to write: expected -o OUT")
    real = Path(os.path.realpath(folder))
    if not real.name:
        raise UsageError(f"{folder}: nothing can be written beside it: expected -o OUT")
    return real.with_name(f"{real.name}-fused")


def _brackets(
    folder: Path | None, plan: Path | None, group: str, out: Path, max_pixels: int, console: Console
) -> Found:
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
        skip = Records(out).outputs() | _written_below(folder)
        if os.path.realpath(out) != os.path.realpath(folder):
            skip.add(os.path.realpath(out))
        found = find_brackets(folder, group=group, skip=skip, max_pixels=max_pixels)
    for path, why in found.left_out[:NAMED]:
        console.message(f"{path}: in no bracket ({why})")
    if len(found.left_out) > NAMED:
        console.message(f"{len(found.left_out) - NAMED} more in no bracket; --dry-run lists them")
    if not found.brackets:
        expected = "a bracket is a folder of photos, or photos of one scene"
        if plan is None and group == "none":
            expected = "--group none takes the photos that lie in the folder itself, but fewer than two do"
        raise UsageError(f"{plan or folder}: no brackets found\n{expected}")
    return found


def _written_below(folder: Path) -> set[str]:
    """Return the real paths of what earlier batches wrote anywhere below a folder."""
    from mffsr.batch_record import FOLDER, Records

    places = [place for place, below, _ in os.walk(folder) if FOLDER in below]
    return {path for place in places for path in Records(Path(place)).outputs()}


def _check_computing(computing: Computing, scale: int, *, here: bool) -> None:
    """Refuse weights, and where it computes `here` a device or precision, that are not there."""
    from mffsr.checkpoint import find
    from mffsr.device import find_device

    if here:
        find_device(computing.device, computing.precision)
    find(computing.weights, scale)


def _check_out(out: Path) -> None:
    """Refuse an output folder that cannot be written to, before anything is computed; PhotoError."""
    place = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        kind = "is no folder" if place.exists() else f"is a link, but {os.path.realpath(place)} is not there"
        raise PhotoError(f"{out}: cannot be written into: {place} {kind}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PhotoError(f"{out}: cannot be written into: no permission to write into {place}")


def _check_templates(options: Options, brackets: int = 1) -> None:
    from mffsr.batch_plan import check_template

    check_template("--template", options.template, brackets)
    if options.focus_map is not None:
        check_template("--focus-map", options.focus_map, brackets)
        if not options.focus_map.lower().endswith(".png"):
            raise UsageError(f"{options.focus_map}: the focus map is a PNG file")


def _check_format(options: Options, brackets: list[Bracket]) -> None:
    """Refuse a template of which no bracket gets a name of a format that is written; UsageError."""
    from mffsr.batch_plan import target_name
    from mffsr.photo import supported_depth

    fault = None
    for bracket in brackets:
        try:
            supported_depth(target_name(options.template, bracket, options.scale, ".tif"))
        except UsageError as found:
            fault = fault or found
        else:
            return
    if fault is not None:
        raise UsageError(f"--template {options.template}: {fault}\nlet it end with {{ext}}")


def _run(
    brackets: list[Bracket],
    options: Options,
    computing: Computing,
    cluster: str | None,
    *,
    resume: bool,
    console: Console,
    debug: bool,
) -> None:
    """Do the brackets, and exit with 1 if any failed."""
    tally, reported = Tally(len(brackets), console, debug=debug), True
    clock = time.perf_counter()
    try:
        if cluster is None and computing.processes == 1:
            _fuse_here(brackets, options, computing, resume=resume, tally=tally, console=console)
        else:
            from mffsr.cli.batch_remote import fuse_remotely

            fuse_remotely(brackets, options, computing, cluster, resume=resume, tally=tally, console=console)
    finally:
        if tally.begun:
            tally.summary(time.perf_counter() - clock)
            if options.report is not None:
                reported = write_index(options.report, options.out, tally.outcomes, console)
    if tally.failures or not reported:
        raise typer.Exit(1)


def _fuse_here(
    brackets: list[Bracket],
    options: Options,
    computing: Computing,
    *,
    resume: bool,
    tally: Tally,
    console: Console,
) -> None:
    """Do the brackets in this process."""
    import torch

    from mffsr.batch import run_batch
    from mffsr.device import available_memory

    worker = load_fuser(options, computing, console)
    options.out.mkdir(parents=True, exist_ok=True)
    spare = available_memory(torch.device("cpu"))

    def started(bracket: Bracket, index: int) -> None:
        if console.drawing:
            console.begin_again(but="brackets")
        tally.started(bracket, index)

    with console.live():
        run_batch(
            brackets,
            worker,
            out=options.out,
            options=worker.deciding(),
            resume=resume,
            # The engine leaves a fifth of what is free, but nothing of --max-memory.
            ahead=spare // 8 if computing.memory is None else 0,
            started=started,
            ended=tally.ended,
            warn=console.warning,
        )
