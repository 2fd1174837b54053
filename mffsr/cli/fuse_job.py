"""What a `fuse` is asked for, checked from names and headers before anything is computed."""

from __future__ import annotations

import codecs
import glob
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, overload

import typer

from mffsr.cli.console import Console
from mffsr.cli.outputs import (
    aligned_names,
    check_outputs,
    default_output,
    free_name,
    numbered_files,
    with_preview,
)
from mffsr.errors import BracketError, PhotoError, UsageError
from mffsr.limits import SMALLEST_TILE
from mffsr.text import file_of, natural, plane_of

if TYPE_CHECKING:
    from mffsr.photo import Header, Photo

__all__ = [
    "Depth",
    "Framing",
    "Job",
    "Motion",
    "OnBadFrame",
    "OnExists",
    "Prefer",
    "bracket_of",
    "check_photos",
    "expand",
    "own_files",
    "parse_memory",
    "parse_tile",
    "prepare",
    "renamed_files",
    "settle_existing",
    "wanted_depth",
    "with_free_names",
]


_QUOTED = re.compile(rb'\A\s*"(.+)"\s*\Z', re.DOTALL)


class Lazy(Sequence["Photo"]):
    """Photos that are read when they are asked for, and not kept."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Path], Photo]) -> None:
        self._paths, self._read = paths, read

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Photo: ...
    @overload
    def __getitem__(self, index: slice) -> Lazy: ...
    def __getitem__(self, index: int | slice) -> Photo | Lazy:
        if isinstance(index, slice):
            return Lazy(self._paths[index], self._read)
        return self._read(self._paths[index])


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


class OnBadFrame(str, Enum):
    """What to do with a frame that does not belong."""

    fail = "fail"
    drop = "drop"


class Prefer(str, Enum):
    """Which of two frames to take where both are equally sharp."""

    near = "near"
    far = "far"


class Motion(str, Enum):
    """Which motion between frames registration looks for."""

    similarity = "similarity"
    affine = "affine"
    homography = "homography"


@dataclass(frozen=True, kw_only=True)
class Framing:
    """How the frames are brought together."""

    align: bool
    crop: bool
    exposure: bool
    on_bad_frame: str
    prefer: str | None
    clear_halos: bool
    motion: str
    save_aligned: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what needs registered photos where none are; raises UsageError."""
        if self.align:
            return
        for option, asked in (
            ("--save-aligned", self.save_aligned is not None),
            ("--motion", self.motion != Motion.similarity),
            ("--on-bad-frame drop", self.on_bad_frame == OnBadFrame.drop),
        ):
            if asked:
                raise UsageError(f"{option}: nothing is registered with --no-align")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything about one `fuse` that is known before any computing."""

    photos: list[Path]
    output: Path
    size: tuple[int, int]  # of the photos, width and height
    depth: int  # of the output
    scale: int
    overwrite: bool
    max_pixels: int  # that a photo may have
    source_depth: int  # of the deepest photo
    channels: int  # 1 if all photos are gray
    has_alpha: bool
    framing: Framing
    focus_map: Path | None  # where it goes, its preview beside it
    aligned: tuple[Path, ...]  # where the registered photos go; empty where they are not kept

    @property
    def outputs(self) -> list[Path]:
        """All files that are written, the photo first."""
        return [*own_files(self.output, self.focus_map), *self.aligned]

    def open(self, console: Console, read: Callable[..., Photo] | None = None) -> Lazy:
        """Return the photos; `read` replaces `read_photo` where they are read ahead."""
        from mffsr.photo import read_photo

        read = read or partial(read_photo, max_pixels=self.max_pixels)
        return Lazy(self.photos, partial(read, warn=console.warning))


def own_files(output: Path | None, focus_map: Path | None) -> list[Path]:
    """Return the photo and the maps that `fuse` is told to write, the photo first."""
    maps = with_preview(focus_map) if focus_map is not None else ()
    return [*([output] if output is not None else ()), *maps]


def renamed_files(output: Path | None, focus_map: Path | None) -> list[Path]:
    """Return what earlier runs with --on-exists rename may have written instead of `own_files`."""
    photos = numbered_files(output) if output is not None else []
    maps = numbered_files(focus_map, with_preview) if focus_map is not None else []
    return [*photos, *maps]


def bracket_of(arguments: list[str], own: Sequence[Path] = ()) -> list[Path]:
    """Return the photos of the files that the arguments stand for, see `expand`: one stack has its planes."""
    from mffsr.photo import planes_of

    found = expand(arguments, own)
    return planes_of(found[0]) if len(found) == 1 else found


def expand(arguments: list[str], own: Sequence[Path] = ()) -> list[Path]:
    """Return the files that the arguments stand for: paths, folders, globs, @list files, - for stdin.

    Given files keep their order, those of a folder or glob are sorted naturally (2 before 10). Of these,
    earlier results are left out; the command's `own` files are such if they are there from the last time.
    """
    found: list[Path] = []
    for argument in arguments:
        if argument == "-":
            found += _listed(sys.stdin.buffer.read())
        elif argument.startswith("@") and not os.path.lexists(argument):
            listed = Path(argument[1:])
            try:
                found += _listed(listed.read_bytes())
            except OSError as error:
                why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror or error
                raise UsageError(f"{listed}: the list cannot be read: {why}") from None
        elif any(c in argument for c in "*?[") and not os.path.lexists(plane_of(Path(argument))[0]):
            found += _matching(argument, _results(own))
        elif os.path.isdir(argument):
            from mffsr.photo.brackets import photos_in

            found += photos_in(Path(argument), _results(own))
        else:
            found.append(Path(argument))
    return found


def _results(own: Sequence[Path]) -> set[str]:
    """Return the real paths of those files that are results of the last time."""
    from mffsr.photo import is_result

    return {os.path.realpath(path) for path in own if is_result(path)}


def _matching(pattern: str, skip: set[str]) -> list[Path]:
    """Return the photos that match a glob; earlier results only where nothing else does.

    Files named as no photo count where nothing else matches.
    """
    from mffsr.photo.brackets import named_as_result
    from mffsr.photo.capture import SUFFIXES

    folder, name = os.path.split(pattern)
    if os.path.isdir(folder):  # its own name may hold brackets
        folder = glob.escape(folder)
    found = sorted(glob.glob(os.path.join(folder, name)), key=natural)
    files = [path for match in found if not (path := Path(match)).is_dir()]
    matches = [path for path in files if path.suffix.lower() in SUFFIXES] or files
    if not matches:
        raise PhotoError(f"{pattern}: no photo matches")
    fresh = [path for path in matches if not named_as_result(path) and os.path.realpath(path) not in skip]
    return fresh or matches


def _listed(content: bytes) -> list[Path]:
    """Return the files of a list, one a line. Names are bytes: in them, only line feeds end a line.

    A list in UTF-16, as PowerShell writes it, is known by its byte order mark. Names may stand in
    double quotes, as Windows copies them.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode()
    lines = content.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").split(b"\n")
    return [Path(os.fsdecode(_QUOTED.sub(rb"\1", line))) for line in lines if line.strip()]


def prepare(
    paths: list[Path],
    output: Path | None,
    *,
    scale: int,
    depth: Depth,
    on_exists: OnExists,
    max_pixels: int,
    framing: Framing,
    focus_map: Path | None,
    console: Console,
) -> Job:
    """Check everything that can be known from headers and folders; read no pixels, compute nothing.

    Raises typer.Exit where the output exists and is to be skipped.
    """
    headers = check_photos(paths, max_pixels, framing)
    deepest = max(header.bit_depth for header in headers)
    wanted = wanted_depth(depth, deepest)
    target = output if output is not None else default_output(paths[0], scale, wanted)
    aligned = aligned_names(paths, framing.save_aligned) if framing.save_aligned is not None else []
    job = Job(
        photos=paths,
        output=target,
        size=headers[0].size,
        depth=wanted,
        scale=scale,
        overwrite=on_exists is OnExists.overwrite,
        max_pixels=max_pixels,
        source_depth=deepest,
        channels=max(header.channels for header in headers),
        has_alpha=any(header.has_alpha for header in headers),
        framing=framing,
        focus_map=focus_map,
        aligned=tuple(aligned),
    )
    _check_formats(job)
    if on_exists is OnExists.rename:
        job = with_free_names(replace(job, aligned=tuple(map(free_name, job.aligned))))
    check_outputs(job.outputs, paths)
    if on_exists is OnExists.skip and os.path.lexists(target) and not target.is_dir():
        console.message(f"{target}: exists, skipped")
        console.result(str(target), {"output": str(target), "skipped": True})
        raise typer.Exit(int(console.unprinted))
    return replace(job, depth=_settle(job, depth, console))


def with_free_names(job: Job) -> Job:
    """Return the job with other names for its photo and map where those are taken."""
    focus_map = free_name(job.focus_map, with_preview) if job.focus_map is not None else None
    return replace(job, output=free_name(job.output), focus_map=focus_map)


def wanted_depth(asked: Depth, deepest: int) -> int:
    """Return the bits per channel to write: as asked for, else those of the deepest photo."""
    return deepest if asked is Depth.auto else int(asked.value)


def check_photos(paths: list[Path], max_pixels: int, framing: Framing) -> list[Header]:
    """Return the headers of a bracket; raises MffsrError for photos that cannot be one."""
    from mffsr.photo import check_pixels, check_planes, check_registrable, read_header
    from mffsr.photo.brackets import check_count

    headers = [read_header(path) for path in paths]  # first: a folder with a typing error is no lone photo
    check_count(len(paths))
    check_planes(paths)
    seen: set[tuple[int, int, int | None]] = set()
    for path in paths:
        file, plane = plane_of(path)
        status = os.stat(file)
        if (number := (status.st_dev, status.st_ino, plane)) in seen:
            raise UsageError(f"{path}: given twice")
        seen.add(number)
    first = headers[0]
    for path, header in zip(paths, headers, strict=True):
        check_pixels(header, path, max_pixels)
        if header.size != first.size:
            raise BracketError(
                f"{path}: {header.width}×{header.height}, but {paths[0]} is {first.width}×{first.height}\n"
                "the photos of a bracket must have one size"
            )
        if header.has_alpha != first.has_alpha:
            raise BracketError("some photos have transparency, others have none\nexport all alike")
    if framing.align:
        check_registrable(first.size, paths[0])
    return headers


def _check_formats(job: Job) -> None:
    """Refuse names of no format, those of folders with them; raises UsageError."""
    from mffsr.photo import supported_depth

    supported_depth(job.output)
    if job.focus_map is not None and job.focus_map.suffix.lower() != ".png":
        raise UsageError(f"{job.focus_map}: the focus map is a PNG file")


def _settle(job: Job, depth: Depth, console: Console) -> int:
    """Return the depth to write; raises UsageError or PhotoError where an output cannot be written."""
    from mffsr.photo import check_target, supported_depth

    target, size = job.output, (job.size[0] * job.scale, job.size[1] * job.scale)
    check_target(target, size=size, overwrite=job.overwrite)
    able = supported_depth(target)
    if job.depth > able and depth is not Depth.auto:
        raise UsageError(
            f"{target}: this format holds {able} bits a channel, not {job.depth}\nwrite a TIFF or PNG"
        )
    if job.depth > able:
        console.warning(
            f"{target.name}: 16-bit photos, but the format holds 8 bits; write a TIFF or PNG to keep them"
        )
    _check_aligned(job)
    if job.focus_map is not None:
        for path in with_preview(job.focus_map):
            check_target(path, overwrite=job.overwrite)
    bits = min(job.depth, able)
    _check_disk(target, size, job.channels, bits)
    return bits


def _check_aligned(job: Job) -> None:
    """Refuse a folder for registered photos that cannot be written to; raises UsageError or PhotoError."""
    from mffsr.photo import check_target

    folder = job.framing.save_aligned
    if folder is None:
        return
    if folder.is_dir():
        places = {file_of(photo).parent for photo in job.photos}
        if any(os.path.samefile(folder, place) for place in places):
            raise UsageError(
                f"{folder}: photos of the bracket lie there; next time, registered ones would count as such\n"
                "choose another folder"
            )
        for path in job.aligned:
            check_target(path, overwrite=job.overwrite)
    elif os.path.lexists(folder):
        raise UsageError(f"{folder}: is no folder")
    elif not folder.parent.is_dir():
        raise PhotoError(f"{folder}: the folder above it does not exist")
    elif not os.access(folder.parent, os.W_OK | os.X_OK):
        raise PhotoError(f"{folder}: no permission to write into {folder.parent}\nchoose another folder")


def _check_disk(target: Path, size: tuple[int, int], channels: int, bits: int) -> None:
    """Refuse where the disk cannot take even a well compressed picture; raises PhotoError.

    Of 16 bits, noise leaves about half at least; of 8 bits, JPEG leaves a tenth.
    """
    needed = size[0] * size[1] * channels * bits // 8 // (2 if bits == 16 else 10)
    free = shutil.disk_usage(Path(os.path.realpath(target)).parent).free  # links are followed
    if free < needed:
        raise PhotoError(
            f"{target}: No space left: about {_bytes(needed)} are needed, {_bytes(free)} are free\n"
            "free some, or write to another disk"
        )


def _bytes(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def settle_existing(on_exists: OnExists, *, force: bool) -> OnExists:
    """Return what to do where an output exists; raises UsageError where -f contradicts --on-exists."""
    if force and on_exists not in (OnExists.error, OnExists.overwrite):
        raise UsageError(f"-f and --on-exists {on_exists.value} contradict each other: expected one of them")
    return OnExists.overwrite if force else on_exists


def parse_tile(text: str) -> int | None:
    """Return the side of a tile in pixels, None for auto; raises UsageError."""
    if text == "auto":
        return None
    if not re.fullmatch(r"\d{1,9}", text):
        raise UsageError(f"tile {text}: expected auto or a number of pixels")
    if int(text) < SMALLEST_TILE:
        raise UsageError(f"tile is {text}, expected at least {SMALLEST_TILE} pixels")
    return int(text)


def parse_memory(text: str) -> int | None:
    """Return bytes for something like 4G, None for nothing; raises UsageError."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)([KMGT]?)i?B?", text, re.IGNORECASE | re.ASCII)
    size = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise UsageError(f"max-memory {text}: expected something like 4G or 800M")
    return size
