"""Options that several commands have, each declared once. Their defaults stand in the commands."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from mffsr import __version__
from mffsr.cli import fuse_job
from mffsr.limits import SCALES

__all__ = [
    "Align",
    "ClearHalos",
    "Crop",
    "Debug",
    "Depth",
    "Device",
    "Exposure",
    "Force",
    "Json",
    "MaxMegapixels",
    "MaxMemory",
    "Motion",
    "OnBadFrame",
    "OnExists",
    "Precision",
    "Prefer",
    "Quality",
    "Quiet",
    "Report",
    "Scale",
    "Tile",
    "Version",
    "Weights",
    "one_of",
    "positive",
]


def one_of(*allowed: int) -> Callable[[int | None], int | None]:
    """Return a check of a number that may be left out; the check raises typer.BadParameter."""

    def check(value: int | None) -> int | None:
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"{value} is not one of {', '.join(map(str, allowed))}.")
        return value

    return check


def positive(value: float | None) -> float | None:
    """Check a number that may be left out; raises typer.BadParameter."""
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value} is not a number above 0.")
    return value


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mffsr {__version__}")
        raise typer.Exit


# What is fused, and how
Scale: TypeAlias = Annotated[
    int,
    typer.Option(
        "-s",
        "--scale",
        metavar="|".join(map(str, (1, *SCALES))),
        callback=one_of(1, *SCALES),
        help="Enlargement; 1 = fusion alone.",
    ),
]
Align: TypeAlias = Annotated[bool, typer.Option("--align/--no-align", help="Register the photos first.")]
Motion: TypeAlias = Annotated[
    fuse_job.Motion,
    typer.Option(help="Motion between frames: similarity = shift, rotation and scale."),
]
Exposure: TypeAlias = Annotated[
    bool, typer.Option("--exposure/--no-exposure", help="Match exposure and white balance as well.")
]
Crop: TypeAlias = Annotated[
    bool,
    typer.Option("--crop/--no-crop", help="Cut to the field that all photos show, or keep the reference's."),
]
OnBadFrame: TypeAlias = Annotated[
    fuse_job.OnBadFrame,
    typer.Option(help="A photo that does not belong: fail, or drop it with a warning."),
]
Prefer: TypeAlias = Annotated[
    fuse_job.Prefer | None,
    typer.Option(help="Where photos tie, take the one focused nearer or farther.  [the clearer]"),
]
ClearHalos: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--clear-halos/--keep-halos",
        help="Take away what blurred things in front spread around themselves, or leave it.",
    ),
]

# What computes
Device: TypeAlias = Annotated[
    str, typer.Option(metavar="NAME", help="auto (the fastest), cuda, cuda:N, mps or cpu.")
]
Precision: TypeAlias = Annotated[
    str, typer.Option(metavar="NAME", help="auto (the fastest that is exact enough), fp32, bf16 or fp16.")
]
Weights: TypeAlias = Annotated[
    str, typer.Option(metavar="NAME|PATH", help="Name of a bundled set, a weight file or a folder of them.")
]
Tile: TypeAlias = Annotated[
    str, typer.Option(metavar="PIXELS", help="auto, or the largest side of a tile in pixels.")
]
MaxMemory: TypeAlias = Annotated[
    str, typer.Option(metavar="SIZE", help="Most memory to use, such as 4G.  [what is free]")
]
MaxMegapixels: TypeAlias = Annotated[
    int,
    typer.Option(
        min=1, metavar="N", help="Refuse photos of more than N million pixels, before decoding any."
    ),
]

# What is written
Depth: TypeAlias = Annotated[fuse_job.Depth, typer.Option(help="Bits per channel; auto = as the photos.")]
Quality: TypeAlias = Annotated[
    int, typer.Option(min=1, max=100, metavar="1-100", help="Quality of JPEG and WebP.")
]
OnExists: TypeAlias = Annotated[
    fuse_job.OnExists, typer.Option(help="What to do where an output exists; skip goes by the photo alone.")
]
Force: TypeAlias = Annotated[bool, typer.Option("-f", "--force", help="Same as --on-exists overwrite.")]

Report: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="PAGE.html", help="Also write a page to look at: before and after, focus map, figures."
    ),
]

# What is said
Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet: TypeAlias = Annotated[bool, typer.Option("-q", "--quiet", help="No messages, only errors.")]
Debug: TypeAlias = Annotated[bool, typer.Option(hidden=True)]
Version: TypeAlias = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
]
