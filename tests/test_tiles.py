"""Tiles: integers that cover the image once, and stitching an identity is the identity."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mffsr.tiles import covering, spans, tiles

sides = st.integers(1, 90)


@given(height=sides, width=sides, size=st.integers(1, 100), halo=st.integers(0, 40), grid=st.integers(1, 16))
@settings(deadline=None)
def test_stitching_the_identity_is_the_identity(height, width, size, halo, grid):
    image = np.arange(height * width).reshape(height, width)
    out = np.full_like(image, -1)
    for tile in tiles(height, width, size, halo, grid):
        assert (out[tile.core] == -1).all(), "cores overlap"
        out[tile.core] = image[tile.outer][tile.inner]
    np.testing.assert_array_equal(out, image)


@given(height=sides, width=sides, size=st.integers(1, 50), halo=st.integers(0, 12))
@settings(deadline=None)
def test_a_local_operator_over_tiles_equals_the_whole(height, width, size, halo):
    """A fake network: the sum over a (2·halo + 1)² window with zeros outside the image."""
    image = np.random.default_rng(3).integers(0, 99, (height, width))

    def network(x):
        padded = np.pad(x, halo)
        view = np.lib.stride_tricks.sliding_window_view(padded, (2 * halo + 1, 2 * halo + 1))
        return view.sum((2, 3))

    out = np.empty_like(image)
    for tile in tiles(height, width, size, halo):
        out[tile.core] = network(image[tile.outer])[tile.inner]
    np.testing.assert_array_equal(out, network(image))


@given(
    st.lists(st.tuples(st.integers(0, 199), st.integers(0, 259), st.integers(1, 40)), max_size=6),
    st.sampled_from([0, 4000]),
)
@settings(deadline=None, max_examples=60)
def test_what_is_wanted_is_covered_once_by_rectangles_of_few_pixels(blobs, start):
    wanted = np.zeros((200, 260), np.bool_)
    for y, x, side in blobs:
        wanted[y : y + side, x : x + side // 2 + 1] = True
    core = (slice(8, 190), slice(16, 260))
    parts = covering(core, wanted, 20, 8, mean_halo=12, start=start)
    times = np.zeros(wanted.shape, np.int64)
    for part in parts:
        times[part.core] += 1
        for side, length in zip(part.outer, wanted.shape, strict=True):
            assert side.start % 8 == 0
            assert side.stop % 8 == 0 or side.stop == length
    assert (times[core][wanted[core]] == 1).all()
    assert times.max() <= 1
    assert times.sum() == times[core].sum(), "nothing outside of the tile"
    if parts:  # no more work than one rectangle around them all would be

        def work(sides):
            return start + math.prod(
                min(max(s.stop for s in side) + 12, length) - max(min(s.start for s in side) - 12, 0)
                for side, length in zip(sides, wanted.shape, strict=True)
            )

        together = zip(*(part.core for part in parts), strict=True)
        assert sum(work(zip(part.core, strict=True)) for part in parts) <= work(together)


@given(length=sides, size=st.integers(1, 50), halo=st.integers(0, 30), grid=st.integers(2, 16))
@settings(deadline=None)
def test_outer_rectangles_begin_on_the_grid(length, size, halo, grid):
    for tile in tiles(length, length, size, halo, grid):
        assert tile.rows.outer_start % grid == 0
        assert tile.columns.outer_start % grid == 0
        assert tile.rows.start - tile.rows.outer_start >= min(halo, tile.rows.start)


def test_the_example_of_the_documentation():
    assert [(s.start, s.stop, s.outer_start, s.outer_stop) for s in spans(100, 48, 8)] == [
        (0, 48, 0, 56),
        (48, 96, 40, 100),
        (96, 100, 88, 100),
    ]


@pytest.mark.parametrize(("length", "size", "halo"), [(0, 4, 1), (4, 0, 1), (4, 4, -1)])
def test_impossible_tiles_are_refused(length, size, halo):
    with pytest.raises(ValueError, match="expected"):
        spans(length, size, halo)
