"""The engine: a bracket of photographs → one all-in-focus, enlarged photograph.

    photos ─ same size? ─ register, match exposure ─ focus map ─ fill holes ─ enlarge and fuse ─ photo

`fuse` is the Python API; `fuse_bracket` is what the command line, batch and evaluation call: the same steps
with the model already loaded and everything found out along the way returned.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mffsr import __version__
from mffsr.checkpoint import load_model
from mffsr.device import Runtime, choose
from mffsr.errors import BracketError, DeviceError, UsageError
from mffsr.focus_map import Labels, decide_focus, fill_holes
from mffsr.model import JointModel
from mffsr.photo import Photo, Pixels, output_metadata, read_photo, with_depth
from mffsr.photo.align import Registration, common_field, register_bracket, warp
from mffsr.render import Rendered, enlarge_plane, render

__all__ = ["Events", "Fusion", "Plan", "fuse", "fuse_bracket", "plan_tiles"]

Source = str | os.PathLike[str] | Photo | NDArray[np.uint8] | NDArray[np.uint16]
T = TypeVar("T")

SMALLEST_TILE = 64
LARGEST_TILE = 512  # beyond, the halo's share falls slowly while caches overflow
KEPT_BORDER = 3.0  # pixels at the border that registration may leave to be replicated instead of cut off


@dataclass(frozen=True, kw_only=True)
class Events:
    """What the engine tells while it works; everything is optional."""

    progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    message: Callable[[str], None] = lambda text: None  # something the user should know
    warning: Callable[[str], None] = lambda text: None  # something the user should look at


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sides of the tiles' cores, in source pixels."""

    focus: int
    render: int


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """A fused bracket and how it came about."""

    photo: Photo
    labels: Labels  # H×W uint16: index, in the order given, of the frame each source pixel is taken from
    confidence: NDArray[np.uint8]  # H×W
    registrations: Sequence[Registration] | None  # in the order given; None without registration
    shares: Sequence[float]  # of the picture, per frame
    rendered: Rendered
    seconds: dict[str, float] = field(default_factory=dict)


def fuse(
    photos: Sequence[Source],
    *,
    scale: int = 2,
    weights: str = "photo",
    device: str = "auto",
    precision: str = "auto",
    tile: int | None = None,
    max_memory: int | None = None,
    align: bool = True,
    depth: int | None = None,
) -> Photo:
    """Fuse two or more photos of one scene, each in focus elsewhere, and enlarge the result.

    photos: paths, `Photo`s or arrays (H×W×3 or H×W×1, uint8 or uint16, RGB), all of one size.
    scale: 1 (fusion alone), 2, 3 or 4. depth: 8 or 16 bits per channel; by default that of the
    deepest photo. The order of two photos does not matter. Raises UsageError, PhotoError, BracketError,
    CheckpointError or DeviceError (all of them MffsrError).
    """
    if len(photos) < 2:
        raise UsageError(f"{len(photos)} photo given, expected at least 2: a bracket of one scene")
    runtime = choose(device, precision, max_memory)
    model, parts = load_model(scale, weights)
    model = model.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    frames = [as_photo(photo) for photo in photos]
    fusion = fuse_bracket(
        frames, model, runtime, tile=tile, align=align, depth=depth, provenance={"Weights": parts[-1].sha256}
    )
    return fusion.photo


def as_photo(source: Source) -> Photo:
    """Return a path's, an array's or a photo's Photo."""
    if isinstance(source, Photo):
        return source
    if isinstance(source, np.ndarray):
        pixels = source[:, :, None] if source.ndim == 2 else source
        return Photo(pixels=np.ascontiguousarray(pixels))
    return read_photo(source)


def fuse_bracket(
    photos: Sequence[Photo],
    model: JointModel,
    runtime: Runtime,
    *,
    tile: int | None = None,
    align: bool = True,
    depth: int | None = None,
    gate: bool = True,
    fill: bool = True,
    provenance: dict[str, str] | None = None,
    events: Events | None = None,
) -> Fusion:
    """Fuse photos with a loaded model; see `fuse`. The model must be on `runtime.device`.

    `gate` and `fill` switch the gating of sources and hole filling off, for comparison.
    """
    events = events or Events()
    seconds: dict[str, float] = {}
    photos = _harmonise(photos, events)
    # The bracket is worked on in a direction that its contents decide, so that the result does not depend on
    # which photo was named first.
    backwards = _fingerprint(photos[0]) > _fingerprint(photos[-1])
    ordered = list(reversed(photos)) if backwards else list(photos)

    started = time.perf_counter()
    registrations = _register(ordered, events) if align else None
    frames, planes = _resample(ordered, registrations)
    seconds["align"] = time.perf_counter() - started

    depth = depth or photos[0].bit_depth
    plan = plan_tiles(runtime, model, frames[0].shape, tile, depth)
    started = time.perf_counter()
    focus, plan = _with_smaller_tiles(
        plan,
        lambda p: decide_focus(
            model, frames, runtime, tile=p.focus, progress=lambda d, t: events.progress("focus", d, t)
        ),
        events,
    )
    labels = fill_holes(focus.labels) if fill else focus.labels
    seconds["focus"] = time.perf_counter() - started

    started = time.perf_counter()
    rendered, plan = _with_smaller_tiles(
        plan,
        lambda p: render(
            model,
            frames,
            labels,
            runtime,
            tile=p.render,
            depth=depth,
            gate=gate,
            progress=lambda d, t: events.progress("enlarge", d, t),
        ),
        events,
    )
    seconds["enlarge"] = time.perf_counter() - started
    photo = _finish(photos, rendered, planes, labels, model.scale, provenance or {}, events)
    if backwards:
        labels = (len(photos) - 1 - labels).astype(np.uint16)
        registrations = list(reversed(registrations)) if registrations is not None else None
    shares = np.bincount(labels.ravel(), minlength=len(photos)) / labels.size
    return Fusion(
        photo=photo,
        labels=labels,
        confidence=focus.confidence,
        registrations=registrations,
        shares=shares.tolist(),
        rendered=rendered,
        seconds=seconds,
    )


def _name(photo: Photo, index: int) -> str:
    return str(photo.path) if photo.path is not None else f"photo {index + 1}"


def _fingerprint(photo: Photo) -> bytes:
    return hashlib.sha256(photo.pixels.data).digest()


def _harmonise(photos: Sequence[Photo], events: Events) -> list[Photo]:
    """Bring all frames to one size, depth and number of channels, or raise BracketError."""
    if len(photos) < 2:
        raise UsageError(f"{len(photos)} photo given, expected at least 2: a bracket of one scene")
    first = photos[0]
    for index, photo in enumerate(photos[1:], 1):
        if photo.size != first.size:
            raise BracketError(
                f"{_name(photo, index)}: {photo.size[0]}×{photo.size[1]}, but {_name(first, 0)} is "
                f"{first.size[0]}×{first.size[1]}\nthe photos of a bracket must have one size"
            )
        if (photo.icc or b"") != (first.icc or b""):
            raise BracketError(
                f"{_name(photo, index)}: another colour profile than {_name(first, 0)}\n"
                "the photos of a bracket must share one; export them alike"
            )
    depths = {photo.bit_depth for photo in photos}
    channels = {photo.pixels.shape[2] for photo in photos}
    opaque = {photo.alpha is None for photo in photos}
    if len(depths) > 1:
        events.warning("8-bit and 16-bit photos mixed: all are treated as 16-bit")
    if len(channels) > 1:
        events.warning("gray and colour photos mixed: all are treated as colour")
    if len(opaque) > 1:
        raise BracketError("some photos have transparency, others have none\nexport all alike")
    done = []
    for photo in photos:
        same = with_depth(photo, max(depths))
        if same.pixels.shape[2] < max(channels):
            same = replace(same, pixels=np.repeat(same.pixels, max(channels), axis=2))
        done.append(same)
    return done


def _register(photos: Sequence[Photo], events: Events) -> list[Registration]:
    names = [_name(photo, index) for index, photo in enumerate(photos)]
    if all(np.array_equal(photo.pixels, photos[0].pixels) for photo in photos[1:]):
        return [Registration(index=index) for index in range(len(photos))]
    return register_bracket(
        lambda index: photos[index].pixels,
        len(photos),
        names=names,
        progress=lambda done, total: events.progress("align", done, total),
    )


def _resample(
    photos: Sequence[Photo], registrations: Sequence[Registration] | None
) -> tuple[list[Pixels], list[Pixels]]:
    """Return the registered frames and alpha planes, cut to the field that all frames share.

    A border of up to three pixels is replicated instead: a photo keeps its size unless more is missing.
    """
    frames, planes = [photo.pixels for photo in photos], [p.alpha for p in photos if p.alpha is not None]
    if registrations is None:
        return frames, planes
    size = photos[0].size
    x, y, width, height = common_field(registrations, size)
    if max(x, y, size[0] - x - width, size[1] - y - height) <= KEPT_BORDER:
        x, y, width, height = 0, 0, *size
    crop = (x, y, width, height)
    frames = [
        np.ascontiguousarray(warp(frame, registration, size, crop=crop))
        for frame, registration in zip(frames, registrations, strict=True)
    ]
    planes = [
        np.ascontiguousarray(
            warp(plane[:, :, None], replace(registration, gain=(1.0,)), size, crop=crop)[:, :, 0]
        )
        for plane, registration in zip(planes, registrations, strict=False)
    ]
    return frames, planes


def plan_tiles(
    runtime: Runtime, model: JointModel, shape: tuple[int, ...], tile: int | None, depth: int
) -> Plan:
    """Choose the tiles' sides from the memory that is there, once the pictures have their share.

    The bytes a source pixel costs in each network were measured (see `benchmarks/`). Raises UsageError for a
    tile that is too small, DeviceError where not even the smallest fits.
    """
    if tile is not None:
        if tile < SMALLEST_TILE:
            raise UsageError(f"tile is {tile}, expected at least {SMALLEST_TILE} pixels")
        return Plan(focus=tile, render=tile)
    whole = max(shape[:2])
    width = 2 if runtime.dtype != torch.float32 else 4
    pictures = 0
    if runtime.device.type == "cpu":  # the output, and the maps of the decision
        pictures = shape[0] * shape[1] * (model.scale**2 * shape[2] * depth // 8 + 16)
    budget = runtime.memory - pictures

    def side(bytes_per_pixel: int, halo: int) -> int:
        size = LARGEST_TILE
        while size > SMALLEST_TILE and (min(size, whole) + 2 * halo) ** 2 * bytes_per_pixel > budget:
            size //= 2
        if (min(size, whole) + 2 * halo) ** 2 * bytes_per_pixel > budget:
            raise DeviceError(
                f"{max(0, runtime.memory) >> 20} MB of memory do not suffice for photos of this size\n"
                "close other programs, or raise --max-memory"
            )
        return size

    focus = side(width * 700, model.fapn.config.reach)
    fn = model.fn
    features = 33 * 5 * model.scale**2 if fn is not None else 8
    return Plan(focus=focus, render=side(width * (420 + features), fn.config.reach if fn is not None else 2))


def _with_smaller_tiles(plan: Plan, work: Callable[[Plan], T], events: Events) -> tuple[T, Plan]:
    """Do the work, with half the tile again whenever memory does not suffice.

    The retry stands outside the `except` block, whose exception keeps the failed tensors alive.
    """
    while True:
        try:
            return work(plan), plan
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
        smaller = Plan(focus=plan.focus // 2, render=plan.render // 2)
        if min(smaller.focus, smaller.render) < SMALLEST_TILE:
            raise DeviceError(
                f"not enough memory even for tiles of {min(plan.focus, plan.render)} pixels\n"
                "close other programs, or use --device cpu"
            )
        events.warning(f"out of memory: going on with tiles of {smaller.render} pixels")
        plan = smaller
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "can't allocate memory" in text or "out of memory" in text or "could not create a memory" in text


def _finish(
    photos: Sequence[Photo],
    rendered: Rendered,
    planes: Sequence[Pixels],
    labels: Labels,
    scale: int,
    provenance: dict[str, str],
    events: Events,
) -> Photo:
    """Put pixels, alpha and metadata together."""
    pixels = rendered.pixels
    alpha = enlarge_plane(planes, labels, scale) if planes else None
    first = photos[0]
    metadata = output_metadata(
        first,
        scale=scale,
        frames=[photo.path.name if photo.path else f"photo {i + 1}" for i, photo in enumerate(photos)],
        software=f"mffsr {__version__}",
        details={"Scale": str(scale), **provenance},
        size=(pixels.shape[1], pixels.shape[0]),
        warn=events.warning,
    )
    photo = Photo(pixels=pixels, icc=first.icc, exif=metadata.exif, xmp=metadata.xmp, dpi=metadata.dpi)
    if alpha is not None:
        own = photo.bit_depth
        alpha = with_depth(Photo(pixels=alpha[:, :, None]), own).pixels[:, :, 0]
        photo = replace(photo, alpha=np.ascontiguousarray(alpha))
    return photo
