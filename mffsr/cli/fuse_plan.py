"""`mffsr fuse --dry-run`: how the frames are aligned, and what fusing them would take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mffsr.cli.console import Console

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mffsr.cli.fuse_job import Job
    from mffsr.device import Runtime
    from mffsr.model import JointModel
    from mffsr.photo.align import Registration

__all__ = ["describe_frame", "dry_run"]


def dry_run(job: Job, model: JointModel, runtime: Runtime, tile: int | None, console: Console) -> None:
    """Register the bracket, print the plan on stdout, and write nothing."""
    from mffsr.frames import disk_needed
    from mffsr.plan import memory_of, plan_tiles, rough_seconds
    from mffsr.stack import field_of_view

    registrations: list[Registration] = []
    dropped: dict[int, str] = {}
    width, height = job.size
    count = len(job.photos)
    shape = (height, width, job.channels)
    plan = plan_tiles(runtime, model, shape, tile, job.depth, console.warning)
    if job.framing.align:
        registrations, dropped = _registered(job, console)
        shape = (*field_of_view(registrations, job.size, crop=job.framing.crop)[:1:-1], job.channels)
    memory = memory_of(plan, runtime, model, shape, job.depth)
    plane = width * height * job.source_depth // 8
    disk = disk_needed(count, plane, job.channels, alpha=job.has_alpha)
    seconds = rough_seconds(model, runtime, plan, shape, count - len(dropped))
    size = (shape[1] * job.scale, shape[0] * job.scale)
    lines = [
        *_photos(job, registrations, dropped),
        *(_table(registrations) if job.framing.align else ()),
        f"output  {job.output}, {size[0]}×{size[1]}, {job.depth} bits",
        f"device  {runtime.reason}, up to {min(runtime.memory, runtime.limit) >> 20} MB",
        f"tiles   focus {plan.focus}, enlarging {plan.render} pixels a side",
        f"needs   about {memory >> 20} MB of memory, {disk >> 20} MB of disk meanwhile, {_time(seconds)}",
    ]
    data = {
        "photos": [str(path) for path in job.photos],
        "frames": [
            {"path": str(path), **describe_frame(index, registrations, dropped)}
            for index, path in enumerate(job.photos)
        ],
        "output": str(job.output),
        "width": size[0],
        "height": size[1],
        "depth": job.depth,
        "device": str(runtime.device),
        "precision": runtime.precision,
        "tile": {"focus": plan.focus, "enlarge": plan.render},
        "expected": {"memory": memory, "disk": disk, "seconds": round(seconds, 1)},
        "warnings": console.warnings,
    }
    console.result("\n".join(lines), data)


def _registered(job: Job, console: Console) -> tuple[list[Registration], dict[int, str]]:
    """Read and register the photos; return how they lie, and why some, by index, were left out."""
    from mffsr.events import Events
    from mffsr.frames import FrameStore
    from mffsr.stack import read_stack, register

    events = Events(progress=console.progress, warning=console.warning)
    count, folders, framing = len(job.photos), [job.output.parent], job.framing
    with (
        console.live(),
        FrameStore(count, folders=folders) as store,
        FrameStore(count, folders=folders, beside=store) as alphas,
    ):
        stack = read_stack(job.open(console), store, alphas, events)
        registrations = register(
            stack,
            events,
            motion=framing.motion,
            exposure=framing.exposure,
            on_bad_frame=framing.on_bad_frame,
        )
    return registrations, stack.dropped


def describe_frame(
    index: int, registrations: Sequence[Registration], dropped: Mapping[int, str]
) -> dict[str, Any]:
    """Return what --json tells of where a frame lies and how bright it is, or why it was left out."""
    if index in dropped:
        return {"dropped": dropped[index]}
    found = next((found for found in registrations if found.index == index), None)
    if found is None:
        return {}
    return {
        "shift": [round(v, 3) for v in found.shift],
        "rotation": round(found.rotation, 4),
        "scale": round(found.scale, 6),
        "exposure": round(found.exposure, 4),
        "gain": [round(v, 4) for v in found.gain],
        "ecc": round(found.ecc, 4),
        "residual": round(found.residual, 3) if math.isfinite(found.residual) else None,  # JSON has no ∞
        "reference": found.index == found.reference,
    }


def _photos(job: Job, registrations: Sequence[Registration], dropped: dict[int, str]) -> list[str]:
    """Number the photos, and say which is the reference and which are left out."""
    notes = {index: f"  (left out: {why})" for index, why in dropped.items()}
    notes |= {found.index: "  (reference)" for found in registrations if found.index == found.reference}
    return [f"{n:<7} {path}{notes.get(n - 1, '')}" for n, path in enumerate(job.photos, 1)]


def _table(registrations: Sequence[Registration]) -> list[str]:
    """Return how each photo lies to the reference, in lines of at most 60 characters."""
    return ["photo  shift x  shift y  rotation   scale     EV  match  off"] + [
        f"{found.index + 1:>5} {found.shift[0]:+8.2f} {found.shift[1]:+8.2f} {found.rotation:+8.3f}° "
        f"{found.scale:7.4f} {found.exposure:+6.2f} {found.ecc:6.3f} {_pixels(found.residual)}"
        for found in registrations
    ]


def _pixels(residual: float) -> str:
    """Return what registration left, or a dash where too little of a photo is left to tell."""
    return f"{residual:4.1f}" if math.isfinite(residual) else "   –"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 100 else f"about {seconds / 3600:.1f} h"
