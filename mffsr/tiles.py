"""Tiles of a large image, and rectangles that cover a part of it, as plain integers.

An image is cut into *cores* that meet without overlap. Each core is computed from its *outer* rectangle:
the core and a halo around it, clipped to the image. Where the halo is at least the network's reach, a core's
pixels are those of the whole image's result, so cores are simply put side by side; nothing is blended.

For example 100 pixels in tiles of 48 with a halo of 8:

    core   [0, 48)  [48, 96)  [96, 100)
    outer  [0, 56)  [40, 100) [88, 100)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Region", "Span", "Tile", "covering", "round_up", "span", "spans", "tiles"]

Region = tuple[slice, slice]  # rows and columns of an image

HOPE = 1.15  # a cut may first take so much more, if further ones could make up for it


class Span(NamedTuple):
    """A core and its outer interval along one axis, in pixels, half open."""

    start: int
    stop: int
    outer_start: int
    outer_stop: int

    @property
    def inner(self) -> slice:
        """The core as a part of the outer interval."""
        return slice(self.start - self.outer_start, self.stop - self.outer_start)


class Tile(NamedTuple):
    """A core and its outer rectangle."""

    rows: Span
    columns: Span

    @property
    def core(self) -> Region:
        """Rows and columns of the core in the image."""
        return slice(self.rows.start, self.rows.stop), slice(self.columns.start, self.columns.stop)

    @property
    def outer(self) -> Region:
        """Rows and columns of the outer rectangle in the image."""
        return (
            slice(self.rows.outer_start, self.rows.outer_stop),
            slice(self.columns.outer_start, self.columns.outer_stop),
        )

    @property
    def inner(self) -> Region:
        """Rows and columns of the core in the outer rectangle."""
        return self.rows.inner, self.columns.inner


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def span(start: int, stop: int, length: int, halo: int, grid: int = 1) -> Span:
    """Return the core [start, stop) of an axis of `length` pixels with its halo, which ends on the grid."""
    return Span(
        start,
        stop,
        max(0, (start - halo) // grid * grid),
        min(length, round_up(stop + halo, grid)),
    )


def spans(length: int, size: int, halo: int) -> list[Span]:
    """Cut one axis of `length` pixels into cores of `size`, the last one shorter, each with its halo.

    Raises ValueError unless length and size are at least 1 and halo at least 0.
    """
    if length < 1 or size < 1 or halo < 0:
        raise ValueError(f"length, size and halo are {length}, {size} and {halo}, expected ≥ 1, ≥ 1 and ≥ 0")
    return [span(start, min(start + size, length), length, halo) for start in range(0, length, size)]


def tiles(height: int, width: int, size: int, halo: int, grid: int = 1) -> Iterator[Tile]:
    """Cut an image of height×width pixels into tiles, row by row.

    `grid`: size and halo are rounded up to multiples of it, so that every outer rectangle begins on the
    image's own grid of that spacing (FAPN's attention windows lie on one).
    """
    size, halo = round_up(size, grid), round_up(halo, grid)
    for rows in spans(height, size, halo):
        for columns in spans(width, size, halo):
            yield Tile(rows, columns)


def covering(
    core: Region,
    wanted: NDArray[np.bool_],
    halo: int,
    grid: int = 1,
    *,
    mean_halo: int | None = None,
    start: int = 0,
) -> list[Tile]:
    """Return rectangles of `core` that hold all its `wanted` pixels (H×W), cut to be little work.

    They do not overlap but for their halos, which end on the `grid` as those of `tiles` do. Each is as much
    work as it has pixels, those within `mean_halo` (else `halo`) of it with them, and `start` more.
    """
    whole = _narrowed(core, wanted, halo, grid)
    if whole is None:
        return []
    around = halo if mean_halo is None else mean_halo

    def cost(part: Tile) -> int:
        sides = zip(part.core, wanted.shape, strict=True)
        return start + math.prod(
            min(side.stop + around, length) - max(side.start - around, 0) for side, length in sides
        )

    def least(halves: tuple[Region, Region]) -> int:
        return sum(cost(part) for half in halves if (part := _narrowed(half, wanted, halo, grid)))

    best = min(_halvings(whole.core), key=least, default=None)
    if best is None or least(best) > HOPE * cost(whole):
        return [whole]
    parts = [
        part for half in best for part in covering(half, wanted, halo, grid, mean_halo=mean_halo, start=start)
    ]
    return parts if sum(map(cost, parts)) < cost(whole) else [whole]


def _narrowed(core: Region, wanted: NDArray[np.bool_], halo: int, grid: int) -> Tile | None:
    """Return the smallest rectangle that holds all `wanted` pixels of `core`; None without any."""
    rows, columns = (np.flatnonzero(wanted[core].any(1 - axis)) + core[axis].start for axis in (0, 1))
    if not len(rows):
        return None
    height, width = wanted.shape
    return Tile(
        span(int(rows[0]), int(rows[-1]) + 1, height, halo, grid),
        span(int(columns[0]), int(columns[-1]) + 1, width, halo, grid),
    )


def _halvings(core: Region) -> Iterator[tuple[Region, Region]]:
    """Yield the ways to cut a region in two, at every eighth of its height or width."""
    rows, columns = core
    for cut in _eighths(rows):
        yield (slice(rows.start, cut), columns), (slice(cut, rows.stop), columns)
    for cut in _eighths(columns):
        yield (rows, slice(columns.start, cut)), (rows, slice(cut, columns.stop))


def _eighths(side: slice) -> range:
    step = -(-(side.stop - side.start) // 8)
    return range(side.start + step, side.stop, step)
