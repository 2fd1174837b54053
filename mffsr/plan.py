"""How large the tiles may be, and what that takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mffsr.device import Runtime, resident_memory
from mffsr.errors import DeviceError, UsageError
from mffsr.model import JointModel
from mffsr.tiles import tiles

__all__ = ["LARGEST_TILE", "SMALLEST_TILE", "Plan", "memory_of", "plan_tiles", "rough_seconds"]

SMALLEST_TILE = 64
LARGEST_TILE = 512  # beyond, the halo's share falls slowly while caches overflow
PROBE = 96  # side of the tile that is timed
SOURCES = 1.5  # frames that win somewhere in a tile, on average
PROGRAM = 600 << 20  # bytes of the program itself, with its libraries, weights and what oneDNN keeps
MAPS = 32  # bytes a source pixel of the decision, while holes are filled


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sides of the tiles' cores, in source pixels."""

    focus: int
    render: int


def plan_tiles(
    runtime: Runtime, model: JointModel, shape: tuple[int, ...], tile: int | None, depth: int
) -> Plan:
    """Choose the tiles' sides from the memory that is there, once the pictures have their share.

    The bytes a source pixel costs in each network are estimates; `benchmarks/memory.py` measures them. Raises
    UsageError for a tile that is too small, DeviceError where not even the smallest fits.
    """
    if tile is not None:
        if tile < SMALLEST_TILE:
            raise UsageError(f"tile is {tile}, expected at least {SMALLEST_TILE} pixels")
        return Plan(focus=tile, render=tile)
    pictures = 0
    if runtime.device.type == "cpu":
        pictures = _pictures(model, shape, depth)
    budget = runtime.memory - pictures
    if runtime.device.type == "cpu":
        budget -= max(0, PROGRAM - resident_memory())

    def side(bytes_per_pixel: int, halo: int) -> int:
        size = LARGEST_TILE
        while size > SMALLEST_TILE and _tile_bytes(size, shape, bytes_per_pixel, halo) > budget:
            size //= 2
        if _tile_bytes(size, shape, bytes_per_pixel, halo) > budget:
            raise DeviceError(
                f"{max(0, runtime.memory) >> 20} MB of memory do not suffice for photos of this size\n"
                "close other programs, or raise --max-memory"
            )
        return size

    focus, enlarge = _costs(runtime, model)
    return Plan(focus=side(*focus), render=side(*enlarge))


def memory_of(plan: Plan, runtime: Runtime, model: JointModel, shape: tuple[int, ...], depth: int) -> int:
    """Return the bytes of memory that a fusion by `plan` is expected to take at most, the program included.

    On a graphics card that is the host's and the card's memory together.
    """
    focus, enlarge = _costs(runtime, model)
    tile = max(_tile_bytes(plan.focus, shape, *focus), _tile_bytes(plan.render, shape, *enlarge))
    return PROGRAM + _pictures(model, shape, depth) + tile


def _pictures(model: JointModel, shape: tuple[int, ...], depth: int) -> int:
    """Bytes of the whole pictures that are in memory: the output, and the maps of the decision."""
    return shape[0] * shape[1] * (model.scale**2 * shape[2] * depth // 8 + MAPS)


def _tile_bytes(size: int, shape: tuple[int, ...], bytes_per_pixel: int, halo: int) -> int:
    return (min(size, max(shape[:2])) + 2 * halo) ** 2 * bytes_per_pixel


def _costs(runtime: Runtime, model: JointModel) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bytes per source pixel and halo of FAPN and of FN."""
    width = 2 if runtime.dtype != torch.float32 else 4
    fn = model.fn
    features = 33 * 5 * model.scale**2 if fn is not None else 8
    return (width * 700, model.fapn.config.reach), (
        width * (420 + features),
        fn.config.reach if fn is not None else 2,
    )


def rough_seconds(
    model: JointModel, runtime: Runtime, plan: Plan, shape: tuple[int, ...], count: int
) -> float:
    """Return about how long `count` frames of `shape` (H, W, …) take, from the time of one small tile."""
    image = torch.rand(1, 3, PROBE, PROBE, device=runtime.device)
    mask = torch.ones(1, 1, PROBE, PROBE, device=runtime.device)
    focus, enlarge = (halo for _, halo in _costs(runtime, model))

    def seconds(work: Callable[[], object]) -> float:
        with torch.inference_mode(), runtime.autocast():
            work()
            if runtime.device.type == "cuda":
                torch.cuda.synchronize(runtime.device)
            started = time.perf_counter()
            work()
            if runtime.device.type == "cuda":
                torch.cuda.synchronize(runtime.device)
            return (time.perf_counter() - started) / PROBE**2

    def pixels(tile: int, halo: int) -> int:
        parts = tiles(shape[0], shape[1], tile, halo)
        return sum((r[1] - r[0]) * (c[1] - c[0]) for r, c in ((p.rows[2:], p.columns[2:]) for p in parts))

    deciding = seconds(lambda: model.focus(image, image)) * pixels(plan.focus, focus) * (count - 1)
    return deciding + seconds(lambda: model.render([image], mask)) * pixels(plan.render, enlarge) * SOURCES
