"""The engine: a bracket of photographs → one all-in-focus, enlarged photograph.

    photos ─ same size? ─ register, match exposure ─ focus map ─ fill holes ─ enlarge and fuse ─ photo

`fuse` is the Python API; `fuse_bracket` is what the command line, batch and evaluation call: the same steps
with the model already loaded and everything found out along the way returned.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from mffsr import __version__
from mffsr.allocator import keep_few_kernels
from mffsr.checkpoint import load_model, provenance
from mffsr.device import Runtime, choose
from mffsr.errors import DeviceError, UsageError, is_out_of_memory
from mffsr.events import Events
from mffsr.focus_map import FocusMap, Labels, Seen, Tie, decide_focus
from mffsr.frames import Frame, FrameStore, row_blocks
from mffsr.limits import SMALLEST_TILE
from mffsr.model import JointModel
from mffsr.photo import Photo, output_metadata, planes_of, with_depth
from mffsr.photo.align import Registration
from mffsr.photo.brackets import check_count
from mffsr.photo.tone import ToneCurve
from mffsr.plan import LARGEST_TILE, Plan, plan_tiles
from mffsr.regions import fill_holes
from mffsr.render import Rendered, enlarge_plane, render
from mffsr.rims import rims
from mffsr.stack import (
    Source,
    Stack,
    breathing,
    covered,
    read_stack,
    register,
    resample,
)
from mffsr.veil import Direction, Veils, direction

__all__ = ["Fusion", "fuse", "fuse_bracket"]

T = TypeVar("T")

TOLD = 0.05  # share of the picture that is as sharp in all photos from which the user is told


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """A fused bracket and how it came about."""

    photo: Photo
    labels: Labels  # H×W uint16: index, in the order given, of the frame each source pixel is taken from
    confidence: NDArray[np.uint8]  # H×W
    registrations: Sequence[Registration] | None  # in the order given, less dropped frames; None without
    shares: Sequence[float]  # of the picture, per frame
    rendered: Rendered
    focus_tiles: tuple[int, int]  # tiles of full resolution that FAPN ran on, and all of them
    shown: ToneCurve | None = None  # of dark photos, by which to show them; None: as they are
    undecided: float = 0.0  # share of the picture that is as sharp, or as plain, in all frames
    dropped: dict[int, str] = field(default_factory=dict)  # frames that do not belong, and why
    seconds: dict[str, float] = field(default_factory=dict)


def fuse(
    photos: Sequence[Source],
    *,
    scale: int = 2,
    weights: str | os.PathLike[str] = "photo",
    device: str = "auto",
    precision: str = "auto",
    tile: int | None = None,
    max_memory: int | None = None,
    align: bool = True,
    motion: str = "similarity",
    exposure: bool = True,
    on_bad_frame: str = "fail",
    crop: bool = True,
    prefer: str | None = None,
    clear_halos: bool = True,
    depth: int | None = None,
) -> Photo:
    """Fuse two or more photos of one scene, each in focus elsewhere, and enlarge the result.

    photos: paths, `Photo`s or arrays (H×W×3 or H×W×1, uint8 or uint16, RGB), all of one size; or the path of
    one TIFF that is a stack. The order of two photos does not matter.
    scale: 1 (fusion alone), 2, 3 or 4.
    weights: name of a bundled set, a weight file or a folder of them; see `mffsr.checkpoint.find`.
    device: auto (the fastest), cuda, cuda:N, mps or cpu. precision: auto (the fastest that is exact enough),
    fp32, bf16 or fp16.
    tile: largest side of a tile in pixels, at least 64; by default what memory allows. max_memory: most bytes
    to use, what the host program has apart; by default what is free. Neither changes the result.
    align: register the photos first. motion, exposure, on_bad_frame, crop, prefer and clear_halos: see
    `fuse_bracket`.
    depth: 8 or 16 bits per channel; by default that of the deepest photo.

    Warns (`warnings`) of what a user should look at, such as a picture that is plain. Raises
    UsageError, PhotoError, BracketError, CheckpointError or DeviceError, all of them MffsrError.
    """
    if isinstance(photos, str | bytes | Mapping) or not (
        hasattr(photos, "__len__") and hasattr(photos, "__getitem__")
    ):
        raise UsageError(f"{type(photos).__name__} given, expected a list of at least 2 photos")
    if len(photos) == 1 and isinstance(photos[0], str | os.PathLike):
        photos = planes_of(photos[0])
    check_count(len(photos))
    runtime = choose(device, precision, max_memory)
    model, parts = load_model(scale, weights)
    model = runtime.place(model)
    told: list[str] = []
    try:
        fusion = fuse_bracket(
            photos,
            model,
            runtime,
            tile=tile,
            align=align,
            motion=motion,
            exposure=exposure,
            on_bad_frame=on_bad_frame,
            crop=crop,
            prefer=prefer,
            clear_halos=clear_halos,
            depth=depth,
            provenance=provenance(parts),
            events=Events(warning=told.append),
        )
    finally:
        for text in told:  # from here, so that they name the caller's line
            warnings.warn(text, stacklevel=2)
    return fusion.photo


def fuse_bracket(
    photos: Sequence[Source],
    model: JointModel,
    runtime: Runtime,
    *,
    tile: int | None = None,
    align: bool = True,
    motion: str = "similarity",
    exposure: bool = True,
    on_bad_frame: str = "fail",
    crop: bool = True,
    prefer: str | None = None,
    clear_halos: bool = True,
    depth: int | None = None,
    adaptive: bool = True,
    save_aligned: Callable[[int, Photo], None] | None = None,
    inspect: Callable[[Mapping[int, Frame], Fusion], None] | None = None,
    scratch: Sequence[Path] = (),
    provenance: dict[str, str] | None = None,
    events: Events | None = None,
) -> Fusion:
    """Fuse photos with a loaded model; see `fuse`. The model must be on `runtime.device`.

    Every item of `photos` is taken once, in order, and dropped: a sequence that loads on access (or paths)
    needs memory for one photo. `motion`: similarity, affine or homography; `exposure`: match it and white
    balance; `on_bad_frame`: fail or drop; `crop` to the field that all frames share; `prefer` near or far
    where frames tie; `clear_halos`: take away what a blurred foreground spreads over its background, see
    `mffsr.veil`. `save_aligned` gets every registered frame and its index, `inspect` all of them by index,
    with the result, before they are dropped. `scratch`: folders for the temporary file of large brackets.
    `adaptive`: see `mffsr.compare`.
    """
    events = events or Events()
    seconds: dict[str, float] = {}
    if prefer not in (None, "near", "far"):
        raise UsageError(f"prefer {prefer}: expected near or far")
    if depth not in (None, 8, 16):
        raise UsageError(f"depth {depth}: expected 8 or 16")
    with (
        FrameStore(len(photos), folders=scratch) as store,
        FrameStore(len(photos), folders=scratch, beside=store) as alphas,
    ):
        with _timed(seconds, "align"):
            stack = read_stack(photos, store, alphas, events)
            registrations = None
            if align:
                registrations = register(
                    stack, events, motion=motion, exposure=exposure, on_bad_frame=on_bad_frame
                )
                resample(stack, registrations, events, crop=crop, save=save_aligned)
        seen = _seen(stack, registrations, crop=crop)
        depth = depth or stack.frames[0].dtype.itemsize * 8
        shape = stack.in_order[0].shape
        plan = plan_tiles(runtime, model, shape, tile, depth, events.warning)
        # Memory is short, or the user says so by a small tile; or FAPN runs on parts that have a size each.
        if plan.render < LARGEST_TILE or len(stack.order) > 2:
            keep_few_kernels()
        with _timed(seconds, "focus"):
            focus, plan = _decide(stack, model, runtime, plan, prefer, registrations, seen, adaptive, events)
            focus = focus._replace(labels=_filled(focus.labels, len(stack.order), seen))
            pair = len(stack.order) == 2
            order = _direction(stack, registrations, focus.labels) if pair or clear_halos else None
            if pair and order is not None:
                focus = _with_rims(stack, model, runtime, plan, focus, order, seen)
        if focus.undecided >= TOLD:
            events.warning(f"{focus.undecided:.1%} of the picture is plain, or equally sharp in all photos")
        with _timed(seconds, "enlarge"):
            veils = None
            if clear_halos and order is not None:
                linear = stack.curve.is_linear
                veils = Veils(stack.in_order, focus.labels, order, seen, linear=linear)
            rendered = _render(stack, model, runtime, plan, focus.labels, veils, depth, events)
            photo = _finish(stack, rendered, focus.labels, model.scale, provenance or {}, events)
        fusion = _told(stack, registrations, focus, rendered, photo, seconds)
        if inspect is not None:
            if stack.raised:
                for index in stack.order:
                    stack.frames.put(index, stack.lowered(stack.frames.whole(index)))
            inspect({index: stack.frames[index] for index in sorted(stack.order)}, fusion)
    return fusion


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the block takes."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _told(
    stack: Stack,
    registrations: Sequence[Registration] | None,
    focus: FocusMap,
    rendered: Rendered,
    photo: Photo,
    seconds: dict[str, float],
) -> Fusion:
    """Put together what was found out along the way, its frames called by their index in the order given."""
    order, labels = np.array(stack.order, np.uint16), focus.labels
    given, counts = np.empty_like(labels), np.zeros(len(stack.heads), np.int64)
    for rows in row_blocks(labels.shape, 8):
        given[rows] = order[labels[rows]]
        counts += np.bincount(given[rows].ravel(), minlength=len(counts))
    return Fusion(
        photo=photo,
        labels=given,
        confidence=focus.confidence,
        registrations=registrations,
        shares=(counts / given.size).tolist(),
        rendered=rendered,
        focus_tiles=(focus.tiles_run, focus.tiles_all),
        shown=stack.shown,
        undecided=focus.undecided,
        dropped=stack.dropped,
        seconds=seconds,
    )


def _seen(stack: Stack, registrations: Sequence[Registration] | None, *, crop: bool) -> Seen:
    """Return what tells where a frame, by its place in the direction of work, has pixels of its own.

    None: everywhere.
    """
    if crop or registrations is None:
        return None
    found = {r.index: r for r in registrations}
    return lambda place: covered(found[stack.order[place]], stack.size, (0, 0, *stack.size))


def _direction(
    stack: Stack, registrations: Sequence[Registration] | None, labels: Labels
) -> Direction | None:
    """Find in which direction the frames are focused; None: it is not known."""
    told = direction(stack.in_order, labels)
    if told is None and (found := breathing(registrations)):
        told = found if stack.order[0] <= stack.order[-1] else -found
    return told


def _decide(
    stack: Stack,
    model: JointModel,
    runtime: Runtime,
    plan: Plan,
    prefer: str | None,
    registrations: Sequence[Registration] | None,
    seen: Seen,
    adaptive: bool,
    events: Events,
) -> tuple[FocusMap, Plan]:
    """Decide which frame is in focus where, in the direction of work."""
    nearest_first = (breathing(registrations) >= 0) == (stack.order[0] <= stack.order[-1])
    tie: Tie = None if prefer is None else "first" if nearest_first == (prefer == "near") else "last"
    return _with_smaller_tiles(
        plan,
        "focus",
        lambda p: decide_focus(
            model,
            stack.to_judge,
            runtime,
            tile=p.focus,
            tie=tie,
            adaptive=adaptive,
            seen=seen,
            progress=lambda d, t: events.progress("focus", d, t),
        ),
        events,
    )


def _render(
    stack: Stack,
    model: JointModel,
    runtime: Runtime,
    plan: Plan,
    labels: Labels,
    veils: Veils | None,
    depth: int,
    events: Events,
) -> Rendered:
    """Enlarge and fuse the frames as the labels say."""
    return _with_smaller_tiles(
        plan,
        "render",
        lambda p: render(
            model,
            stack.in_order,
            labels,
            runtime,
            tile=p.render,
            depth=depth,
            raised=stack.raised,
            veils=veils,
            progress=lambda d, t: events.progress("enlarge", d, t),
        ),
        events,
    )[0]


def _with_rims(
    stack: Stack,
    model: JointModel,
    runtime: Runtime,
    plan: Plan,
    focus: FocusMap,
    order: Direction,
    seen: Seen,
) -> FocusMap:
    """Give the rims of what is in front to the photo of a pair that is focused on it."""
    near = 0 if order > 0 else 1
    found = rims(model, stack.to_judge, focus.labels, near, runtime, tile=plan.focus)
    if seen is not None:
        found &= seen(near)
    if not found.any():
        return focus
    labels = np.where(found, np.uint16(near), focus.labels)
    confidence = np.where(found, np.uint8(0), focus.confidence)
    return focus._replace(labels=_filled(labels, 2, seen), confidence=confidence)


def _filled(labels: Labels, count: int, seen: Seen) -> Labels:
    """Fill holes in the labels of `count` frames, but not where the frame that fills them has no pixels."""
    filled = fill_holes(labels)
    if seen is None:
        return filled
    kept = filled.copy()
    for place in range(count):
        outside = (filled == place) & ~seen(place)
        kept[outside] = labels[outside]
    return kept


def _with_smaller_tiles(
    plan: Plan, part: Literal["focus", "render"], work: Callable[[Plan], T], events: Events
) -> tuple[T, Plan]:
    """Do the work, which uses the plan's `part`, with half the tiles again whenever memory does not suffice.

    What does not fit here will not fit later either, so the plan's other part is halved along. The retry
    stands outside the `except` block, whose exception keeps the failed tensors alive.
    """
    aim = {"focus": "find focus", "render": "enlarge"}[part]
    while True:
        try:
            return work(plan), plan
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        smaller = Plan(focus=max(SMALLEST_TILE, plan.focus // 2), render=max(SMALLEST_TILE, plan.render // 2))
        side = getattr(smaller, part)
        if side == getattr(plan, part):
            raise DeviceError(
                f"not enough memory even for tiles of {side} pixels\n"
                "close other programs, or use --device cpu"
            )
        events.warning(f"out of memory: going on with tiles of {side} pixels to {aim}")
        plan = smaller
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _finish(
    stack: Stack,
    rendered: Rendered,
    labels: Labels,
    scale: int,
    provenance: dict[str, str],
    events: Events,
) -> Photo:
    """Put pixels, alpha and metadata together."""
    pixels = rendered.pixels
    used = sorted(stack.order)
    first = stack.heads[used[0]]
    metadata = output_metadata(
        first,
        scale=scale,
        frames=[p.name if (p := stack.heads[i].path) else f"photo {i + 1}" for i in used],
        software=f"mffsr {__version__}",
        details={"Scale": str(scale), **provenance},
        size=(pixels.shape[1], pixels.shape[0]),
        warn=events.warning,
    )
    photo = Photo(
        pixels=pixels,
        icc=first.icc,
        exif=metadata.exif,
        xmp=metadata.xmp,
        iptc=first.iptc,
        dpi=metadata.dpi,
    )
    if len(stack.alphas):
        alpha = enlarge_plane([stack.alphas[index] for index in stack.order], labels, scale)
        alpha = with_depth(Photo(pixels=alpha[:, :, None]), photo.bit_depth).pixels[:, :, 0]
        photo = replace(photo, alpha=np.ascontiguousarray(alpha))
    return photo
