"""One training batch: a pure function of (photos, masks, stage, seed, step).

Because a batch depends on nothing else, training resumes exactly, and several processes share a batch by
taking different samples of it. Everything heavy runs in batches on the photos' device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from mffsr.training import degrade
from mffsr.training.photos import Crop, Photos, upload
from mffsr.training.synth import BLUR, JPEG_QUALITY, Frames, defocus, kernels

__all__ = [
    "FocusBatch",
    "FusionBatch",
    "SuperResolutionBatch",
    "focus_batch",
    "fusion_batch",
    "sr_batch",
    "validation_brackets",
]

MARGIN = 16  # pixels around a patch that are cut off after blurring and shifting
LARGEST_BLUR = 7.0  # radius, low-resolution pixels
KERNEL = 2 * MARGIN - 1  # side of the blur kernels: radius up to 15
ALIKE = 1.5 / 255  # frames that differ by less within 5×5 pixels show no focus
FOCUS_SCALES = (1, 2)  # FAPN's pairs are made so many times as large, in turn
VEILED = 4.0  # a frame in focus whose squared error is so many times the other's is not the one to take
SOFT_MARGIN = 4  # pixels that the mild blur of a soft photograph spreads over
LR_MARGIN = 2  # low-resolution pixels around a patch that are cut off after reducing


class FocusBatch(NamedTuple):
    """What FAPN learns from."""

    image1: Tensor  # (B, 3, p, p)
    image2: Tensor  # (B, 3, p, p)
    sharp: Tensor  # (B, 3, p, p) all-in-focus truth
    truth: Tensor  # (B, 1, p, p): 1 where image 1 is the one to take
    weight: Tensor  # (B, 1, p, p): 0 where neither is, or where it does not show


class SuperResolutionBatch(NamedTuple):
    """What SRN learns from."""

    low: Tensor  # (B, 3, p, p)
    high: Tensor  # (B, 3, s·p, s·p)


class FusionBatch(NamedTuple):
    """What SRN and D2 learn from jointly."""

    low1: Tensor  # (B, 3, p, p)
    low2: Tensor  # (B, 3, p, p)
    high1: Tensor  # (B, 3, s·p, s·p)
    high2: Tensor  # (B, 3, s·p, s·p)
    sharp: Tensor  # (B, 3, s·p, s·p) all-in-focus truth


def generators(seed: int, step: int, samples: Sequence[int]) -> list[Generator]:
    """Return one random generator per sample of a step's global batch."""
    return [np.random.default_rng([seed, step, sample]) for sample in samples]


def _layers(masks: Tensor, size: int, rngs: Sequence[Generator]) -> Tensor:
    """Cut and scale random masks into three layers (B, 3, size, size), nearest first, that sum to 1.

    In 60 % of the samples the middle one is empty: two depths, the paper's case.
    """
    count, side = masks.shape[0], masks.shape[-1]
    cuts = np.empty((2, len(rngs), 4), np.int64)  # mask, top, left, side of the cut
    tones = np.empty((2, len(rngs), 2), np.float32)  # contrast, inverted
    three = np.empty(len(rngs), np.bool_)
    for b, rng in enumerate(rngs):
        for layer in range(2):
            cut = int(rng.integers(side // 3, side + 1))
            top, left = rng.integers(0, side - cut + 1, 2)
            cuts[layer, b] = int(rng.integers(count)), top, left, cut
            tones[layer, b] = rng.uniform(1.5, 6), rng.random() < 0.5
        three[b] = rng.random() < 0.4
    device = masks.device
    contrast, inverted = upload(tones, device)[..., None, None].unbind(2)
    planes = ((_zoom(masks, upload(cuts, device), size) - 0.5) * contrast + 0.5).clamp(0, 1)
    near, middle = torch.where(inverted > 0, 1 - planes, planes)
    middle = middle * (1 - near) * upload(three, device)[:, None, None]
    return torch.stack((near, middle, 1 - near - middle), 1)


def _zoom(masks: Tensor, cuts: Tensor, size: int) -> Tensor:
    """Cut squares (mask, top, left, side) (..., 4) out of masks (M, S, S); scale them to (..., size, size).

    Bilinear, as `F.interpolate` does it, but of squares of many sizes at once.
    """
    whole = masks.shape[-1]
    mask, top, left, side = cuts[..., None].unbind(-2)  # (..., 1) each
    place = (torch.arange(size, device=masks.device) + 0.5) * (side.float() / size) - 0.5
    place = place.clamp_min(0)
    first = place.long()
    share = place - first
    second = torch.minimum(first + 1, side - 1)
    flat = masks.reshape(-1)

    def line(row: Tensor) -> Tensor:
        start = (mask * whole + top + row)[..., None] * whole + left[..., None]
        a, b = (flat[start + column[..., None, :]].float() for column in (first, second))
        return a + (b - a) * share[..., None, :]

    upper, lower = line(first), line(second)
    return (upper + (lower - upper) * share[..., None]) / 255


def _blurs(rngs: Sequence[Generator], scale: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw the kernels (2, 3, B, k, k) and radii (2, 3, B) of two frames and three layers."""
    radii = np.zeros((2, 3, len(rngs)), np.float32)
    disc = np.empty(len(rngs), np.bool_)
    for b, rng in enumerate(rngs):
        disc[b] = rng.random() < 0.6
        far, near = np.exp(rng.uniform(np.log(0.8), np.log(LARGEST_BLUR), 2)) * scale
        if rng.random() < 0.5:  # frame 1 is focused on the nearest layer
            radii[:, 0, b], radii[:, 2, b] = (0, near), (far, 0)
        else:
            radii[:, 0, b], radii[:, 2, b] = (near, 0), (0, far)
        radii[:, 1, b] = rng.uniform(0, [far, near]) if rng.random() < 0.7 else rng.permutation([0, near])
    drawn = upload(np.minimum(radii, MARGIN - 2), device)
    return kernels(drawn, upload(disc, device), KERNEL), drawn


def _bracket(
    photos: Photos,
    masks: Tensor,
    size: int,
    rngs: Sequence[Generator],
    scale: int,
    *,
    count: int = 2,
    composed: float = 0.0,
) -> tuple[Tensor, Frames]:
    """Cut sharp patches of size + 2·MARGIN and photograph each twice; nothing is cut off yet.

    Only the first `count` of the two frames are made. In a share `composed` the nearest layer is of another
    photo than what lies behind it.
    """
    outer = size + 2 * MARGIN
    image = photos.cut([photos.choose(outer, rng) for rng in rngs], outer)
    layers = _layers(masks, outer, rngs)
    if composed:
        other = photos.cut([photos.choose(outer, rng) for rng in rngs], outer)
        chosen = upload(np.array([rng.random() < composed for rng in rngs]), image.device)
        image = torch.lerp(image, other, layers[:, :1] * chosen[:, None, None, None])
    blurs, radii = _blurs(rngs, scale, image.device)
    matte = upload(np.array([rng.random() < 0.5 for rng in rngs]), image.device)
    return image, defocus(image, layers, blurs[:count], radii, matte)


def _inner(x: Tensor, margin: int) -> Tensor:
    return x[:, :, margin:-margin, margin:-margin]


def _noise(x: Tensor, amount: Sequence[float], rngs: Sequence[Generator]) -> Tensor:
    """Add sensor noise of standard deviation `amount` (in units of 1) to each image that has any."""
    out = x.clone()
    for b, (sigma, rng) in enumerate(zip(amount, rngs, strict=True)):
        if sigma > 0:
            generator = torch.Generator(x.device).manual_seed(int(rng.integers(2**63)))
            out[b] += sigma * torch.randn(x[b].shape, generator=generator, device=x.device)
    return out


def _compress(x: Tensor, share: float, lowest: int, rngs: Sequence[Generator]) -> Tensor:
    """Compress a share of the images as JPEG of quality `lowest`…100."""
    chosen = [b for b, rng in enumerate(rngs) if rng.random() < share]
    if not chosen:
        return x
    quality = upload(np.array([rngs[b].uniform(lowest, 100) for b in chosen], np.float32), x.device)
    index = upload(np.array(chosen, np.int64), x.device)
    height, width = x.shape[-2:]
    padded = F.pad(x[index], (0, -width % 16, 0, -height % 16), mode="replicate")
    return x.index_copy(0, index, degrade.jpeg(padded, quality)[:, :, :height, :width])


def focus_batch(
    photos: Photos, masks: Tensor, patch: int, seed: int, step: int, samples: Sequence[int]
) -> FocusBatch:
    """Return a batch of low-resolution pairs for FAPN, with the faults that real brackets have.

    Slight misregistration (±0.7 px), exposure ±6 %, white balance ±3 %, sensor noise up to 2 % and JPEG
    75…100, each in a share of the pairs. Every second sample is made twice as large and reduced: its blur may
    be less than a pixel, as in photos that were reduced.
    """
    made, places = [], []
    for turn, scale in enumerate(FOCUS_SCALES):
        mine = [at for at, sample in enumerate(samples) if sample % len(FOCUS_SCALES) == turn]
        if mine:
            rngs = generators(seed, step, [samples[at] for at in mine])
            made.append(_focus_batch(photos, masks, patch, rngs, scale))
            places += mine
    order = upload(np.argsort(places), photos.device)
    return FocusBatch(*(torch.cat(parts)[order] for parts in zip(*made, strict=True)))


def _focus_batch(
    photos: Photos, masks: Tensor, patch: int, rngs: Sequence[Generator], scale: int
) -> FocusBatch:
    """Return pairs for FAPN made scale times as large; blur radius 0.8 … `LARGEST_BLUR` pixels before."""
    size = (patch + 2 * MARGIN) * scale - 2 * MARGIN
    high, made = _bracket(photos, masks, size, rngs, 1, composed=0.5)
    aliased = upload(np.array([rng.random() < 0.3 for rng in rngs]), high.device)[:, None, None, None]
    image, *clean = (_reduced(x, scale, aliased) for x in (high, *made.frames))
    frames = []
    for frame in clean:
        offsets = np.array([rng.uniform(-0.7, 0.7, 2) * (rng.random() < 0.4) for rng in rngs], np.float32)
        gains = np.array(
            [
                np.exp((rng.uniform(-0.06, 0.06) + rng.uniform(-0.03, 0.03, 3)) * (rng.random() < 0.5))
                for rng in rngs
            ],
            np.float32,
        )
        moved = degrade.shift(frame, upload(offsets, frame.device))
        moved = moved * upload(gains, frame.device)[:, :, None, None]
        sigma = [float(rng.uniform(0, 0.02)) * (rng.random() < 0.5) for rng in rngs]
        frames.append(_compress(_noise(_inner(moved, MARGIN), sigma, rngs), 0.5, 75, rngs).clamp(0, 1))
    first, decided = (F.avg_pool2d(x.float(), scale) for x in (made.truth == 0, made.decided))
    difference = (clean[0] - clean[1]).abs().amax(1, keepdim=True)
    shows = F.max_pool2d(difference, 5, stride=1, padding=2) > ALIKE
    truth, weight = _to_take(first >= 0.5, clean, image).float(), ((decided == 1) & shows).float()
    return FocusBatch(*frames, *(_inner(x, MARGIN) for x in (image, truth, weight)))


def _to_take(first: Tensor, frames: Sequence[Tensor], sharp: Tensor) -> Tensor:
    """Return `first` (B, 1, H, W), True where frame 1 is focused, but the other way where that is much worse.

    Beside a near object that is out of focus, its veil lies over what is in focus behind it: there the frame
    that has the object in focus may be nearer to the sharp image, though what it shows there is blurred.
    """
    sigma = np.ones(len(sharp), np.float32)
    one, two = (_gaussian((x - sharp).square().mean(1, keepdim=True), sigma, 4) for x in frames)
    chosen, other = torch.where(first, one, two), torch.where(first, two, one)
    return first ^ (chosen > VEILED * other + ALIKE**2)


def _reduced(image: Tensor, scale: int, aliased: Tensor) -> Tensor:
    """Reduce a batch by 1/scale with antialiasing, those that are `aliased` (B, 1, 1, 1) without."""
    if scale == 1:
        return image
    both = degrade.reduce_opencv(image, scale), degrade.reduce_antialiased(image, scale)
    return torch.where(aliased, *both).clamp(0, 1)


def _gaussian(image: Tensor, sigma: NDArray[np.float32], reach: int) -> Tensor:
    """Blur each image by a Gaussian of its own σ in pixels; `reach` pixels at the border are then wrong."""
    if not sigma.any():
        return image
    radii = upload(2 * sigma, image.device)
    return degrade.convolve(image, kernels(radii, torch.zeros_like(radii, dtype=torch.bool), 2 * reach + 1))


def reduce(image: Tensor, scale: int, kind: degrade.Degradation, rngs: Sequence[Generator]) -> Tensor:
    """Reduce a batch by 1/scale as `kind` says.

    `paper`: OpenCV's bicubic without antialiasing. `clean`: antialiased bicubic, rounded to 8 bit.
    `photo`: mostly as `clean`; in shares of the samples the mean over pixels, a mild blur before, noise and
    JPEG after.
    """
    if kind == "paper":
        return degrade.to_8_bit(degrade.reduce_opencv(image, scale))
    if kind == "clean":
        return degrade.to_8_bit(degrade.reduce_antialiased(image, scale))
    blur = np.array([rng.uniform(0.2, 0.45) * scale * (rng.random() < 0.15) for rng in rngs], np.float32)
    image = _gaussian(image, blur, 2 * scale)
    low = degrade.reduce_antialiased(image, scale)
    area = upload(np.array([rng.random() < 0.15 for rng in rngs]), image.device)
    low = torch.where(area[:, None, None, None], degrade.reduce_area(image, scale), low)
    low = _noise(low, [float(rng.uniform(0, 0.01)) * (rng.random() < 0.15) for rng in rngs], rngs)
    low = degrade.to_8_bit(low)
    return _compress(low, 0.15, 80, rngs)


def _vary(image: Tensor, rngs: Sequence[Generator]) -> Tensor:
    """Give half of the photographs other colours, and half of them other tones; their edges stay.

    Colours change places; tones are bent by a gamma of 0.6 … 1.6. Without this a network of a million weights
    learns a few hundred photographs by heart.
    """
    order = np.array([rng.permutation(3) if rng.random() < 0.5 else np.arange(3) for rng in rngs])
    gamma = np.array([np.exp(rng.uniform(-0.5, 0.5) * (rng.random() < 0.5)) for rng in rngs], np.float32)
    index = upload(order, image.device)[:, :, None, None].expand_as(image)
    return image.gather(1, index) ** upload(gamma, image.device)[:, None, None, None]


def _soften(image: Tensor, share: float, rngs: Sequence[Generator]) -> Tensor:
    """Blur a share of photographs (σ 0.3 … 1 pixel); returns them all less `SOFT_MARGIN` around."""
    sigma = np.array([rng.uniform(0.3, 1.0) * (rng.random() < share) for rng in rngs], np.float32)
    return _inner(_gaussian(image, sigma, SOFT_MARGIN), SOFT_MARGIN)


def sr_batch(
    photos: Photos,
    masks: Tensor,
    patch: int,
    scale: int,
    kind: degrade.Degradation,
    seed: int,
    step: int,
    samples: Sequence[int],
    *,
    total: int | None = None,
    defocused: float = 0.125,
    soft: float = 0.5,
) -> SuperResolutionBatch:
    """Return low-resolution patches (p×p) and their truth; a share `defocused` is a frame of a bracket.

    Sources of a bracket are partly blurred, and their enlargement should be blurred alike; sharp
    detail is what there is to learn, so most patches are sharp. The blurred ones are the last of the step's
    `total` samples (by default: these are all), whichever process makes them; `samples` are ascending.
    Of the sharp ones a share `soft` is made softer, as many cameras' photos are: a network that knows none
    such sharpens them too much.
    """
    rngs = generators(seed, step, samples)
    outer = (patch + 2 * LR_MARGIN) * scale
    first_blurred = round((total or len(rngs)) * (1 - defocused))
    split = sum(sample < first_blurred for sample in samples)
    sharp, blurred = rngs[:split], rngs[split:]
    parts = []
    if sharp:
        wide = outer + 2 * SOFT_MARGIN
        image = photos.cut([photos.choose(wide, rng) for rng in sharp], wide)
        parts.append(_soften(_vary(image, sharp), soft, sharp))
    if blurred:
        _, made = _bracket(photos, masks, outer, blurred, scale, count=1)
        parts.append(_inner(made.frames[0], MARGIN).clamp(0, 1))
    high = torch.cat(parts)
    low = reduce(high, scale, kind, rngs)
    return SuperResolutionBatch(_inner(low, LR_MARGIN), _inner(high, LR_MARGIN * scale))


def fusion_batch(
    photos: Photos,
    masks: Tensor,
    patch: int,
    scale: int,
    kind: degrade.Degradation,
    seed: int,
    step: int,
    samples: Sequence[int],
) -> FusionBatch:
    """Return low-resolution brackets with everything the joint stage compares with."""
    rngs = generators(seed, step, samples)
    outer = (patch + 2 * LR_MARGIN) * scale
    image, made = _bracket(photos, masks, outer, rngs, scale)
    high = [_inner(frame, MARGIN).clamp(0, 1) for frame in made.frames]
    low = [_inner(reduce(frame, scale, kind, rngs), LR_MARGIN) for frame in high]
    cut = LR_MARGIN * scale
    return FusionBatch(
        low[0], low[1], _inner(high[0], cut), _inner(high[1], cut), _inner(image, MARGIN + cut)
    )


def validation_brackets(photos: Photos, masks: Tensor, patch: int, scale: int, index: int) -> FocusBatch:
    """Return the one bracket of two depths that is photo `index`'s: always the same, for validation.

    image1 and image2 are at most patch×patch, as far as the smallest photo allows, JPEG 90, blur radius 1–6
    low-resolution pixels (at most 14 high-resolution ones), hard and matte boundaries in turn; `sharp` is
    scale times as large. `truth` and `weight` are of low resolution.
    """
    rng = np.random.default_rng([12, index])
    outer = min(patch * scale, *(min(p.shape[1:]) // 16 * 16 - 2 * MARGIN for p in photos.images)) // (
        16 * scale
    )
    outer = outer * 16 * scale + 2 * MARGIN
    chosen = index % len(photos)
    height, width = photos.images[chosen].shape[1:]
    crop = Crop(chosen, int(rng.integers(height - outer + 1)), int(rng.integers(width - outer + 1)), 0)
    image = photos.cut([crop], outer)
    layers = _layers(masks, outer, [rng])
    layers = torch.cat((layers[:, :1], torch.zeros_like(layers[:, :1]), 1 - layers[:, :1]), 1)
    radii = torch.zeros(2, 3, 1)
    radii[0, 2], radii[1, 0] = (float(r) for r in np.minimum(rng.uniform(*BLUR, 2) * scale, MARGIN - 2))
    disc = bool(rng.random() < 0.5)
    made = defocus(
        image,
        layers,
        kernels(radii, torch.tensor(disc), KERNEL).to(image.device),
        radii.to(image.device),
        torch.tensor([index % 2 == 1], device=image.device),
    )
    frames = []
    for frame in made.frames:
        high = _inner(frame, MARGIN).clamp(0, 1)
        low = degrade.reduce_antialiased(high, scale).clamp(0, 1) if scale > 1 else high
        frames.append(degrade.jpeg(low, torch.tensor([float(JPEG_QUALITY)], device=image.device)))
    first = (_inner(made.truth, MARGIN) == 0).float()
    truth = (F.avg_pool2d(first, scale) >= 0.5).float()
    return FocusBatch(frames[0], frames[1], _inner(image, MARGIN), truth, torch.ones_like(truth))
