"""`mffsr fuse`: one bracket of photos → one all-in-focus photo."""

from __future__ import annotations

import glob
import os
import re
import shutil
import sys
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mffsr.cli.console import Console, exit_codes
from mffsr.errors import BracketError, PhotoError, UsageError

if TYPE_CHECKING:
    from mffsr.device import Runtime
    from mffsr.fuse import Fusion
    from mffsr.model import JointModel

__all__ = ["fuse"]


class OnExists(str, Enum):
    """What to do where the output exists."""

    error = "error"
    skip = "skip"
    rename = "rename"
    overwrite = "overwrite"


class Depth(str, Enum):
    """Bits per channel of the output."""

    auto = "auto"
    eight = "8"
    sixteen = "16"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything about one `fuse` that is known before any computing."""

    photos: list[Path]
    output: Path
    size: tuple[int, int]  # of the photos, width and height
    depth: int  # of the output
    scale: int
    overwrite: bool


def fuse(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO PHOTO...",
            help="Two or more photos of one scene: files, globs, @list.txt, or - for a list on stdin.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Where to write; the extension gives the format.  [FIRST-fused-xS]"
        ),
    ] = None,
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
    depth: Annotated[Depth, typer.Option(help="Bits per channel; auto = as the photos.")] = Depth.auto,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Quality of JPEG and WebP.")] = 95,
    focus_map: Annotated[
        Path | None, typer.Option(help="Also write which photo each pixel comes from (PNG, and a preview).")
    ] = None,
    on_exists: Annotated[OnExists, typer.Option(help="What to do where the output exists.")] = OnExists.error,
    force: Annotated[bool, typer.Option("-f", "--force", help="Same as --on-exists overwrite.")] = False,
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Say what would be done, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No messages, only errors.")] = False,
    debug: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Fuse a bracket of photos into one all-in-focus photo and enlarge it."""
    console = Console(quiet=quiet, as_json=as_json)
    with exit_codes(console, debug=debug):
        started = time.perf_counter()
        paths = expand(photos)
        job = prepare(paths, output, scale, depth, OnExists.overwrite if force else on_exists, console)
        if focus_map is not None:
            _check_focus_map(focus_map, paths, job)
        tile_size = _tile(tile)
        memory = _memory(max_memory)
        width, height = job.size
        console.message(
            f"{len(paths)} photos of {width}×{height} → {job.output} ({width * scale}×{height * scale})"
        )
        from mffsr.checkpoint import load_model
        from mffsr.device import choose

        runtime = choose(device, precision, memory)
        console.message(f"device: {runtime.reason}")
        model, parts = load_model(scale, weights)
        if dry_run:
            _dry_run(job, model, runtime, tile_size, console)
            return
        import torch

        model = model.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        provenance = {"Weights": " ".join(f"{p.path.name}:{p.sha256[:16]}" for p in parts)}
        fusion = _run(job, model, runtime, tile_size, align, provenance, console)
        _write(job, fusion, quality, focus_map, console)
        seconds = time.perf_counter() - started
        console.message(f"done in {seconds:.1f} s")
        console.result(str(job.output), _as_json(job, fusion, runtime, seconds, console))


def expand(arguments: list[str]) -> list[Path]:
    """Return the files that the arguments stand for: paths, globs, @list files, - for stdin.

    Given files keep their order, those of a glob are sorted naturally (2 before 10).
    """
    found: list[Path] = []
    for argument in arguments:
        if argument == "-":
            found += [Path(line) for line in sys.stdin.read().splitlines() if line.strip()]
        elif argument.startswith("@") and not os.path.lexists(argument):
            listed = Path(argument[1:])
            try:
                lines = listed.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"{listed}: the list cannot be read ({error})") from None
            found += [Path(line) for line in lines if line.strip()]
        elif any(c in argument for c in "*?[") and not os.path.lexists(argument):
            matches = sorted(glob.glob(argument), key=natural)
            if not matches:
                raise PhotoError(f"{argument}: no photo matches")
            found += [Path(match) for match in matches]
        else:
            found.append(Path(argument))
    return found


def natural(name: str) -> list[int | str]:
    """Return a sort key in which numbers count as numbers."""
    return [int(part) if part.isdecimal() else part.casefold() for part in re.split(r"(\d+)", name)]


def prepare(
    paths: list[Path], output: Path | None, scale: int, depth: Depth, on_exists: OnExists, console: Console
) -> Job:
    """Check everything that can be known from headers and folders; read no pixels, compute nothing."""
    from mffsr.photo import check_target, read_header, supported_depth

    if len(paths) < 2:
        raise UsageError(f"{len(paths)} photo given, expected at least 2: a bracket of one scene")
    headers = [read_header(path) for path in paths]
    for index, path in enumerate(paths):
        for other in paths[:index]:
            if os.path.samefile(path, other):
                raise UsageError(f"{path}: given twice")
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        if (header.width, header.height) != (first.width, first.height):
            raise BracketError(
                f"{path}: {header.width}×{header.height}, but {paths[0]} is {first.width}×{first.height}\n"
                "the photos of a bracket must have one size"
            )
    deepest = max(header.bit_depth for header in headers)
    target = output if output is not None else _default_output(paths[0], scale, deepest)
    size = (first.width * scale, first.height * scale)
    for path in paths:
        if os.path.exists(target) and os.path.samefile(target, path):
            raise UsageError(
                f"{target}: is one of the inputs, which are never overwritten\nchoose another -o"
            )
    if os.path.lexists(target) and on_exists is OnExists.rename:
        target = _free_name(target)
    if os.path.lexists(target) and on_exists is OnExists.skip:
        console.message(f"{target}: exists, skipped")
        console.result(str(target), {"output": str(target), "skipped": True})
        raise typer.Exit(0)
    check_target(target, size=size, overwrite=on_exists is OnExists.overwrite)
    able = supported_depth(target)
    bits = int(depth.value) if depth is not Depth.auto else min(deepest, able)
    if bits > able:
        raise UsageError(
            f"{target}: this format holds {able} bits a channel, not {bits}\nwrite a TIFF or PNG"
        )
    if depth is Depth.auto and deepest > able:
        console.warning(
            f"{target.name}: 16-bit photos, but the format holds 8 bits; write a TIFF or PNG to keep them"
        )
    _check_disk(target, size, bits)
    return Job(
        photos=paths,
        output=target,
        size=(first.width, first.height),
        depth=bits,
        scale=scale,
        overwrite=on_exists is OnExists.overwrite,
    )


def _default_output(first: Path, scale: int, depth: int) -> Path:
    from mffsr.photo import OUTPUT_EXTENSIONS

    suffix = first.suffix.lower()
    suffix = (
        suffix
        if suffix in OUTPUT_EXTENSIONS and (depth == 8 or suffix in (".png", ".tif", ".tiff"))
        else ".tif"
    )
    return first.with_name(f"{first.stem}-fused-x{scale}{suffix}")


def _free_name(target: Path) -> Path:
    number = 2
    while True:
        candidate = target.with_name(f"{target.stem}-{number}{target.suffix}")
        if not os.path.lexists(candidate):
            return candidate
        number += 1


def _check_disk(target: Path, size: tuple[int, int], bits: int) -> None:
    """Refuse where the disk cannot take even a well compressed picture; raises PhotoError."""
    needed = size[0] * size[1] * 3 * bits // 8 // (1 if bits == 16 else 10)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise PhotoError(
            f"{target}: No space left: about {needed >> 20} MB are needed, {free >> 20} MB are free\n"
            "free some, or write to another disk"
        )


def _check_focus_map(path: Path, photos: list[Path], job: Job) -> None:
    from mffsr.photo import check_target

    if path.suffix.lower() != ".png":
        raise UsageError(f"{path}: the focus map is a PNG file")
    if os.path.exists(path) and any(os.path.samefile(path, photo) for photo in photos):
        raise UsageError(f"{path}: is one of the inputs, which are never overwritten")
    for target in (path, _preview_name(path)):
        check_target(target, overwrite=job.overwrite)


def _preview_name(path: Path) -> Path:
    return path.with_name(f"{path.stem}-preview{path.suffix}")


def _tile(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal():
        raise UsageError(f"tile {text}: expected auto or a number of pixels")
    return int(text)


def _memory(text: str) -> int | None:
    if not text:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)i?B?", text, re.IGNORECASE)
    if not match:
        raise UsageError(f"max-memory {text}: expected something like 4G or 800M")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _dry_run(job: Job, model: JointModel, runtime: Runtime, tile: int | None, console: Console) -> None:
    from mffsr.fuse import plan_tiles

    width, height = job.size
    plan = plan_tiles(runtime, model, (height, width, 3), tile, job.depth)
    size = (width * job.scale, height * job.scale)
    lines = [
        *(f"photo   {path}" for path in job.photos),
        f"output  {job.output}, {size[0]}×{size[1]}, {job.depth} bits",
        f"device  {runtime.reason}, up to {runtime.memory >> 20} MB",
        f"tiles   focus {plan.focus}, enlarging {plan.render} pixels a side",
    ]
    data = {
        "photos": [str(path) for path in job.photos],
        "output": str(job.output),
        "width": size[0],
        "height": size[1],
        "depth": job.depth,
        "device": str(runtime.device),
        "precision": runtime.precision,
        "tile": {"focus": plan.focus, "enlarge": plan.render},
    }
    console.result("\n".join(lines), data)


def _run(
    job: Job,
    model: JointModel,
    runtime: Runtime,
    tile: int | None,
    align: bool,
    provenance: dict[str, str],
    console: Console,
) -> Fusion:
    from mffsr.fuse import Events, fuse_bracket
    from mffsr.photo import read_photo

    photos = [read_photo(path, warn=console.warning) for path in job.photos]
    events = Events(progress=console.progress, message=console.message, warning=console.warning)
    with console.live():
        fusion = fuse_bracket(
            photos,
            model,
            runtime,
            tile=tile,
            align=align,
            depth=job.depth,
            provenance=provenance,
            events=events,
        )
    for path, share in zip(job.photos, fusion.shares, strict=True):
        console.message(f"{path.name}: {share:.1%} of the picture")
    return fusion


def _write(job: Job, fusion: Fusion, quality: int, focus_map: Path | None, console: Console) -> None:
    from mffsr.photo import Photo, write_photo

    write_photo(fusion.photo, job.output, quality=quality, overwrite=job.overwrite, warn=console.warning)
    if focus_map is not None:
        from mffsr.focus_map import preview

        labels = Photo(pixels=fusion.labels[:, :, None])
        write_photo(labels, focus_map, overwrite=job.overwrite, warn=console.warning)
        colours = Photo(pixels=preview(fusion.labels, len(job.photos)))
        write_photo(colours, _preview_name(focus_map), overwrite=job.overwrite, warn=console.warning)


def _as_json(job: Job, fusion: Fusion, runtime: Runtime, seconds: float, console: Console) -> dict[str, Any]:
    frames: list[dict[str, Any]] = []
    for index, path in enumerate(job.photos):
        frame: dict[str, Any] = {"path": str(path), "share": round(fusion.shares[index], 6)}
        if fusion.registrations is not None:
            found = fusion.registrations[index]
            frame |= {
                "shift": [round(v, 3) for v in found.shift],
                "rotation": round(found.rotation, 4),
                "scale": round(found.scale, 6),
                "gain": [round(v, 4) for v in found.gain],
                "ecc": round(found.ecc, 4),
            }
        frames.append(frame)
    width, height = fusion.photo.size
    return {
        "output": str(job.output),
        "width": width,
        "height": height,
        "depth": fusion.photo.bit_depth,
        "scale": job.scale,
        "frames": frames,
        "device": str(runtime.device),
        "precision": runtime.precision,
        "source_tiles": {"run": fusion.rendered.sources_run, "all": fusion.rendered.sources_all},
        "seconds": {**{k: round(v, 3) for k, v in fusion.seconds.items()}, "total": round(seconds, 3)},
        "warnings": console.warnings,
    }
