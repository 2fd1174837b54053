"""Folders → brackets: which photos are of one scene and belong together.

find_brackets(folder, group="auto") → Found(brackets, left_out)

folder   every folder that holds photos is a bracket
time     the photos of each folder are parted: by the camera's own focus bracket numbers where it notes
         them, else by pauses, camera, exposure, focal length and size; then by what they show
auto     sub-folders are brackets; the photos that lie in the folder itself are parted as by time
none     the photos that lie in the folder itself are one bracket

A TIFF that is a stack is a bracket of its own, of its planes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from mffsr.errors import PhotoError, UsageError
from mffsr.limits import SCALES
from mffsr.text import natural

from ._sniff import RAW_SUFFIXES
from .capture import SUFFIXES, Capture, read_capture, similarity, thumbnail
from .images import MAX_PIXELS, planes_of, read_header

__all__ = ["Bracket", "Found", "check_count", "find_brackets", "named_as_result", "photos_in"]

GROUPINGS = ("auto", "folder", "time", "none")
STACKS = (".tif", ".tiff")  # the only files of a folder that are opened to see whether they are stacks
LONGEST_GAP = 30.0  # s, beside the exposure: rails and flashes take 10 to 20 s a frame
UNEVEN = 5.0  # a pause so many times the usual one of the bracket ends it
SHORT_GAP = 3.0  # s; shorter pauses never end one: many cameras note whole seconds only
# Correlation of thumbnails. Neighbours in 22 real brackets are above 0.98; of 15 000 pairs of other photos
# 0.1 % are above 0.8.
ALIKE, VERY_ALIKE = 0.8, 0.95  # the latter after more than a short pause, when people strike another pose
_BESIDE_RAW = (".jpg", ".jpeg", ".heic", ".heif", ".hif")
# Folders of thumbnails, deleted files and snapshots that network storage and Windows keep among the photos.
_OF_SYSTEMS = frozenset(["@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot"])
_OF_SYSTEMS |= {"$recycle.bin", "system volume information"}
_OURS = re.compile(rf"-fused-x[1{''.join(map(str, SCALES))}](-\d+)?$")


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """Photos of one scene. `output` is the file to write, where it was chosen by hand."""

    name: str
    photos: Sequence[Path]
    why: str = ""  # they belong together
    output: str | None = None


@dataclass(kw_only=True)
class Found:
    """The brackets of a folder, and the photos that belong to none, each with the reason."""

    brackets: list[Bracket] = field(default_factory=list)
    left_out: list[tuple[Path, str]] = field(default_factory=list)

    def add(self, name: str, photos: Sequence[Path], why: str) -> None:
        """Add a bracket; one of the same name, which would have the same output, gets another."""
        while any(name == other.name for other in self.brackets):
            name += "-2"
        self.brackets.append(Bracket(name=name, photos=photos, why=why))


def check_count(photos: int) -> None:
    """Raise UsageError for fewer photos than a bracket has."""
    if photos < 2:
        some = "1 photo" if photos else "no photos"
        raise UsageError(f"{some} given, expected at least 2: a bracket of one scene")


def find_brackets(
    folder: Path,
    *,
    group: str = "auto",
    skip: Set[str] = frozenset(),
    max_pixels: int = MAX_PIXELS,
) -> Found:
    """Find the brackets below a folder, in natural order.

    `skip` are real paths of files and folders to pass over. Every photo is taken once, whatever symbolic
    links lead to it. Hidden files, earlier results ("-fused-x2") and a system's own folders, as of deleted
    files, are passed over. Photos of more than `max_pixels` pixels are not decoded to compare what they
    show. Raises UsageError for a folder that is none, PhotoError for one that cannot be read.
    """
    if group not in GROUPINGS:
        raise UsageError(f"group {group}: expected one of {', '.join(GROUPINGS)}")
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder; a folder of brackets was expected")
    found = Found()
    for place, files in _walk(folder, set(skip), found, deep=group != "none"):
        relative = place.relative_to(folder).as_posix()
        prefix = "" if place == folder else f"{relative}/"
        photos = _add_stacks(_prefer_raw(files, found), prefix, found)
        if group == "time" or (group == "auto" and place == folder):
            _part(photos, prefix, found, max_pixels)
        elif len(photos) > 1:
            name = Path(os.path.realpath(folder)).name or "bracket" if place == folder else relative
            found.add(name, photos, "one folder")
        else:
            found.left_out += [(photo, "the only photo of its folder") for photo in photos]
    return found


def photos_in(folder: Path, skip: Set[str] = frozenset()) -> list[Path]:
    """List the photos in a folder itself, in natural order, but for those that `find_brackets` passes over.

    `skip` are real paths of files to pass over as well. Raises PhotoError for a folder that cannot be read or
    holds none.
    """
    found = Found()
    walked = _walk(folder, set(skip), found, deep=False)
    photos = [path for _, files in walked for path in _prefer_raw(files, found)]
    if not photos:
        raise PhotoError(f"{folder}: no photos lie in this folder\nfor a folder of brackets, see mffsr batch")
    return photos


def named_as_result(path: Path) -> bool:
    """Whether a file has the name that `fuse` gives where none is chosen: that of an earlier result."""
    return _OURS.search(path.stem) is not None


def _walk(folder: Path, seen: set[str], found: Found, *, deep: bool) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder with its photos; a folder or photo that was seen under another name is left out."""
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: natural(entry.name))
    except OSError as fault:
        raise PhotoError(f"{folder}: cannot be read: {fault.strerror or fault}") from None
    below = [e for e in entries if not e.name.startswith(".") and _is_folder(e, folder, found)]
    photos = []
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith(".") or path.suffix.lower() not in SUFFIXES or named_as_result(path):
            continue
        if entry in below or os.path.realpath(path) in seen:
            continue
        seen.add(os.path.realpath(path))
        photos.append(path)
    if photos:
        yield folder, photos
    for entry in below if deep else ():
        try:
            yield from _walk(folder / entry.name, seen, found, deep=True)
        except PhotoError as fault:
            found.left_out.append((folder / entry.name, str(fault)))


def _is_folder(entry: os.DirEntry[str], place: Path, found: Found) -> bool:
    """Whether an entry, or what it links to, is a folder of photos; what cannot be told is left out."""
    try:
        return entry.is_dir() and entry.name.lower() not in _OF_SYSTEMS
    except OSError as fault:  # a link in circles, or into a closed folder; as a photo it will be reported
        if Path(entry.name).suffix.lower() not in SUFFIXES:
            found.left_out.append((place / entry.name, f"cannot be read: {fault.strerror or fault}"))
        return False


def _prefer_raw(photos: list[Path], found: Found) -> list[Path]:
    """Leave out the JPEG or HEIF that a camera wrote beside a RAW; what people made of it stays."""
    raws = {photo.stem for photo in photos if photo.suffix.lower() in RAW_SUFFIXES}
    both = [p for p in photos if p.stem in raws and p.suffix.lower() in _BESIDE_RAW]
    found.left_out += [(photo, "the RAW of the same name is taken instead") for photo in both]
    beside = set(both)
    return [photo for photo in photos if photo not in beside]


def _add_stacks(photos: list[Path], prefix: str, found: Found) -> list[Path]:
    """Add a bracket for every stack; return the other photos, among them what cannot be read."""
    others = []
    for photo in photos:
        try:
            planes = planes_of(photo) if photo.suffix.lower() in STACKS else [photo]
        except PhotoError:
            planes = [photo]
        if len(planes) > 1:
            found.add(prefix + photo.stem, planes, "planes of one file")
        else:
            others += planes
    return others


class _Shot:
    """A photo with what is known of it; `fault` where it cannot be read."""

    def __init__(self, path: Path, max_pixels: int) -> None:
        self.path, self.max_pixels = path, max_pixels
        self.fault = False
        self.capture = Capture(path=path)
        self.size: tuple[int, int] | None = None
        try:
            self.capture = read_capture(path)
            self.size = read_header(path).size
        except PhotoError:
            self.fault = True

    @cached_property
    def thumbnail(self) -> NDArray[np.float32] | None:
        return thumbnail(self.path, max_pixels=self.max_pixels)


def _part(photos: list[Path], prefix: str, found: Found, max_pixels: int) -> None:
    """Part the photos of one folder into brackets."""
    shots = [_Shot(path, max_pixels) for path in photos]
    readable = [shot for shot in shots if not shot.fault]
    if readable and all(shot.capture.time is not None for shot in readable):
        readable.sort(key=lambda shot: (shot.capture.time or 0.0, natural(shot.path.name)))
    groups: list[list[_Shot]] = []
    for shot in readable:
        if groups and _belongs(shot, groups[-1]):
            groups[-1].append(shot)
        else:
            groups.append([shot])
    _add_unreadable(shots, groups)
    for group in groups:
        if len(group) == 1:
            found.left_out.append((group[0].path, "no other photo belongs to it"))
        else:
            found.add(prefix + group[0].path.stem, [shot.path for shot in group], _why(group))


def _add_unreadable(shots: list[_Shot], groups: list[list[_Shot]]) -> None:
    """Put a damaged photo to its neighbour by name, so that the bracket it is missing from is reported."""
    home = {id(shot): group for group in groups for shot in group}
    for index, shot in enumerate(shots):
        if shot.fault:
            near = [*reversed(shots[:index]), *shots[index + 1 :]]
            group = next((home[id(other)] for other in near if id(other) in home), None)
            if group is None:
                groups.append(group := [])
            group.append(shot)
            home[id(shot)] = group


def _belongs(shot: _Shot, group: list[_Shot]) -> bool:
    """Whether a shot continues a bracket."""
    last = group[-1]
    one, other = last.capture, shot.capture
    if one.camera != other.camera or last.size != shot.size:
        return False
    if one.sequence is not None or other.sequence is not None:  # the camera counted: nothing to guess
        return one.sequence is not None and other.sequence is not None and other.sequence > one.sequence
    if one.settings != other.settings or (one.time is None) != (other.time is None):
        return False
    needed = ALIKE
    if one.time is not None and other.time is not None:
        gap = other.time - one.time - (one.settings[0] or 0.0)
        times = [s.capture.time for s in group if s.capture.time is not None]
        usual = median([after - before for before, after in pairwise(times)] or [LONGEST_GAP])
        if gap > LONGEST_GAP or gap > max(SHORT_GAP, UNEVEN * usual):
            return False
        needed = ALIKE if gap <= SHORT_GAP else VERY_ALIKE
    seen, now = last.thumbnail, shot.thumbnail
    return seen is None or now is None or similarity(seen, now) >= needed


def _why(group: list[_Shot]) -> str:
    first, last = group[0].capture, group[-1].capture
    if first.sequence is not None:
        return "the camera's focus bracket"
    if first.time is None or last.time is None:
        return "no capture times: alike in size and content"
    return f"taken within {last.time - first.time:.1f} s"
