"""The fused enlargement of a bracket, tile by tile, each source only where it wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress, repeat
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from mffsr.compare import to_tensor
from mffsr.device import Runtime
from mffsr.errors import DeviceError, MffsrError
from mffsr.focus_map import Labels
from mffsr.frames import Frame, row_blocks
from mffsr.model import JointModel
from mffsr.model.blocks import narrowed, scaled, widened
from mffsr.model.joint import DECODER_REACH
from mffsr.model.transition import TRANSITION_REACH, Bands, transition
from mffsr.photo import Pixels
from mffsr.tiles import Region, Span, Tile, tiles
from mffsr.veil import Veils

__all__ = ["Rendered", "enlarge_plane", "render"]

# Source pixels mirrored beyond the edge. Zeros there shade the rim of an even picture by up to 2 of 255
# levels, after one pixel by 0.6. More of them cost detail, since SRN has learned beside zeros: eight 0.04 dB.
BORDER = 1


class Rendered(NamedTuple):
    """The picture and how much work it was."""

    pixels: Pixels  # s·H × s·W × channels of the frames
    sources_run: int  # tiles of sources that went through SRN
    sources_all: int  # the same if every source went through SRN everywhere


def render(
    model: JointModel,
    frames: Sequence[Frame],
    labels: Labels,
    runtime: Runtime,
    *,
    tile: int,
    depth: int,
    raised: int = 0,
    veils: Veils | None = None,
    gate: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Rendered:
    """Return the all-in-focus picture at the model's scale, `depth` 8 or 16 bits a channel.

    A source's SRN runs only on tiles where the source wins somewhere, and there on the rectangle where it
    does (`gate`): elsewhere its mask is zero and it adds nothing, so the result is the same. `tile` is the
    side of a tile's core in source pixels. `veils` are subtracted from the frames. The picture is darker by
    as many bits as the frames were `raised` by. Raises DeviceError where memory does not suffice for it.
    """
    height, width = frames[0].shape[:2]
    scale, channels = model.scale, frames[0].shape[2]
    dtype = np.uint16 if depth == 16 else np.uint8
    try:
        out = np.empty((height * scale, width * scale, channels), dtype)
    except MemoryError:  # no smaller tiles would help
        raise DeviceError(
            f"not enough memory for a picture of {width * scale}×{height * scale} pixels\n"
            "close other programs, or enlarge less"
        ) from None
    bands = Bands.of(height, width)
    reach = max(model.reach + bands.reach, DECODER_REACH + TRANSITION_REACH)
    plan = list(tiles(height, width, tile, reach))
    run = 0
    for done, part in enumerate(plan, 1):
        core, needed = _render_tile(model, frames, labels, bands, part, runtime, veils, gate=gate)
        run += needed
        out[scaled(part.core, scale)] = _to_pixels(core, dtype, channels, raised)
        progress(done, len(plan))
    return Rendered(out, run, len(plan) * len(frames))


def _render_tile(
    model: JointModel,
    frames: Sequence[Frame],
    labels: Labels,
    bands: Bands,
    part: Tile,
    runtime: Runtime,
    veils: Veils | None,
    *,
    gate: bool,
) -> tuple[torch.Tensor, int]:
    """Return the core of one tile, (1, 3, s·h, s·w) float32, and of how many frames it is made."""
    left, right, top, bottom = border = _border(part, labels.shape) if model.scale > 1 else (0, 0, 0, 0)
    own = np.pad(labels[part.outer], ((top, bottom), (left, right)), mode="reflect")
    chosen = np.unique(own).tolist() if gate else list(range(len(frames)))
    if veils is not None:
        chosen = veils.near_to_far(chosen)
    binary = np.stack([own == index for index in chosen]).astype(np.float32)
    rows, columns = part.inner
    core = slice(rows.start + top, rows.stop + top), slice(columns.start + left, columns.stop + left)
    with torch.inference_mode():
        masks = torch.from_numpy(binary).to(runtime.device)[None]
        sources = (
            F.pad(source, border, mode="reflect")
            for source in _sources(frames, chosen, part.outer, runtime, veils)
        )
        margin = TRANSITION_REACH + DECODER_REACH
        near = _near(masks, core, margin) if gate else [True] * len(chosen)
        images, masks = _joined(sources, masks, bands, near)
        if gate:  # a frame whose mask is zero within the decoder's reach of the core adds nothing
            present = _near(masks, core, DECODER_REACH)
            images, masks = list(compress(images, present)), masks[:, present]
        core, (masks, *images) = narrowed(core, model.reach, masks, *images)
        with runtime.autocast():
            return model.render(images, masks, core, gate=gate), len(images)


def _sources(
    frames: Sequence[Frame], chosen: Sequence[int], region: Region, runtime: Runtime, veils: Veils | None
) -> Iterator[torch.Tensor]:
    """Yield a region of each chosen frame, without its veil, as an image (1, 3, h, w)."""
    found = repeat(None) if veils is None else veils.over(region, chosen)
    for index, veil in zip(chosen, found, strict=False):
        image = to_tensor(frames[index][region], runtime)
        if veil is not None:
            spread = torch.from_numpy(np.ascontiguousarray(veil)).to(runtime.device).permute(2, 0, 1)
            image = image.sub_(spread, alpha=1 / 255).clamp_(0, 1)
        yield image


def _near(masks: torch.Tensor, core: Region, margin: int) -> list[bool]:
    """Tell which masks (1, n, h, w) are more than zero somewhere in the core or `margin` pixels around it."""
    (rows, columns), _ = widened(core, margin, masks)
    return [bool(there) for there in masks[0, :, rows, columns].amax((1, 2)).gt(0)]


def _joined(
    sources: Iterable[torch.Tensor], masks: torch.Tensor, bands: Bands, near: Sequence[bool]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Make sources (1, 3, h, w) and binary masks (1, n, h, w) pass into each other.

    Returns those of the sources that are `near`, and their weights. Of the others no more than one is in
    memory at a time.
    """
    if len(near) == 1:
        return list(sources), torch.ones_like(masks)
    weights, common = bands.weights(masks), torch.zeros_like(masks[:, :1])
    images, coarse = [], []
    for index, image in enumerate(sources):
        band = bands.coarse(image)
        common = torch.addcmul(common, weights[:, index : index + 1], band)
        if near[index]:
            images.append(image)
            coarse.append(band)
    masks = masks[:, near]
    # Alone within reach of the core, a frame has all of the mask there.
    weights = transition(masks, images) if len(images) > 1 else torch.ones_like(masks)
    return [bands.joined(image, band, common) for image, band in zip(images, coarse, strict=True)], weights


def _border(part: Tile, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return how many pixels to mirror beyond a tile's left, right, top and bottom: none inside the photo."""

    def sides(span: Span, length: int) -> tuple[int, int]:
        most = min(BORDER, span.outer_stop - span.outer_start - 1)
        return most * (span.outer_start == 0), most * (span.outer_stop == length)

    return *sides(part.columns, shape[1]), *sides(part.rows, shape[0])


def _to_pixels(image: torch.Tensor, dtype: type[np.uint8 | np.uint16], channels: int, raised: int) -> Pixels:
    """Round an image (1, 3, h, w), lowered by `raised` bits, to integers; one channel is the mean of three.

    On the image's device, from which fewer bytes then have to come. What was raised from 12 bits ends at
    4095: 65535 would become 4096.
    """
    top = (0xFFFF >> raised << raised) / 0xFFFF
    with torch.inference_mode():
        if channels == 1:
            image = image.mean(1, keepdim=True)
        if not math.isfinite(float(image.sum())):
            raise MffsrError(
                "the picture is not finite: damaged weights, or a precision too low for them\n"
                "try --precision fp32"
            )
        rounded = image[0].permute(1, 2, 0).clamp(0, top).mul_(np.iinfo(dtype).max / (1 << raised)).round_()
        if dtype == np.uint8:
            return np.asarray(rounded.to(torch.uint8).cpu().numpy())
        low = rounded.to(torch.int32).to(torch.int16)  # the lower 16 bits; few devices know unsigned ones
        return np.asarray(low.cpu().numpy().view(np.uint16))


def enlarge_plane(planes: Sequence[Frame], labels: Labels, scale: int) -> Pixels:
    """Return the fused and enlarged alpha of a bracket: planes H×W×1, each where its frame wins.

    Linear, since a cubic overshoots at the edges of what is cut out.
    """
    fused: Pixels = np.zeros(labels.shape, planes[0].dtype)
    for rows in row_blocks(labels.shape, 2):
        for label in np.unique(labels[rows]):
            own = labels[rows] == label
            fused[rows][own] = planes[label][rows, slice(None)][:, :, 0][own]
    if scale == 1:
        return np.ascontiguousarray(fused)
    size = (fused.shape[1] * scale, fused.shape[0] * scale)
    return cv2.resize(fused, size, interpolation=cv2.INTER_LINEAR).astype(fused.dtype)
