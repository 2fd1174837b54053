"""The veil that a blurred foreground spreads over its background, taken away.

    frame j, focused on a near thing:    ▓▓▓▓▓│            its edge is sharp, what lies behind is blurred
    frame k, focused on what is behind:  ▓▓▓▒▒░░│ │ │ │    the near thing's blur lies over sharp detail

No frame shows what is behind both sharp and without the veil, which is why stacked pictures have halos. But
frame j shows what the veil is made of: with M, 1 where the near thing is and 0 behind, and j₀, which is j
with what lies behind filled in under M, frame k is, but for the background's detail,

    k ≈ blur(M·j) + (1 − α)·j₀        α = blur(M); in light, of which blur is a mean, not in pixel values

as at the α-matte boundary of the paper's reference [49]. The blur is a disc, of the radius with which this
comes nearest to k on both sides of the boundary. What k then has more than j₀ is the veil. As far as k shows
it (`SHOWN`) it is subtracted from k before its super-resolution, and detail behind it is made as strong as
it was before the factor 1 − α. What k has too much behind the boundary it lacks on the other side: there it
becomes as j, so that its coarse band fits that of j, and super-resolution sees the sharp picture.

The sharp edges of what is near tell which frames are focused on it (`direction`). Frames are H×W×C, labels
H×W as in `mffsr.focus_map`. Large pictures are measured on a smaller copy: veils are smooth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mffsr.focus_map import Labels, Seen
from mffsr.frames import BLOCK, Frame
from mffsr.model.blocks import scaled
from mffsr.model.resize import enlarge_bilinear
from mffsr.photo import fill_from_nearest
from mffsr.tiles import Region, round_up

__all__ = ["Direction", "Veils", "direction"]

Levels = NDArray[np.float32]  # h×w×C, of 255
Plane = NDArray[np.float32]  # h×w
Mask = NDArray[np.bool_]  # h×w
Direction = Literal[1, -1]  # frames are focused from near to far, or from far to near
T = TypeVar("T", bound=np.generic)

SIDE = 768  # pixels of a picture's shorter side that the figures below are made for
RADII = (0.0, 1.0, 1.3, 1.7, 2.2, 2.9, 3.8, 5.0, 6.5, 8.5, 11.0, 14.0)  # pixels, of the blur
BESIDE = 14  # pixels behind the boundary, and …
INSIDE = 10  # … before it, in which frames are compared
DETAIL = 1.2  # σ in pixels of the Gaussian that takes detail away, which only one of the frames has
AROUND = 6.0  # σ in pixels of the one within which the radius and the strength are the same
FILL = 3.0  # σ in pixels of the one by which what lies behind is filled in
DOUBT = 0.1  # share of the least error by which that of a radius may be larger without its being unlikely
NOISE = 0.3  # levels², an error that means nothing
STRONGEST = 2.0  # a veil may be so many times the model's: a highlight that is clipped shines more
FINE = 4.0  # σ in pixels of the Gaussian above which detail is, that the near thing's blur has dimmed
MOST_COVERED = 0.8  # of a pixel, where that detail is brought back
SHOWN = (0.2, 0.6)  # strength measured: no veil below, a veil above
INTO = 12.0  # pixels: so far into what is near do frames focused behind it change, less and less …
SOFT = 2.0  # … and so far in they are as the near one; from the boundary on, where a step would show
GRID = 4  # pixels: means along a boundary are taken on a grid of this size
FAR_ALONG = 4  # by a Gaussian whose σ is so many of its cells
HALO = round(3 * (AROUND + DETAIL + FILL) + INSIDE + 2 * RADII[-1])  # pixels around those wanted
EVIDENT = 1.3  # so many times as sharp are edges in the frames focused on what is near
EDGE = 12  # pixels to each side of a boundary where they are looked for, in strips of two
MOST_PAIRS = 20  # of frames that are asked


class Veil(NamedTuple):
    """What one near thing spreads over all behind it."""

    levels: Levels
    sure: Levels  # h×w×1, 0 … 1


class Veils:
    """What to subtract from each frame of a bracket, region by region."""

    def __init__(
        self,
        frames: Sequence[Frame],
        labels: Labels,
        direction: Direction,
        seen: Seen = None,
        *,
        linear: bool = False,
    ) -> None:
        """`seen(i)` (H×W) is where frame i has pixels of its own, if frames do not cover the picture.

        Pixel values of `linear` frames are in proportion to light; of others they are about its square root.
        """
        self._frames, self._direction, self._shape = frames, direction, labels.shape
        self._light = _Light(linear=linear)
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
                far = self._far(picture, depth, place, present, outer)
                veil = _veil(far, view, depth == place, depth > place, (depth > place) & seen, self._light)
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

    def _far(
        self, picture: Levels, depth: NDArray[np.intp], place: int, present: list[int], region: Region
    ) -> Levels:
        """Return the picture as the frames focused behind `place` show it, before the boundary as well."""
        behind = depth > place
        here = ~behind & (_distance(behind) <= INSIDE + 3 * DETAIL)
        if not here.any():
            return picture
        whose = fill_from_nearest(depth, ~behind)[0]
        far = picture.copy()
        for other in np.unique(whose[here]):
            own = here & (whose == other)
            far[own] = _reduced(self._frames[present[other]], region, self._step)[own]
        return far


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


class _Light:
    """Between pixel values, of 255 levels, and light."""

    def __init__(self, *, linear: bool) -> None:
        self._linear = linear

    def of(self, levels: Levels) -> Levels:
        return levels if self._linear else np.asarray(np.maximum(levels, 0) ** 2, np.float32)

    def levels(self, light: Levels) -> Levels:
        return light if self._linear else np.asarray(np.maximum(light, 0) ** 0.5, np.float32)


def _gaussian(x: Levels, sigma: float) -> Levels:
    """Return h×w×C blurred; beyond its edge is nothing."""
    side = 2 * round(3 * sigma) + 1
    blurred = cv2.GaussianBlur(x, (side, side), sigma, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(blurred, np.float32).reshape(x.shape)


def _mean_by(weight: Levels, sigma: float) -> Callable[[Levels], Levels]:
    """Return what takes the mean around each pixel, by weights h×w×1."""
    total = np.maximum(_gaussian(weight, sigma), np.float32(1e-4))

    def mean(x: Levels) -> Levels:
        return np.asarray(_gaussian(x * weight, sigma) / total, np.float32)

    return mean


@cache
def _disc(radius: float) -> Plane:
    """Return the kernel of a disc, each pixel as far as it lies in it."""
    most, fine = int(np.ceil(radius)), 8
    at = (np.arange((2 * most + 1) * fine) + 0.5) / fine - most - 0.5
    inside = np.hypot(at[:, None], at) <= radius
    kernel = inside.reshape(2 * most + 1, fine, 2 * most + 1, fine).mean((1, 3))
    return np.asarray(kernel / kernel.sum(), np.float32)


def _defocused(x: Levels, radius: float) -> Levels:
    """Return h×w×C blurred by a disc; what is at its edge goes on."""
    if not radius:
        return x
    blurred = cv2.filter2D(x, -1, _disc(radius), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32).reshape(x.shape)


def _veil(far: Levels, view: Levels, near: Mask, behind: Mask, counts: Mask, light: _Light) -> Veil | None:
    """Return the veil of what is `near` over what is `behind`; None: there is none.

    `far` is what the frames focused behind show, `view` the one focused on the near thing; behind it tells
    where that `counts`.
    """
    part = _around(counts & (_distance(near) <= BESIDE))
    if part is None:
        return None
    found = _fitted(far[part], view[part], near[part], counts[part], light)
    if found is None:
        return None
    whole = np.zeros_like(far), np.zeros((*near.shape, 1), np.float32)
    fading = np.where(behind[part], np.float32(1), 1 - _distance(behind)[part] / np.float32(INTO)).clip(0)
    for into, one in zip(whole, found, strict=True):
        into[part] = one * fading[:, :, None]
    return Veil(*whole)


def _around(wanted: Mask) -> Region | None:
    """Return the rectangle that all that is wanted depends on; None where nothing is."""
    sides = [np.flatnonzero(wanted.any(axis)) for axis in (1, 0)]
    if not len(sides[0]):
        return None
    rows, columns = (slice(max(0, int(side[0]) - HALO), int(side[-1]) + HALO + 1) for side in sides)
    return rows, columns


def _fitted(far: Levels, view: Levels, near: Mask, counts: Mask, light: _Light) -> Veil | None:
    """Return the veil that explains best what `far` has more than `view`, by the model above."""
    distance, depth = _distance(near), _distance(~near)
    matte, beside, inside = (
        where.astype(np.float32)[:, :, None]
        for where in (near, counts & (distance <= BESIDE), near & (depth <= INSIDE))
    )
    coarse_beside = _mean_by(beside, DETAIL)

    def coarse(x: Levels) -> Levels:
        """Take detail away; before the boundary `far` is blurred and has none."""
        return np.where(near[:, :, None], x, coarse_beside(x))

    ground = np.where(near[:, :, None], _filled(view, counts), view)  # j₀
    bare = light.of(ground)
    thing = np.dstack((matte * (light.of(view) - bare), matte))
    blurred = [_defocused(thing, radius) for radius in RADII]

    def veil_of(blur: Levels) -> Levels:
        return light.levels(bare + blur[:, :, :-1]) - ground

    difference = coarse(far - ground)
    errors = [_power(difference - coarse(veil_of(blur))) for blur in blurred]
    around = [_mean_by(side, AROUND) for side in (beside, inside)]
    means = [np.stack([mean(error) for error in errors]) for mean in around]
    least = [of_side.min(0) for of_side in means]
    unlike = np.sum([(x - best) / (DOUBT * best + NOISE) for x, best in zip(means, least, strict=True)], 0)
    likely = np.exp(unlike.min(0) - unlike)
    likely /= likely.sum(0)
    veil, alpha = np.zeros_like(far), np.zeros_like(matte)
    for share, blur in zip(likely, blurred, strict=True):
        veil += share * veil_of(blur)
        alpha += share * blur[:, :, -1:]
    model, prior = coarse(veil), least[0] + NOISE  # the more detail disturbs, the more the model is believed
    shown, energy = (around[0](model * x) for x in (difference, model))
    strength = ((shown + prior) / (energy + prior)).clip(0, STRONGEST)
    shown, energy = (x.mean(2, keepdims=True) for x in (shown, energy))
    sure = _ramp((shown + prior) / (energy + prior), *SHOWN) * _ramp(energy, 0, NOISE)
    sure *= _gaussian(beside, AROUND) > 1e-3
    if not sure.any():
        return None
    alpha = alpha.clip(0, MOST_COVERED) * ((distance - 1) / 2).clip(0, 1)[:, :, None]
    rest = far - ground - veil * strength
    dimmed = (rest - _mean_by(beside + inside, FINE)(rest)) * alpha / (1 - alpha)
    # Before the boundary half of it came nearest, where the step to what `far` becomes there is smaller.
    levels = np.where(near[:, :, None], veil * strength / 2, veil * strength - dimmed)
    return Veil(levels * sure, sure)


def _filled(view: Levels, counts: Mask) -> Levels:
    """Return what lies behind what is near, going on from what `counts`."""
    known = _mean_by(counts.astype(np.float32)[:, :, None], FILL)(view)
    return fill_from_nearest(known, ~counts)[0]


def _power(x: Levels) -> Levels:
    return np.einsum("hwc,hwc->hw", x, x)[:, :, None] / np.float32(x.shape[2])


def _ramp(x: Levels, low: float, high: float) -> Levels:
    """Return 0 below `low`, 1 above `high`, and what lies between in proportion."""
    return np.asarray(((x - low) / (high - low)).clip(0, 1), np.float32)


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
