"""`mffsr batch --dry-run`: the brackets, and what their photos' headers tell of fusing them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mffsr.cli import fuse_job
from mffsr.cli.batch_report import named
from mffsr.cli.batch_worker import Fuser, Options, target_of
from mffsr.cli.console import Console
from mffsr.cli.outputs import check_outputs
from mffsr.errors import MffsrError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mffsr.photo import Header
    from mffsr.photo.brackets import Bracket, Found

__all__ = ["print_plan", "write_plan"]


def print_plan(found: Found, root: Path, options: Options, fuser: Fuser | None, console: Console) -> None:
    """Print the plan on stdout; without a `fuser`, as others compute, it tells of no tiles and memory."""
    from mffsr.batch_plan import plan_text

    expected = [_expected(bracket, options, fuser, console) for bracket in found.brackets]
    notes = [_note(told, len(b.photos)) for told, b in zip(expected, found.brackets, strict=True)]
    # JSON holds names that TOML cannot.
    text = "" if console.as_json else plan_text(found, root, notes).rstrip("\n")
    console.result(text, _event(found, expected, fuser))


def write_plan(found: Found, root: Path, plan: Path, *, overwrite: bool, console: Console) -> None:
    """Write the plan to a file."""
    from mffsr.batch_plan import plan_text
    from mffsr.photo import atomic_output

    text = plan_text(found, root)
    photos = [photo for bracket in found.brackets for photo in bracket.photos]
    check_outputs([plan], [*photos, *(path for path, _ in found.left_out)])
    with atomic_output(plan, overwrite=overwrite) as stream:
        stream.write(text.encode())
    console.message(f"{len(found.brackets)} brackets")
    console.result(str(plan), _event(found, [{} for _ in found.brackets], None))


def _event(found: Found, expected: list[dict[str, Any]], fuser: Fuser | None) -> dict[str, Any]:
    """Return what --json tells."""
    brackets = zip(found.brackets, expected, strict=True)
    event: dict[str, Any] = {
        "event": "plan",
        "brackets": [{**named(bracket), "why": bracket.why, **told} for bracket, told in brackets],
        "left_out": [{"path": str(path), "why": why} for path, why in found.left_out],
    }
    if fuser is not None:
        event |= {"device": str(fuser.runtime.device), "precision": fuser.runtime.precision}
    return event


def _expected(bracket: Bracket, options: Options, fuser: Fuser | None, console: Console) -> dict[str, Any]:
    """Return what a bracket would become, or why it could not be fused; of that the user is warned too."""
    from mffsr.photo import supported_depth

    try:
        target = target_of(options, bracket)
        headers = fuse_job.check_photos(list(bracket.photos), options.max_pixels, options.framing)
        (width, height), deepest = headers[0].size, max(header.bit_depth for header in headers)
        depth = min(fuse_job.wanted_depth(options.depth, deepest), supported_depth(target))
        shape = (height, width, max(header.channels for header in headers))
        return {
            "output": str(target),
            "width": width * options.scale,
            "height": height * options.scale,
            "depth": depth,
            "input": {"width": width, "height": height, "depth": deepest},
            **(_needs(fuser, shape, depth, headers) if fuser is not None else {}),
        }
    except MffsrError as error:
        console.warning(f"{bracket.name}: {error}")
        return {"fault": str(error)}


def _needs(
    fuser: Fuser, shape: tuple[int, int, int], depth: int, headers: Sequence[Header]
) -> dict[str, Any]:
    """Return tiles, memory and disk for photos of `shape`; raises DeviceError for too large ones."""
    from mffsr.frames import disk_needed
    from mffsr.plan import memory_of, plan_tiles

    height, width, channels = shape
    plan = plan_tiles(fuser.runtime, fuser.model, shape, fuser.options.tile, depth)
    memory = memory_of(plan, fuser.runtime, fuser.model, shape, depth)
    plane = width * height * max(header.bit_depth for header in headers) // 8
    has_alpha = any(header.has_alpha for header in headers)
    disk = disk_needed(len(headers), plane, channels, alpha=has_alpha)
    return {
        "tile": {"focus": plan.focus, "enlarge": plan.render},
        "expected": {"memory": memory, "disk": disk},
    }


def _note(told: dict[str, Any], count: int) -> str:
    """Return the same as a comment of the plan."""
    if "fault" in told:
        return f"cannot be fused: {told['fault']}"
    photo, size = told["input"], f"{told['width']}×{told['height']}"
    note = f"{count} photos of {photo['width']}×{photo['height']} → {told['output']}, {size}"
    if "tile" in told:
        tile, needs = told["tile"], told["expected"]
        note += (
            f"; tiles of {tile['focus']} and {tile['enlarge']} pixels, {needs['memory'] >> 20} MB of memory"
        )
        note += f", {needs['disk'] >> 20} MB of disk meanwhile" if needs["disk"] else ""
    return note
