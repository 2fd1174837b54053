"""The veil that a blurred foreground spreads over its background, taken away.

    frame j, focused on a near thing:    ▓▓▓▓▓│            its edge is sharp, what lies behind is blurred
    frame k, focused on what is behind:  ▓▓▓▒▒░░│ │ │ │    the near thing's blur lies over sharp detail

No frame shows what is behind both sharp and without the veil, which is why stacked pictures have halos. But
blur keeps the mean: what k has more than j, on average along the boundary in strips of equal distance to it,
is the veil, which is subtracted from k before its super-resolution. Detail that j has lost averages out.
What k has too much behind the boundary it lacks on the other side: there it becomes as j, so that its coarse
band fits that of j, and super-resolution sees the sharp picture.

That is done only where it is evident: the difference is of one sign along the boundary (`COHERENCE`), falls
from there on (`_falls`), is gone at the outermost strip (`ENDS`) and has the colour of what is near
(`_points`); and the sharp edges of what is near tell which frames are focused on it (`direction`). Frames are
H×W×C, labels H×W as in `mffsr.focus_map`; the veil is that of the α-matte boundary of the paper's reference
[49]. Large pictures are measured on a smaller copy: veils are smooth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mffsr.focus_map import Labels
from mffsr.frames import BLOCK, Frame
from mffsr.model.blocks import scaled
from mffsr.model.resize import enlarge_bilinear
from mffsr.tiles import Region, round_up

__all__ = ["Direction", "Veils", "direction"]

Levels = NDArray[np.float32]  # h×w×C, of 255
Plane = NDArray[np.float32]  # h×w
Mask = NDArray[np.bool_]  # h×w
Direction = Literal[1, -1]  # frames are focused from near to far, or from far to near
T = TypeVar("T", bound=np.generic)
Seen = Callable[[int], Mask] | None

SIDE = 768  # pixels of a picture's shorter side that the figures below are made for
STRIPS = (0.0, 2.0, 4.0, 7.0, 10.0, 14.0)  # pixels from the boundary; the last strip is to have no veil
GRID = 4  # pixels: means along the boundary are taken on a grid of this size …
ALONG = 2  # … by a Gaussian whose σ is so many of its cells …
FAR_ALONG = 4  # … or so many, where all of a boundary is asked for one answer
COHERENCE = (0.05, 0.2)  # shares of the difference's energy in its mean: no veil below, a veil above
NOISE = 4.0  # levels², energy that means nothing
ENDS = 0.67  # a strip's veil is believed where the outermost strip has so much less energy, or in proportion
RISE = 0.1  # of the first strip's difference, by which a veil may rise from strip to strip
AGAINST = (0.5, 1.5)  # of the same, that it may rise more, or turn round: a veil below, none above
COSINE = (-0.15, 0.35)  # between the difference and that of the colours of what is near and behind
INTO = 12.0  # pixels: so far into what is near do frames focused behind it change, less and less …
SOFT = 2.0  # … and so far in they are as the near one; from the boundary on, where a step would show
HALO = round(STRIPS[-1]) + GRID * (3 * ALONG + 2)  # pixels around those wanted
EVIDENT = 1.5  # so many times as sharp are edges in the frames focused on what is near
EDGE = 12  # pixels to each side of a boundary where they are looked for, in strips of two
MOST_PAIRS = 20  # of frames that are asked


class Veil(NamedTuple):
    """What one near thing spreads over all behind it."""

    levels: Levels
    sure: Levels  # h×w×1, 0 … 1


class Veils:
    """What to subtract from each frame of a bracket, region by region."""

    def __init__(
        self, frames: Sequence[Frame], labels: Labels, direction: Direction, seen: Seen = None
    ) -> None:
        """`seen(i)` (H×W) is where frame i has pixels of its own, if frames do not cover the picture."""
        self._frames, self._direction, self._shape = frames, direction, labels.shape
        self._step = _step_of(labels)
        self._labels = _sampled(labels, self._step)
        self._seen = None if seen is None else [_sampled(seen(i), self._step) for i in range(len(frames))]

    def near_to_far(self, indices: list[int]) -> list[int]:
        """Bring frames, which come in ascending order, into the one that `over` needs."""
        return indices[:: self._direction]

    def over(self, region: Region, wanted: Sequence[int]) -> Iterator[Levels | None]:
        """Yield the veil of each `wanted` frame, in the order `near_to_far`; None: it has none there.

        A veil is h×w×C, and a pixel's does not depend on the region. One frame at a time is in memory.
        """
        outer, inner = _on_grid(region, self._shape, self._step)
        cells = tuple(slice(own.start // self._step, -(-own.stop // self._step)) for own in outer)
        labels = self._labels[cells]
        present = self.near_to_far(np.unique(labels).tolist())
        if len(present) == 1:
            yield from (None for _ in wanted)
            return
        depth = np.zeros(labels.shape, np.intp)
        picture = _reduced(self._frames[present[0]], outer, self._step)
        for place, index in enumerate(present[1:], 1):
            own = labels == index
            depth[own], picture[own] = place, _reduced(self._frames[index], outer, self._step)[own]
        total, bare = np.zeros_like(picture), np.ones((*labels.shape, 1), np.float32)
        place = 0
        for index in wanted:
            while index in present and present[place] != index:  # what is nearest lies over all others
                view = _reduced(self._frames[present[place]], outer, self._step)
                seen = True if self._seen is None else self._seen[present[place]][cells]
                veil = _veil(picture, view, depth == place, depth > place, (depth > place) & seen)
                if veil is not None:
                    total += bare * veil.levels
                    bare *= 1 - veil.sure
                place += 1
            if index not in present or not (bare < 1).any():
                yield None
                continue
            lacking = _reduced(self._frames[index], outer, self._step) - picture
            share = (_distance(depth >= place) / np.float32(SOFT)).clip(0, 1)[:, :, None]
            yield _enlarged(total + share * ((1 - bare) * lacking - total), self._step)[inner]


def direction(frames: Sequence[Frame], labels: Labels) -> Direction | None:
    """Return in which direction the frames of a bracket are focused; None: their edges do not tell.

    Where regions of two frames meet, the edge of what is near is sharp in the one focused on it: the means of
    strips along the boundary change at once there. What lies to both sides averages out.
    """
    step = _step_of(labels)
    small = _sampled(labels, step)
    first = second = 0.0
    for (one, other), region in _boundaries(small):
        own, its = small[region] == one, small[region] == other
        signed = np.where(its, _distance(own) - 0.5, 0.5 - _distance(its))
        strips = [
            ((signed >= start) & (signed < start + 2) & (own | its)).astype(np.float32)
            for start in range(-EDGE, EDGE, 2)
        ]
        first += _sharpest(_reduced(frames[one], scaled(region, step), step), strips)
        second += _sharpest(_reduced(frames[other], scaled(region, step), step), strips)
    if first > EVIDENT * second:
        return 1
    return -1 if second > EVIDENT * first else None


def _step_of(labels: Labels) -> int:
    """Return by how much a picture is reduced here."""
    return max(1, round(min(labels.shape) / SIDE))


def _reduced(frame: Frame, region: Region, step: int) -> Levels:
    """Return a region of a frame, which begins on the grid of step×step, each pixel the mean of so many."""
    unit = np.float32(257 if frame.dtype == np.uint16 else 1)
    rows = slice(*region[0].indices(frame.shape[0])[:2])
    block = max(1, BLOCK // (4 * step * frame.shape[1] * frame.shape[2])) * step
    parts = []
    for start in range(rows.start, rows.stop, block):
        part = slice(start, min(start + block, rows.stop)), region[1]
        pixels: Levels = frame[part].astype(np.float32) / unit
        if step > 1:
            height, width, channels = pixels.shape
            pixels = np.pad(pixels, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge")
            size = (pixels.shape[1] // step, pixels.shape[0] // step)
            small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.float32)
            pixels = small.reshape(*size[::-1], channels)
        parts.append(pixels)
    return np.concatenate(parts)


def _sampled(of_all: NDArray[T], step: int) -> NDArray[T]:
    """Return the pixel in the middle of each step×step; the last ones need not be whole."""
    small = of_all[step // 2 :: step, step // 2 :: step]
    rows, columns = (-(-side // step) - own for side, own in zip(of_all.shape, small.shape, strict=True))
    return np.pad(small, ((0, rows), (0, columns)), mode="edge")


def _enlarged(x: Levels, step: int) -> Levels:
    """Return h×w×C enlarged by `step`, linearly."""
    return enlarge_bilinear(torch.from_numpy(x).permute(2, 0, 1)[None], step)[0].permute(1, 2, 0).numpy()


def _on_grid(region: Region, shape: tuple[int, ...], step: int) -> tuple[Region, Region]:
    """Return a region with its halo, which begins and ends on the grid, and where the region lies in it."""
    grid, halo = GRID * step, HALO * step
    starts = [max(0, own.start - halo) // grid * grid for own in region]
    stops = [min(side, round_up(own.stop + halo, grid)) for own, side in zip(region, shape, strict=True)]
    inner = [slice(own.start - at, own.stop - at) for own, at in zip(region, starts, strict=True)]
    return (slice(starts[0], stops[0]), slice(starts[1], stops[1])), (inner[0], inner[1])


def _distance(there: Mask) -> Plane:
    """Return how far each pixel is from where `there`."""
    found = cv2.distanceTransform((~there).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(found, np.float32)


def _along(x: Plane, cells: int) -> Plane:
    """Return what h×w adds up to around each cell of the grid: `cells` is the σ of a Gaussian."""
    x = np.pad(x, [(0, -side % GRID) for side in x.shape])
    small = cv2.resize(x, (x.shape[1] // GRID, x.shape[0] // GRID), interpolation=cv2.INTER_AREA)
    side = 6 * cells + 1
    sums = cv2.GaussianBlur(small, (side, side), cells, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(sums, np.float32)


def _mean(x: Levels, weight: Plane, total: Plane, cells: int) -> Levels:
    """Return the weighted mean around each cell of the grid, `total` being what the weights add up to."""
    means = [_along(x[:, :, channel] * weight, cells) for channel in range(x.shape[2])]
    return np.asarray(np.stack(means, 2) / np.maximum(total, np.float32(1e-4))[:, :, None], np.float32)


def _strips(distance: Plane) -> list[Plane]:
    """Return the weights of strips, which pass linearly into each other."""
    centres = [(start + stop) / 2 for start, stop in pairwise(STRIPS)]
    rising = [np.ones_like(distance), *((distance - a) / (b - a) for a, b in pairwise(centres))]
    falling = [(b - distance) / (b - a) for a, b in pairwise((*centres, STRIPS[-1]))]
    return [np.minimum(up, down).clip(0, 1) for up, down in zip(rising, falling, strict=True)]


def _veil(picture: Levels, view: Levels, near: Mask, behind: Mask, counts: Mask) -> Veil | None:
    """Return the veil of what is `near` over what is `behind`; None: there is none.

    The veil is what the picture has more than the `view` focused on the near thing, where that `counts`.
    """
    distance = _distance(near)
    if not (counts & (distance < STRIPS[-1])).any():
        return None
    difference, strips = picture - view, _strips(distance)
    energy = (difference**2).mean(2, keepdims=True)
    means, sure = list[Levels](), list[Levels]()
    for strip in strips:
        weight = np.where(counts, strip, np.float32(0))
        total = _along(weight, ALONG)
        mean = _mean(difference, weight, total, ALONG)
        coherence = _power(mean) / (_mean(energy, weight, total, ALONG) + NOISE)
        evident = _ramp(coherence, *COHERENCE)
        sure.append(np.minimum(evident, sure[-1]) if sure else evident)
        means.append(mean)
    beside = near & (_distance(counts) <= STRIPS[-1]), counts & (distance <= STRIPS[-1])
    ours, theirs = (
        _mean(view, weight, _along(weight, ALONG), ALONG) for weight in (x.astype(np.float32) for x in beside)
    )
    trusted = _falls(means) * _points(means[0] + means[1], ours - theirs)
    inside = np.where(behind, np.float32(0), 1 - _distance(behind) / np.float32(INTO)).clip(0)
    weights = [np.where(behind, strip, np.float32(0)) for strip in strips[:-1]]
    weights[0] = weights[0] + inside
    height, width = distance.shape
    levels, certain = np.zeros_like(difference), np.zeros((height, width, 1), np.float32)
    for weight, mean, evident in zip(weights, means, sure, strict=False):  # without the outermost strip
        ends = _ramp(1 - _power(means[-1]) / (_power(mean) + 1), 0, ENDS)
        share = evident * ends * trusted
        part = _enlarged(np.dstack((mean * share, share)), GRID)[:height, :width] * weight[:, :, None]
        levels += part[:, :, :-1]
        certain += part[:, :, -1:]
    return Veil(levels, certain) if certain.any() else None


def _power(x: Levels) -> Levels:
    return np.asarray((x**2).mean(2, keepdims=True), np.float32)


def _ramp(x: Levels, low: float, high: float) -> Levels:
    """Return 0 below `low`, 1 above `high`, and what lies between in proportion."""
    return np.asarray(((x - low) / (high - low)).clip(0, 1), np.float32)


def _falls(means: Sequence[Levels]) -> Levels:
    """Return whether a difference falls from strip to strip as a veil does, 0 … 1.

    Bars that run along the boundary, which one frame has lost, go up and down.
    """
    first = means[0]
    last, against = np.ones_like(first[:, :, :1]), np.zeros_like(first[:, :, :1])
    for mean in means[1:]:
        share = (mean * first).mean(2, keepdims=True) / (_power(first) + NOISE)
        against = np.maximum(against, np.maximum(-share, share - last - RISE))
        last = np.minimum(last, share)
    return 1 - _ramp(against, *AGAINST)


def _points(difference: Levels, toward: Levels) -> Levels:
    """Return whether a difference has the colour of what is near, less that of what is behind, 0 … 1."""
    lengths = np.sqrt(_power(difference) * _power(toward)) + 0.3
    return _ramp((difference * toward).mean(2, keepdims=True) / lengths, *COSINE)


def _boundaries(labels: Labels) -> Iterator[tuple[tuple[int, int], Region]]:
    """Return which pairs of frames meet, the first one's index lower, and around where.

    Of many those that tell most: frames far apart, long boundaries.
    """
    found = []
    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        rows, columns = np.nonzero(one != other)
        both = np.sort(np.stack((one[rows, columns], other[rows, columns])).astype(np.int64), 0)
        found.append(np.stack((*both, rows, columns)))
    low, high, rows, columns = np.concatenate(found, 1)
    pairs, which, lengths = np.unique(low << 16 | high, return_inverse=True, return_counts=True)
    margin = EDGE + GRID * 3 * FAR_ALONG
    for pair in np.argsort(-lengths * ((pairs & 0xFFFF) - (pairs >> 16)), kind="stable")[:MOST_PAIRS]:
        around = [
            slice(max(0, int(own.min()) - margin), int(own.max()) + margin)
            for own in (rows[which == pair], columns[which == pair])
        ]
        yield (int(pairs[pair] >> 16), int(pairs[pair] & 0xFFFF)), (around[0], around[1])


def _sharpest(view: Levels, strips: Sequence[Plane]) -> float:
    """Return the greatest change from one strip along a boundary to the next, place by place, in all."""
    totals = [_along(strip, FAR_ALONG) for strip in strips]
    means = [_mean(view, strip, total, FAR_ALONG) for strip, total in zip(strips, totals, strict=True)]
    both = [np.minimum(a, b) for a, b in pairwise(totals)]
    changes = [((a - b) ** 2).mean(2) for a, b in pairwise(means)]
    return float(np.max([change * weight for change, weight in zip(changes, both, strict=True)], 0).sum())
