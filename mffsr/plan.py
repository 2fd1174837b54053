"""How large the tiles may be, and what that takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mffsr.allocator import resident_memory
from mffsr.device import Runtime
from mffsr.errors import DeviceError, UsageError
from mffsr.limits import SMALLEST_TILE
from mffsr.model import JointModel
from mffsr.model.joint import DECODER_REACH
from mffsr.model.srn import LIFTED_REACH
from mffsr.model.transition import Bands
from mffsr.tiles import tiles

__all__ = ["LARGEST_TILE", "Plan", "memory_of", "plan_tiles", "rough_seconds"]

LARGEST_TILE = 512  # to enlarge: 768 measured no faster, and memory is what its features take
LARGEST_FOCUS_TILE = 768  # to find focus: the wider halo's share still falls
LARGEST_CUDA_TILE = 2048  # a graphics card needs more pixels at once to be busy, and has the memory
PROBE = 128  # side of the tile that is timed
SOURCES = 1.5  # frames that win somewhere in a tile, on average
PROGRAM = 600 << 20  # bytes of the program itself, with its libraries, weights and what oneDNN keeps
MAPS = 34  # bytes a source pixel of the decision, while holes are filled


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sides of the tiles' cores, in source pixels."""

    focus: int
    render: int


class _Cost(NamedTuple):
    """What a network takes of a tile. The nearer to its end, the less of the halo it still runs on."""

    halo: int  # source pixels around the core; what is mirrored beyond the photo's edge is less
    pixel: int  # bytes a source pixel of the core and its halo
    mean_halo: int  # source pixels around the core that it runs on, on average
    later_halo: int  # source pixels around the core that are enlarged
    later_pixel: int  # bytes more that each of those takes

    def tile(self, size: int, shape: tuple[int, ...]) -> int:
        """Bytes of a tile whose core has `size` pixels a side, of a photo of `shape`."""
        side = min(size, max(shape[:2]))
        early = (side + 2 * self.halo) ** 2 * self.pixel
        return early + (side + 2 * self.later_halo) ** 2 * self.later_pixel


def plan_tiles(
    runtime: Runtime,
    model: JointModel,
    shape: tuple[int, ...],
    tile: int | None,
    depth: int,
    warn: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Choose the tiles' sides from the memory that may be used, once the pictures have their share.

    None is larger than `tile`; `warn` is told where they are smaller. The bytes a source pixel costs in each
    network are estimates; `benchmarks/memory.py` measures them. Raises UsageError for a tile that is too
    small, DeviceError where not even the smallest fits.
    """
    if tile is not None and (not hasattr(tile, "__index__") or tile < SMALLEST_TILE):
        raise UsageError(f"tile is {tile!r}, expected a number of pixels, at least {SMALLEST_TILE}")
    budget, memory = _budget(runtime, model, shape, depth)
    focus, enlarge = _costs(runtime, model, shape)
    least = max(focus.tile(SMALLEST_TILE, shape), enlarge.tile(SMALLEST_TILE, shape))
    if least > budget:
        raise DeviceError(
            f"{memory >> 20} MB of memory do not suffice for photos of this size: "
            f"about {(memory - budget + least >> 20) + 1} MB are needed\n"
            "close other programs, or raise --max-memory"
        )

    def side(cost: _Cost, size: int) -> int:
        while cost.tile(size, shape) > budget:
            size = max(SMALLEST_TILE, size // 2)
        return size

    if tile is not None:
        plan = Plan(focus=side(focus, tile), render=side(enlarge, tile))
        if min(plan.focus, plan.render) < tile:
            warn(
                f"tiles of {tile} pixels take more memory than may be used: going on with tiles of "
                f"{plan.focus} pixels to find focus, {plan.render} to enlarge"
            )
        return plan
    if runtime.device.type == "cuda":
        return Plan(focus=side(focus, LARGEST_CUDA_TILE), render=side(enlarge, LARGEST_CUDA_TILE))
    return Plan(focus=side(focus, LARGEST_FOCUS_TILE), render=side(enlarge, LARGEST_TILE))


def _budget(runtime: Runtime, model: JointModel, shape: tuple[int, ...], depth: int) -> tuple[int, int]:
    """Return the bytes for a tile, and those that they are left of: what is free, or what is allowed.

    On a CPU the first are beside what the program has already, the second include it.
    """
    free, allowed = runtime.memory, runtime.limit
    if runtime.device.type == "cpu":
        pictures = _pictures(model, shape, depth)
        free -= max(0, PROGRAM - resident_memory()) + pictures
        allowed -= PROGRAM + pictures
    return min((free, runtime.memory), (allowed, runtime.limit))


def memory_of(plan: Plan, runtime: Runtime, model: JointModel, shape: tuple[int, ...], depth: int) -> int:
    """Return the bytes of memory that a fusion by `plan` is expected to take at most, the program included.

    On a graphics card that is the host's and the card's memory together.
    """
    focus, enlarge = _costs(runtime, model, shape)
    tile = max(focus.tile(plan.focus, shape), enlarge.tile(plan.render, shape))
    return PROGRAM + _pictures(model, shape, depth) + tile


def _pictures(model: JointModel, shape: tuple[int, ...], depth: int) -> int:
    """Bytes of the whole pictures that are in memory: the output, and the maps of the decision."""
    return shape[0] * shape[1] * (model.scale**2 * shape[2] * depth // 8 + MAPS)


def _costs(runtime: Runtime, model: JointModel, shape: tuple[int, ...]) -> tuple[_Cost, _Cost]:
    """What FAPN and FN take of a photo of `shape`."""
    width = 2 if runtime.dtype != torch.float32 else 4
    fapn = model.fapn.config
    focus = _Cost(fapn.halo, width * 520, fapn.mean_reach, 0, 0)
    if model.fn is None:
        reach = Bands.of(*shape[:2]).reach
        return focus, _Cost(reach, width * 428, reach, 0, 0)
    fn = model.fn.config
    features = width * (fn.features + 1) * 4 * fn.scale**2  # at high resolution
    later = DECODER_REACH + LIFTED_REACH
    return focus, _Cost(model.fn.reach, width * 420, DECODER_REACH + fn.mean_reach, later, features)


def rough_seconds(
    model: JointModel, runtime: Runtime, plan: Plan, shape: tuple[int, ...], count: int
) -> float:
    """Return about how long `count` frames of `shape` (H, W, …) take, from the time of a small tile."""

    def seconds(cost: _Cost, tile: int, work: Callable[[Tensor, Tensor], object]) -> float:
        image = torch.rand(1, 3, PROBE, PROBE, device=runtime.device)
        mask = torch.ones(1, 1, PROBE, PROBE, device=runtime.device)
        pixel = _seconds(lambda: work(image, mask), runtime) / PROBE**2
        return pixel * _pixels(shape, tile, cost.mean_halo)

    focus, enlarge = _costs(runtime, model, shape)
    deciding = seconds(focus, plan.focus, lambda image, _: model.focus(image, image))
    rendering = seconds(enlarge, plan.render, lambda image, mask: model.render([image], mask))
    return deciding * (count - 1) + rendering * SOURCES


def _seconds(work: Callable[[], object], runtime: Runtime) -> float:
    """Time some work, done once before to warm up."""
    with torch.inference_mode(), runtime.autocast():
        work()
        _wait(runtime.device)
        started = time.perf_counter()
        work()
        _wait(runtime.device)
        return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    """Wait for what a graphics card still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _pixels(shape: tuple[int, ...], tile: int, halo: int) -> int:
    """Return the pixels of all tiles, each with its halo."""
    outer = (part.outer for part in tiles(shape[0], shape[1], tile, halo))
    return sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in outer)
