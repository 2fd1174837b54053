"""A plan: which photos make which bracket, as a TOML file that is written, edited by hand and read back.

    folder = "/photos/2024"          # relative photos lie below it; itself relative, it lies beside the plan

    [[bracket]]
    name = "flower"
    output = "flower.tif"            # optional: else --template names it
    photos = ["IMG_1.jpg", "IMG_2.jpg"]      # or one TIFF that is a stack

A plan says what is read; it can never make anything be written outside the output folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from mffsr.errors import PhotoError, UsageError
from mffsr.photo import planes_of
from mffsr.photo.brackets import Bracket, Found

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["check_template", "inside", "plan_text", "read_plan", "target_name"]

LARGEST = 64 << 20  # bytes: a plan of a million photos
_FIELD = re.compile(r"\{([^{}]*)\}")
_FIELDS = ("bracket", "scale", "ext")


def plan_text(found: Found, folder: Path, notes: Sequence[str] = ()) -> str:
    """Return brackets as a plan; raises UsageError for names that TOML, being UTF-8, cannot hold.

    `notes` are one for each bracket, or none; they become comments.
    """
    root = Path(os.path.abspath(folder))
    lines = [
        "# Plan of mffsr batch. Edit it, then: mffsr batch --plan THIS_FILE -o OUT",
        "# Each bracket becomes one photo. Move photos, rename or remove brackets as you like;",
        '# output = "NAME.EXT" in a bracket chooses its file, inside OUT.',
        "",
        f"folder = {_string(str(root))}",
    ]
    for bracket, note in zip(found.brackets, notes or [""] * len(found.brackets), strict=True):
        lines += ["", "[[bracket]]" + _comment(bracket.why)]
        lines += [_comment(note).strip()] if note else []
        lines.append(f"name = {_string(bracket.name)}")
        if bracket.output is not None:
            lines.append(f"output = {_string(bracket.output)}")
        lines += ["photos = [", *(f"  {_string(_relative(photo, root))}," for photo in bracket.photos), "]"]
    if found.left_out:
        lines += ["", "# In no bracket:"]
        lines += [f"#   {_string(_relative(photo, root))}{_comment(why)}" for photo, why in found.left_out]
    return "\n".join(lines) + "\n"


def _relative(photo: Path, root: Path) -> str:
    path = Path(os.path.abspath(photo))
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _string(text: str) -> str:
    """A TOML basic string: quotes, backslashes and control characters escaped."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{text}: a plan cannot hold this name, which is not UTF-8\nrename it") from None
    short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    # U+0085, U+2028 and U+2029 are allowed, yet editors break lines at them.
    return '"' + "".join(short.get(c) or (c if c.isprintable() else f"\\U{ord(c):08x}") for c in text) + '"'


def _comment(text: str) -> str:
    """A comment at the end of a line, or nothing."""
    clean = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
    return f"  # {clean.encode('utf-8', 'replace').decode('utf-8')}" if clean else ""


def read_plan(path: Path, folder: Path | None = None) -> list[Bracket]:
    """Read a plan; `folder` replaces the one it names.

    Raises PhotoError where the file cannot be read, UsageError for whatever is not as a plan should be,
    among them names and outputs that lead out of the output folder.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as fault:
        raise PhotoError(f"{path}: the plan cannot be read: {fault.strerror or fault}") from None
    if len(data) > LARGEST:
        raise UsageError(f"{path}: too large for a plan")
    try:
        plan = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as fault:  # all that tomllib raises, as for a number of 5000 digits
        raise UsageError(f"{path}: is no plan: {fault}") from None
    _only(plan, {"folder": str, "bracket": list}, f"{path}")
    root = folder if folder is not None else path.parent / plan.get("folder", "")
    brackets = []
    for number, table in enumerate(plan.get("bracket", []), 1):
        where = f"{path}: bracket {number}"
        if not isinstance(table, dict):
            raise UsageError(f"{where}: expected a table, [[bracket]]")
        _only(table, {"name": str, "photos": list, "output": str}, where)
        name, photos, output = table.get("name", ""), table.get("photos", []), table.get("output")
        if not photos or not all(isinstance(photo, str) and photo for photo in photos):
            raise UsageError(f"{where}: photos is missing or not a list of file names")
        if any("\0" in f"{root}{photo}" for photo in photos):
            raise UsageError(f"{where}: a file's name cannot hold a NUL character")
        for text in (name,) if output is None else (name, output):
            _check_name(text, where)
        files = [root / photo for photo in photos]
        if len(files) == 1:
            with contextlib.suppress(PhotoError):  # the bracket's fault, told when it is its turn
                files = planes_of(files[0])
        brackets.append(Bracket(name=name, photos=files, why="planned", output=output))
    return brackets


def _only(table: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> None:
    for key, value in table.items():
        if key not in kinds:
            raise UsageError(f"{where}: unknown key {key!r}; expected {', '.join(kinds)}")
        if not isinstance(value, kinds[key]):
            raise UsageError(f"{where}: {key} must be a {'list' if kinds[key] is list else 'string'}")


def _check_name(name: str, where: str) -> None:
    """Refuse a name that is none or could lead out of a folder."""
    path = PurePath(name)
    if "\0" in name or path.anchor or ".." in path.parts or not path.name:
        raise UsageError(
            f"{where}: {name!r} is no name inside the output folder\nuse one such as flower or day1/flower"
        )


def check_template(option: str, template: str, brackets: int = 1) -> None:
    """Refuse an option's template that is no name inside a folder, or gives all brackets one; UsageError."""
    unknown = [name for name in _FIELD.findall(template) if name not in _FIELDS]
    if unknown or "{" in _FIELD.sub("", template) or "}" in _FIELD.sub("", template):
        raise UsageError(f"{option} {template}: expected {{{'}, {'.join(_FIELDS)}}} and plain text")
    if brackets > 1 and "{bracket}" not in template:
        raise UsageError(f"{option} {template}: without {{bracket}} all outputs would have one name")
    _check_name(_FIELD.sub("x", template), f"{option} {template}")


def target_name(template: str, bracket: Bracket, scale: int, extension: str) -> str:
    """Return the output's path below the output folder; raises UsageError where it would lie outside."""
    values = {"bracket": bracket.name, "scale": str(scale), "ext": extension}
    name = bracket.output or _FIELD.sub(lambda match: values[match[1]], template)
    _check_name(name, bracket.name)
    return name


def inside(folder: Path, name: str) -> Path:
    """Return `folder / name`; raises PhotoError where links lead it out of the folder, or it is no name."""
    target = folder / name
    root = Path(os.path.realpath(folder))
    try:
        linked = target.is_symlink()
    except OSError as fault:  # longer than the disk allows
        raise PhotoError(f"{target}: cannot be written: {fault.strerror or fault}") from None
    if not Path(os.path.realpath(target.parent)).is_relative_to(root) or linked:
        raise PhotoError(f"{target}: a link leads out of the output folder; nothing is written there")
    return target
