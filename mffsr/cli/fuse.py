"""`mffsr fuse`: one bracket of photos → one all-in-focus photo."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mffsr import __version__
from mffsr.cli import options as opt
from mffsr.cli.console import Console, exit_codes
from mffsr.cli.fuse_job import (
    Depth,
    Framing,
    Job,
    Motion,
    OnBadFrame,
    OnExists,
    bracket_of,
    own_files,
    parse_memory,
    parse_tile,
    prepare,
    renamed_files,
    settle_existing,
    with_free_names,
)
from mffsr.cli.fuse_plan import describe_frame
from mffsr.cli.fuse_plan import dry_run as plan_only
from mffsr.cli.outputs import preview_name
from mffsr.cli.reports import Report, command_line, making_of, settle_report
from mffsr.limits import MAX_MEGAPIXELS

if TYPE_CHECKING:
    from mffsr.device import Runtime
    from mffsr.engine import Fusion
    from mffsr.model import JointModel
    from mffsr.photo import Photo

__all__ = ["describe", "fuse", "run_job", "write_result"]


def fuse(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO PHOTO...",
            help="Two or more photos of one scene: files, a folder, globs, @list.txt, - for a list on stdin; "
            "or one TIFF that is a stack.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Where to write: .jpg, .png, .tif or .webp.  [beside the first photo]",
        ),
    ] = None,
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
    save_aligned: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the registered photos, as PNG or TIFF.")
    ] = None,
    depth: opt.Depth = Depth.auto,
    quality: opt.Quality = 95,
    focus_map: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png", help="Also write which photo each pixel comes from (PNG, and a preview)."
        ),
    ] = None,
    report: opt.Report = None,
    on_exists: opt.OnExists = OnExists.error,
    force: opt.Force = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "-n",
            "--dry-run",
            help="Register the photos, print how they are aligned and what fusing would take, and stop.",
        ),
    ] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    version: opt.Version = False,
    debug: opt.Debug = False,
) -> None:
    """Fuse a bracket of photos into one all-in-focus photo and enlarge it."""
    console = Console(quiet=quiet, as_json=as_json)
    with exit_codes(console, debug=debug):
        started = time.perf_counter()
        tile_size = parse_tile(tile)
        memory = parse_memory(max_memory)
        existing = settle_existing(on_exists, force=force)
        own = own_files(output, focus_map)
        if existing is OnExists.rename:  # else what is named so may as well be a result of part of a bracket
            own += renamed_files(output, focus_map)
        paths = bracket_of(photos, own)
        _warn_of_results(paths, console)
        job = prepare(
            paths,
            output,
            scale=scale,
            depth=depth,
            on_exists=existing,
            max_pixels=max_megapixels * 1_000_000,
            framing=Framing(
                align=align,
                crop=crop,
                exposure=exposure,
                on_bad_frame=on_bad_frame.value,
                prefer=prefer.value if prefer else None,
                clear_halos=clear_halos,
                motion=motion.value,
                save_aligned=save_aligned,
            ),
            focus_map=focus_map,
            console=console,
        )
        if report is not None:
            report = settle_report(report, job, existing)
        width, height = job.size
        console.message(
            f"{len(paths)} photos of {width}×{height} → {job.output} ({width * scale}×{height * scale})"
        )
        from mffsr.checkpoint import load_model, provenance
        from mffsr.device import choose

        runtime = choose(device, precision, memory)
        console.message(f"device: {runtime.reason}")
        network, parts = load_model(scale, weights)

        network = runtime.place(network)
        if dry_run:
            plan_only(job, network, runtime, tile_size, console)
            return
        page = None
        if report is not None:
            page = Report(report, scale, making_of(command_line(), runtime, parts), overwrite=job.overwrite)
        fusion = run_job(
            job,
            network,
            runtime,
            tile=tile_size,
            provenance=provenance(parts),
            console=console,
            report=page,
        )
        if existing is OnExists.rename:  # another program may have taken the name meanwhile
            job = with_free_names(job)
        write_result(job, fusion, quality, console)
        seconds = time.perf_counter() - started
        told = describe(job, fusion, runtime, seconds, console)
        reported = page is None or page.write(told, console)
        console.message(f"done in {seconds:.1f} s")
        console.result(str(job.output), told)
        if not reported:
            raise typer.Exit(1)


def _warn_of_results(photos: list[Path], console: Console) -> None:
    """Warn of photos that were named, yet look like earlier results."""
    from mffsr.photo.brackets import named_as_result

    for path in filter(named_as_result, photos):
        console.warning(f"{path}: looks like an earlier result; it is fused all the same, being named")


def run_job(
    job: Job,
    model: JointModel,
    runtime: Runtime,
    *,
    tile: int | None,
    provenance: dict[str, str],
    console: Console,
    read: Callable[..., Photo] | None = None,
    report: Report | None = None,
) -> Fusion:
    """Read and fuse the bracket of a job; `read` replaces `read_photo` where photos are read ahead.

    `report` takes its pictures meanwhile.
    """
    from mffsr.engine import fuse_bracket
    from mffsr.events import Events
    from mffsr.photo import write_photo
    from mffsr.plan import plan_tiles

    framing = job.framing
    plan_tiles(runtime, model, (*job.size[::-1], job.channels), tile, job.depth)  # too large? before reading

    def save(index: int, photo: Photo) -> None:
        target = job.aligned[index]
        made = not target.parent.exists()
        target.parent.mkdir(exist_ok=True)
        try:
            write_photo(photo, target, overwrite=job.overwrite, warn=console.warning)
        except BaseException:
            if made:
                with contextlib.suppress(OSError):
                    target.parent.rmdir()
            raise

    with console.live():
        fusion = fuse_bracket(
            job.open(console, read),
            model,
            runtime,
            tile=tile,
            align=framing.align,
            motion=framing.motion,
            exposure=framing.exposure,
            on_bad_frame=framing.on_bad_frame,
            crop=framing.crop,
            prefer=framing.prefer,
            clear_halos=framing.clear_halos,
            save_aligned=save if job.aligned else None,
            inspect=report.inspect if report is not None else None,
            depth=job.depth,
            scratch=[job.output.parent],
            provenance=provenance,
            events=Events(progress=console.progress, warning=console.warning),
        )
    for path, share in zip(job.photos, fusion.shares, strict=True):
        console.message(f"{path.name}: {share:.1%} of the picture")
    return fusion


def write_result(job: Job, fusion: Fusion, quality: int, console: Console) -> None:
    """Write the fused photo, and its focus map if asked for."""
    from mffsr.photo import Photo, output_metadata, write_photo

    write_photo(fusion.photo, job.output, quality=quality, overwrite=job.overwrite, warn=console.warning)
    if job.focus_map is not None:
        from mffsr.focus_map import preview

        labels = Photo(pixels=fusion.labels[:, :, None])
        names = [path.name for path in job.photos]  # label 0 is the first of them
        told = output_metadata(labels, scale=1, frames=names, software=f"mffsr {__version__}", details={})
        write_photo(
            replace(labels, xmp=told.xmp), job.focus_map, overwrite=job.overwrite, warn=console.warning
        )
        colours = Photo(pixels=preview(fusion.labels, len(names)), xmp=told.xmp)
        write_photo(colours, preview_name(job.focus_map), overwrite=job.overwrite, warn=console.warning)


def describe(job: Job, fusion: Fusion, runtime: Runtime, seconds: float, console: Console) -> dict[str, Any]:
    """Return what --json tells of a fused bracket."""
    width, height = fusion.photo.size
    return {
        "input": {"width": job.size[0], "height": job.size[1], "depth": job.source_depth},
        "output": str(job.output),
        "width": width,
        "height": height,
        "depth": fusion.photo.bit_depth,
        "scale": job.scale,
        "frames": [
            {
                "path": str(path),
                "share": round(share, 6),
                **describe_frame(index, fusion.registrations or (), fusion.dropped),
            }
            for index, (path, share) in enumerate(zip(job.photos, fusion.shares, strict=True))
        ],
        "undecided": round(fusion.undecided, 6),
        "device": str(runtime.device),
        "precision": runtime.precision,
        "focus_tiles": {"run": fusion.focus_tiles[0], "all": fusion.focus_tiles[1]},
        "source_tiles": {"run": fusion.rendered.sources_run, "all": fusion.rendered.sources_all},
        "seconds": {**{k: round(v, 3) for k, v in fusion.seconds.items()}, "total": round(seconds, 3)},
        "warnings": console.warnings,
    }
