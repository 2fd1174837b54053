"""The frames of a bracket, read one after the other, brought to one kind and onto one reference.

    sources ─ read_stack: one size, depth, profile ─ register ─ resample: one warp, common field ─ frames

Every file is decoded once. Only one frame is in memory at a time, whatever their number (`mffsr.frames`);
registration, warp and tiles take it from the store.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr import __version__
from mffsr.errors import BracketError, UsageError
from mffsr.events import Events
from mffsr.frames import CodedFrame, Frame, FrameStore, row_blocks
from mffsr.photo import (
    XMP_NAMESPACE,
    Photo,
    Pixels,
    fill_transparent,
    output_metadata,
    read_photo,
    same_profile,
    with_depth,
)
from mffsr.photo.align import (
    MOTIONS,
    ForeignFrameError,
    Registration,
    common_field,
    register_bracket,
    warp,
)
from mffsr.photo.brackets import check_count, named_as_result
from mffsr.photo.tone import LINEAR, ToneCurve, tone_curve

__all__ = [
    "Source",
    "Stack",
    "breathing",
    "covered",
    "field_of_view",
    "read_stack",
    "register",
    "resample",
]

Source = str | os.PathLike[str] | Photo | NDArray[np.uint8] | NDArray[np.uint16]

DIM = 2  # bits: frames that could be brighter by so many are too dark to be judged as they are
KEPT_BORDER = 3.0  # pixels at the border that registration may leave to be replicated instead of cut off
UNFITTING = 1.0  # pixels by which a registered frame may miss the others unmentioned; real ones are below 0.8
NARROW = 0.7  # share of the picture that may be left of it unmentioned
UNEVEN = 0.5  # EV by which the exposures of a bracket may differ unmentioned
BREATHING = 0.002  # differences of scale below this do not tell which end of the bracket is near


@dataclass(kw_only=True)
class Stack:
    """The frames of a bracket on their way; frames are called by their index in the order given."""

    frames: FrameStore  # pixels of each frame, H×W×C of one shape and dtype
    alphas: FrameStore  # their alpha, H×W×1; empty without
    heads: list[Photo]  # everything else that belongs to each frame: `pixels` are 1×1, `alpha` is None
    digests: list[bytes]  # of the pixels, brought to one depth and number of channels
    size: tuple[int, int]  # width and height as read
    order: list[int]  # the frames that take part, in the direction of work
    raised: int = 0  # bits by which the frames are brighter than read: cameras of 12 bits use no more of 16
    dim: int = 0  # bits by which all but lone pixels, such as defects of the sensor, could be brighter still
    dropped: dict[int, str] = field(default_factory=dict)  # frames left out, and why

    def name(self, index: int) -> str:
        """Return what a frame is called in messages."""
        return _name(self.heads[index], index)

    @property
    def in_order(self) -> list[Frame]:
        """The frames that take part, in the direction of work."""
        return [self.frames[index] for index in self.order]

    @property
    def to_judge(self) -> list[Frame]:
        """Return the same as they are compared: as pictures of cameras look, and none too dark.

        That is what FAPN has learned from; in linear light faint things have hardly any detail.
        """
        if not self.dim and not self._plain_curve.is_linear:
            return self.in_order
        table = self.curve.as_srgb(self.frames[0].dtype)
        return [CodedFrame(frame, table) for frame in self.in_order]

    @property
    def shown(self) -> ToneCurve | None:
        """Return the curve by which dark frames, as read, are to be shown; None: as their profile says."""
        bits = self.raised + self.dim
        return self._plain_curve.brighter(bits) if bits else None

    @property
    def curve(self) -> ToneCurve:
        """Return the tone curve of the frames, by which they are registered and exposed."""
        return self._plain_curve.brighter(self.dim)

    @property
    def _plain_curve(self) -> ToneCurve:
        """That of the colour profile.

        Gray of 16 bits without one is what scientific cameras write, counts of light; anything else without
        one is sRGB.
        """
        counts = all(h.bit_depth == 16 and h.pixels.shape[2] == 1 and h.icc is None for h in self.heads)
        return LINEAR if counts else tone_curve(self.heads[0].icc)

    def lowered(self, pixels: Pixels) -> Pixels:
        """Return pixels of a frame as bright as they were read."""
        if not self.raised:
            return pixels
        top = 0xFFFF >> self.raised << self.raised
        kept = np.minimum(pixels, top).astype(np.uint32)
        return ((kept + (1 << self.raised >> 1)) >> self.raised).astype(pixels.dtype)


def _as_photo(source: Source, warn: Callable[[str], None]) -> Photo:
    """Return a path's, an array's or a photo's Photo; raises UsageError for anything else."""
    if isinstance(source, Photo):
        return source
    if isinstance(source, np.ndarray):
        pixels = source[:, :, None] if source.ndim == 2 else source
        native = cast("Pixels", pixels.astype(pixels.dtype.newbyteorder("="), copy=False))
        try:
            return Photo(pixels=np.ascontiguousarray(native))
        except ValueError as error:
            raise UsageError(f"the array is no photo: {error}") from None
    if not isinstance(source, str | os.PathLike):
        raise UsageError(f"{type(source).__name__} given as a photo, expected a path, an array or a Photo")
    return read_photo(source, warn=warn)


def read_stack(sources: Sequence[Source], frames: FrameStore, alphas: FrameStore, events: Events) -> Stack:
    """Read all frames, each once, into the stores, and bring them to one depth and number of channels.

    The direction of work is decided by the contents of the first and the last frame, so that the result does
    not depend on which photo was named first. Raises UsageError, PhotoError, or BracketError where frames
    differ in size, colour profile or transparency.
    """
    check_count(len(sources))
    heads: list[Photo] = []
    digests: list[bytes] = []
    size, brightest, bright = (0, 0), 0, 0
    for index in range(len(sources)):
        source = sources[index]
        photo = _as_photo(source, events.warning)
        # Other sequences load their items on access; only of lists and tuples they live on elsewhere.
        held = isinstance(sources, list | tuple) and not isinstance(source, str | os.PathLike)
        size = size if heads else photo.size
        _check_alike(photo, index, size, heads)
        if index and (photo.alpha is None) == (len(alphas) > 0):
            raise BracketError("some photos have transparency, others have none\nexport all alike")
        pixels = photo.pixels
        if photo.alpha is not None:
            pixels = fill_transparent(pixels, photo.alpha)
        frames.put(index, pixels, borrowed=held and pixels is photo.pixels)
        if photo.alpha is not None:  # after the frames, which it asks for what is still to come of them
            alphas.put(index, photo.alpha[:, :, None], borrowed=held)
        heads.append(
            replace(photo, pixels=np.zeros((1, 1, photo.pixels.shape[2]), photo.pixels.dtype), alpha=None)
        )
        digests.append(_digest(pixels, photo.alpha))
        unit = 257 if photo.bit_depth == 8 else 1
        brightest = max(brightest, int(pixels.max()) * unit)
        if bright.bit_length() <= 16 - DIM:  # else no frame is too dark, whatever the others hold
            bright = max(bright, _brightest_but_alone(pixels) * unit)
        events.progress("read", index + 1, len(sources))
    stack = Stack(
        frames=frames, alphas=alphas, heads=heads, digests=digests, size=size, order=list(range(len(sources)))
    )
    _tell_of_results(heads, events)
    _harmonise(stack, brightest, events)
    if bright:
        more = 16 - bright.bit_length() - stack.raised
        stack.dim = more if more >= DIM else 0
    if stack.digests[0] > stack.digests[-1]:
        stack.order.reverse()
    return stack


def _brightest_but_alone(pixels: Pixels) -> int:
    """Return the largest value that a pixel H×W×C shares with others around it."""
    return max(int(cv2.medianBlur(pixels[rows], 3).max()) for rows in row_blocks(pixels.shape, 2))


def _name(photo: Photo, index: int) -> str:
    return str(photo.path) if photo.path is not None else f"photo {index + 1}"


def _check_alike(photo: Photo, index: int, size: tuple[int, int], heads: Sequence[Photo]) -> None:
    if not heads:
        return
    if photo.size != size:
        raise BracketError(
            f"{_name(photo, index)}: {photo.size[0]}×{photo.size[1]}, but {_name(heads[0], 0)} is "
            f"{size[0]}×{size[1]}\nthe photos of a bracket must have one size"
        )
    if not same_profile(photo.icc, heads[0].icc):
        raise BracketError(
            f"{_name(photo, index)}: another colour profile than {_name(heads[0], 0)}\n"
            "the photos of a bracket must share one; export them alike"
        )


def _tell_of_results(heads: Sequence[Photo], events: Events) -> None:
    """Warn of earlier results among photos that are none: of these they may be made.

    The command line tells of those that are named so before it reads any.
    """
    made = [head.xmp is not None and XMP_NAMESPACE.encode() in head.xmp for head in heads]
    for index, head in enumerate(heads):
        if made[index] and not all(made) and not (head.path and named_as_result(head.path)):
            events.warning(f"{_name(head, index)}: is an earlier result; it is fused all the same")


def _harmonise(stack: Stack, brightest: int, events: Events) -> None:
    """Bring all frames to the largest depth and number of channels, and near the top of 16 bits.

    `brightest`: the largest of their values, as of 16 bits.
    """
    depth = max(head.bit_depth for head in stack.heads)
    channels = max(head.pixels.shape[2] for head in stack.heads)
    kinds = {(head.bit_depth, head.pixels.shape[2]) for head in stack.heads}
    if len({bits for bits, _ in kinds}) > 1:
        events.warning("8-bit and 16-bit photos mixed: all are treated as 16-bit")
    if len({count for _, count in kinds}) > 1:
        events.warning("gray and colour photos mixed: all are treated as colour")
    stack.raised = 16 - brightest.bit_length() if depth == 16 and brightest else 0
    for index, head in enumerate(stack.heads):
        if (head.bit_depth, head.pixels.shape[2], stack.raised) == (depth, channels, 0):
            continue
        photo = with_depth(Photo(pixels=stack.frames.whole(index)), depth)
        pixels = photo.pixels * photo.pixels.dtype.type(1 << stack.raised)
        if pixels.shape[2] < channels:
            pixels = np.repeat(pixels, channels, axis=2)
        stack.frames.put(index, pixels)
        alpha: Pixels | None = None
        if len(stack.alphas):
            alpha = with_depth(Photo(pixels=stack.alphas.whole(index)), depth).pixels
            stack.alphas.put(index, alpha)
        stack.digests[index] = _digest(pixels, alpha)


def _digest(pixels: Pixels, alpha: Pixels | None) -> bytes:
    """What tells one frame from another, whatever their names."""
    found = hashlib.sha256(pixels.data)
    if alpha is not None:
        found.update(alpha.data)
    return found.digest()


def register(
    stack: Stack,
    events: Events,
    *,
    motion: str = "similarity",
    exposure: bool = True,
    on_bad_frame: str = "fail",
) -> list[Registration]:
    """Register the frames to one of them; the result is in the order given, without those left out.

    `motion` is that between frames: similarity, affine or homography. Without `exposure` all gains
    are 1. Frames that hardly fit, or differ much in exposure, are warned of. One that does not belong raises
    BracketError that names it, or (`on_bad_frame` "drop") is left out with a warning.
    """
    if motion not in MOTIONS:
        raise UsageError(f"motion {motion}: expected one of {', '.join(MOTIONS)}")
    if on_bad_frame not in ("fail", "drop"):
        raise UsageError(f"on-bad-frame {on_bad_frame}: expected fail or drop")
    order = stack.order
    if len(set(stack.digests)) == 1:
        return [Registration(index=index) for index in sorted(order)]

    def drop(error: ForeignFrameError) -> None:
        stack.dropped[order[error.index]] = error.reason
        events.warning(f"{error}; left out")

    found = register_bracket(
        lambda place: stack.frames.whole(order[place]),
        len(order),
        motion=motion,
        curve=stack.curve,
        names=[stack.name(index) for index in order],
        on_bad=drop if on_bad_frame == "drop" else None,
        progress=lambda done, total: events.progress("align", done, total),
    )
    placed = [replace(r, index=order[r.index], reference=order[r.reference]) for r in found]
    advice = "" if motion == "homography" else "; --motion homography may fit better"
    for r in placed:
        if UNFITTING < r.residual < math.inf:
            name = stack.name(r.index)
            events.warning(f"{name}: parts of it are still {r.residual:.1f} pixels off{advice}")
    if not exposure:
        placed = [replace(r, gain=(1.0,) * len(r.gain)) for r in placed]
    exposures = [r.exposure for r in placed]
    if (apart := max(exposures) - min(exposures)) > UNEVEN:
        events.warning(f"the exposures seem {apart:.1f} EV apart, and are matched; --no-exposure keeps them")
    stack.order = [index for index in order if index not in stack.dropped]
    return sorted(placed, key=lambda registration: registration.index)


def field_of_view(
    registrations: Sequence[Registration], size: tuple[int, int], *, crop: bool = True
) -> tuple[int, int, int, int]:
    """Return the rectangle (x, y, width, height) of the reference that the result shows.

    The field that all frames share; the whole reference where `crop` is off, or where at most three pixels
    are missing (they are replicated: a photo keeps its size unless more is missing).
    """
    if not crop:
        return 0, 0, *size
    x, y, width, height = common_field(registrations, size)
    if max(x, y, size[0] - x - width, size[1] - y - height) <= KEPT_BORDER:
        return 0, 0, *size
    return x, y, width, height


def resample(
    stack: Stack,
    registrations: Sequence[Registration],
    events: Events,
    *,
    crop: bool = True,
    save: Callable[[int, Photo], None] | None = None,
) -> None:
    """Put the registered frames and alpha planes, cut to the field of view, in the stores.

    `save` is called with every registered frame and its index.
    """
    view = field_of_view(registrations, stack.size, crop=crop)
    kept = math.prod(view[2:]) / math.prod(stack.size)
    if kept < NARROW:
        events.warning(
            f"cut to {kept:.0%} of the picture, the field that all photos show; --no-crop keeps the rest"
        )
    curve = stack.curve
    for registration in registrations:
        index = registration.index
        frame = stack.frames.whole(index)
        pixels = np.ascontiguousarray(warp(frame, registration, stack.size, crop=view, curve=curve))
        if pixels is not frame:
            stack.frames.put(index, pixels)
        alpha: Pixels | None = None
        if len(stack.alphas):
            plane = stack.alphas.whole(index)
            moved = warp(plane, replace(registration, gain=(1.0,)), stack.size, crop=view, linear=True)
            alpha = np.ascontiguousarray(moved)
            if alpha is not plane:
                stack.alphas.put(index, alpha)
        if save is not None:
            flat = None if alpha is None else np.ascontiguousarray(alpha[:, :, 0])
            save(index, _registered(stack.heads[index], stack.lowered(pixels), flat, events))


def _registered(head: Photo, pixels: Pixels, alpha: Pixels | None, events: Events) -> Photo:
    """Return a registered frame with what its camera wrote. Without XMP, which marks a finished photo."""
    metadata = output_metadata(
        head,
        scale=1,
        frames=[],
        software=f"mffsr {__version__}",
        details={},
        size=(pixels.shape[1], pixels.shape[0]),
        warn=events.warning,
    )
    return replace(head, pixels=pixels, alpha=alpha, exif=metadata.exif, xmp=None, dpi=metadata.dpi)


def covered(
    registration: Registration, size: tuple[int, int], view: tuple[int, int, int, int]
) -> NDArray[np.bool_]:
    """Return where in `view` (x, y, width, height) a frame of `size` has pixels of its own, height×width."""
    x, y, width, height = view
    inside = x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1]
    if inside and registration.is_identity:
        return np.ones((height, width), np.bool_)  # OpenCV 4 could not tell of more than 32766 pixels a side
    matrix = registration.matrix @ np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)
    ones = np.ones((size[1], size[0]), np.uint8)
    seen = cv2.warpPerspective(ones, matrix, (width, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    return seen > 0


def breathing(registrations: Sequence[Registration] | None) -> Literal[1, -1, 0]:
    """Return 1 where the first frame given is focused nearer than the last, −1 where the last is, else 0.

    A lens focused nearer sees less (focus breathing): the scales of the two ends decide. Where they do not
    differ, or nothing was registered, they do not tell.
    """
    if not registrations:
        return 0
    first, last = registrations[0].scale, registrations[-1].scale
    if abs(first - last) < BREATHING:
        return 0
    return 1 if first > last else -1
