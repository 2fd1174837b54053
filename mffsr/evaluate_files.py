"""The files of an evaluation: which belong together, and what is missing.

Nothing is left out silently: whatever does not fit is named, and `require_complete` refuses it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mffsr.errors import BracketError, MffsrError, UsageError
from mffsr.photo import read_header, read_photo, with_depth
from mffsr.photo.capture import SUFFIXES
from mffsr.text import natural

__all__ = [
    "Bracket",
    "Pixels",
    "check_sizes",
    "colour",
    "crop",
    "find_brackets",
    "find_photos",
    "find_results",
    "listed",
    "load_all",
    "require_complete",
]

Pixels = NDArray[np.uint8]  # H×W×3 or H×W×1

NAMED = 8  # most files that a message lists


class Bracket(NamedTuple):
    """The files of one scene."""

    name: str
    frames: tuple[str, ...]  # what the names end in: ("A", "B")
    paths: tuple[Path, ...]


def find_photos(folder: Path) -> list[Path]:
    """List the photos in a folder, naturally sorted (2 before 10); raises UsageError if there are none."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder")
    found = [path for path in folder.iterdir() if _named_as_photo(path)]
    if not found:
        raise UsageError(f"{folder}: no photos (no file there is named as one: .jpg, .png, .tif …)")
    return sorted(found, key=lambda path: natural(path.name))


def _named_as_photo(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def find_brackets(folder: Path) -> tuple[list[Bracket], list[str]]:
    """Group a folder's photos by name, and name what is missing or does not belong to a bracket.

    The stem ends in -A, -B, _1, _2 …: a separator (- _ or a space) and one letter or a number. Or the folder
    holds a folder of each kind, named so as well (A and B, source_1 and source_2), with photos of the same
    names in each. What the majority of the scenes has is expected of each: pairs, or triples. Raises
    UsageError if there is none.
    """
    kinds = _folders_of_frames(folder)
    scenes, faults = (_scenes_of_folders(kinds), []) if kinds else _scenes_of_names(find_photos(folder))
    counts = Counter(tuple(sorted(found, key=natural)) for found in scenes.values() if len(found) > 1)
    if not counts:
        raise UsageError(
            f"{folder}: no brackets found\n"
            "expected names such as scene-A.jpg and scene-B.jpg, or A/scene.png and B/scene.png"
        )
    expected = max(counts, key=lambda frames: (counts[frames], len(frames)))
    brackets = []
    for scene, found in scenes.items():
        lacking = [frame for frame in expected if frame not in found]
        beyond = [path for frame, paths in found.items() if frame not in expected for path in paths]
        twice = [path for paths in found.values() for path in paths[1:]]
        for frame in lacking if not beyond else ():
            present = next(iter(found.values()))[0]
            stem = present.stem if kinds else present.stem[: len(scene) + 1] + frame
            place = kinds[frame] if kinds else folder
            faults.append(f"{_within(folder, place / (stem + present.suffix))} is missing")
        for path in beyond:
            faults.append(f"{_within(folder, path)} is one frame more than the other brackets have")
        for path in twice:
            faults.append(f"{_within(folder, path)} is there under another extension, too")
        if not lacking and not beyond and not twice:
            brackets.append(Bracket(scene, expected, tuple(found[frame][0] for frame in expected)))
    return brackets, faults


Scenes = dict[str, dict[str, list[Path]]]  # scene → frame → the files that claim to be it


def _scenes_of_names(photos: Sequence[Path]) -> tuple[Scenes, list[str]]:
    """Part photos by their names, and name those that tell of no frame."""
    scenes: Scenes = {}
    faults = []
    for path in photos:
        match = re.fullmatch(r"(.+)[-_ ]([A-Za-z]|\d{1,3})", path.stem)
        if match:
            scenes.setdefault(match[1], {}).setdefault(match[2].upper(), []).append(path)
        else:
            faults.append(
                f"{path.name} is not a frame of a bracket (its name does not end in -A, -B, _1, _2)"
            )
    return scenes, faults


def _scenes_of_folders(kinds: dict[str, Path]) -> Scenes:
    """Part the photos of folders of frames by their names; no photo tells of no frame there."""
    scenes: Scenes = {}
    for frame, place in kinds.items():
        for path in find_photos(place):
            scenes.setdefault(path.stem, {}).setdefault(frame, []).append(path)
    return dict(sorted(scenes.items(), key=lambda scene: natural(scene[0])))


def _folders_of_frames(folder: Path) -> dict[str, Path]:
    """Return the folder of each frame, where `folder` holds such instead of photos: A and B, source_1 and _2.

    Of several kinds the one with most folders; those of other names, as of truth and results, do not count.
    """
    if not folder.is_dir() or any(_named_as_photo(path) for path in folder.iterdir()):
        return {}
    kinds: dict[str, dict[str, Path]] = {}
    for place in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        match = re.fullmatch(r"(|.+[-_ ])([A-Za-z]|\d{1,3})|(.*[a-z])([A-Z]|\d{1,3})", place.name)
        if match and place.is_dir() and any(map(_named_as_photo, place.iterdir())):
            kind, frame = match[1] if match[2] else match[3], match[2] or match[4]
            kinds.setdefault(kind, {})[frame.upper()] = place
    most = max(kinds.values(), key=len, default={})
    return most if len(most) > 1 else {}


def _within(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def find_results(folder: Path, brackets: Sequence[Bracket]) -> tuple[dict[str, Path], list[str], list[str]]:
    """Return another method's results by scene, what is missing, and the files that belong to no scene.

    A result's stem is the scene's name, or contains it as a whole: `lytro-01.png`, `gacn_lytro-01_fused.png`.
    Case and separators do not matter; of two scenes of which one's name contains the other's, such as flower
    and flower-2, a result is the longer one's. Raises MffsrError where two files claim one
    scene, or one file two.
    """

    def plain(name: str) -> str:
        return re.sub(r"[\W_]+", "-", name.casefold()).strip("-")

    photos = {path: plain(path.stem) for path in find_photos(folder)}
    scenes = {bracket.name: plain(bracket.name) for bracket in brackets}
    found: dict[str, Path] = {}
    for name, wanted in scenes.items():
        exact = [path for path, stem in photos.items() if stem == wanted]
        longer = [other for other in scenes.values() if other != wanted and f"-{wanted}-" in f"-{other}-"]
        claims = exact or [
            path
            for path, stem in photos.items()
            if f"-{wanted}-" in f"-{stem}-" and not any(f"-{other}-" in f"-{stem}-" for other in longer)
        ]
        if len(claims) > 1:
            both = " and ".join(path.name for path in claims[:2])
            raise MffsrError(f"{folder}: {both} could both be {name}\nkeep one of them there")
        if claims:
            found[name] = claims[0]
    for path in photos:
        served = [name for name, one in found.items() if one == path]
        if len(served) > 1:
            both = " and of ".join(served[:2])
            raise MffsrError(
                f"{folder}: {path.name} could be the result of {both}\nname it after one of them"
            )
    missing = [f"no result for {bracket.name}" for bracket in brackets if bracket.name not in found]
    return found, missing, [path.name for path in photos if path not in found.values()]


def require_complete(folder: Path, faults: Sequence[str], *, allow_missing: bool = False) -> None:
    """Raise MffsrError, naming files, where a mean would be taken over fewer images than are meant."""
    if faults and not allow_missing:
        raise MffsrError(
            f"{folder}: incomplete: {listed(faults)}\nno mean is taken over a smaller set; "
            "complete the folder, or use --allow-missing to leave these out"
        )


def listed(names: Sequence[str]) -> str:
    """Return the names, or the first few and how many more there are."""
    more = f" … and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def load_all(paths: Sequence[Path]) -> list[Pixels]:
    """Read photos of one size as 8 bits, alpha left out; gray ones among colour become colour.

    Raises PhotoError, and BracketError for photos of different sizes.
    """
    images: list[Pixels] = []
    for path in paths:
        image = with_depth(read_photo(path), 8).pixels.astype(np.uint8, copy=False)
        if images and image.shape[:2] != images[0].shape[:2]:
            raise BracketError(
                f"{path}: {image.shape[1]}×{image.shape[0]}, but {paths[0].name} is "
                f"{images[0].shape[1]}×{images[0].shape[0]}\nthese photos must have one size"
            )
        images.append(image)
    any_colour = any(image.shape[2] == 3 for image in images)
    return [colour(image) if any_colour else image for image in images]


def colour(image: Pixels) -> Pixels:
    """Return an image (H, W, 1 or 3) with three channels."""
    return np.repeat(image, 3, 2) if image.shape[2] == 1 else image


def crop(image: Pixels, scale: int, path: Path) -> Pixels:
    """Cut to a multiple of `scale` from the top left; BracketError if too little is left to measure."""
    _check_large_enough(path, image.shape[1], image.shape[0], scale)
    height, width = (side // scale * scale for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def _check_large_enough(path: Path, width: int, height: int, scale: int) -> None:
    least = max(11 + 2 * scale, 8 * scale)
    if min(width, height) < least:
        raise BracketError(
            f"{path}: {width}×{height} is too small to be evaluated at ×{scale}\n"
            f"expected at least {least}×{least}"
        )


def check_sizes(paths: Sequence[Path], scale: int) -> None:
    """Refuse a bracket that cannot be evaluated, by its headers alone.

    Raises BracketError where photos differ in size or are too small for `scale`, PhotoError for what is no
    photo.
    """
    headers = [read_header(path) for path in paths]
    for path, header in zip(paths, headers, strict=True):
        _check_large_enough(path, header.width, header.height, scale)
        if (header.width, header.height) != (headers[0].width, headers[0].height):
            raise BracketError(
                f"{path}: {header.width}×{header.height}, but {paths[0].name} is "
                f"{headers[0].width}×{headers[0].height}\nthe photos of a bracket must have one size"
            )
