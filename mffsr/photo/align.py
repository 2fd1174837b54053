"""Registration and exposure: brings the frames of a bracket onto one reference.

    load(i) → proxy (≤ 2 megapixels) → neighbour, then reference → Registration → warp

`register_bracket` reads every frame once (again only where the frame it started from does not belong)
and keeps three proxies at any time, whatever the number of frames: it starts at the middle frame, which
shares the most with all others, walks outwards, and combines two measurements of each frame, along the
chain of neighbours and directly against the middle. Only then the frame with the smallest field of view
becomes the reference (focus breathing: every other frame covers it).

Frames are H×W×C arrays, uint8 or uint16, C = 1 (gray) or 3 (RGB), of one tone curve.
Coordinates are (x, y) in pixels, the centre of the first pixel at (0, 0).

Exposure is matched in linear light: defocus moves light about without adding any, which is true of
linear values only (measured on defocused pairs: 95 % within 0.01 EV; with sRGB values, 0.12 EV).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.errors import BracketError
from mffsr.photo._registration_exposure import exposure_gain
from mffsr.photo._registration_proxy import Image, Proxy, make_proxy
from mffsr.photo._registration_solve import MOTIONS, Fit, Matrix, Motion, displacement, fit
from mffsr.photo.images import check_registrable
from mffsr.photo.tone import SRGB, ToneCurve

__all__ = [
    "MOTIONS",
    "ForeignFrameError",
    "Registration",
    "common_field",
    "register_bracket",
    "warp",
]

MIN_ECC = 0.6  # same scene, strongest defocus measured: 0.94; different scenes: 0.28 at most
MIN_CONTRAST = 2.0 / 255.0  # of the lightness; a black or empty frame has less
MIN_OVERLAP = 0.5
MAX_SCALE = 1.6
STILL = 0.05  # pixels: smaller displacements are not worth a resampling ...
STILL_AT_MOST = 0.25  # ... nor are those within STILL_ERRORS standard errors, up to this many pixels
STILL_ERRORS = 4.0
SAME_GAIN = 0.012  # of linear light: one level of 8-bit white
SAME_FIELD = 1.002  # fields of view closer than this are the same
ANCHOR_TRIES = 3
LEAVE_OUT = 'leave it out, or use --on-bad-frame drop (in Python on_bad_frame="drop")'


class ForeignFrameError(BracketError):
    """A frame that does not belong: black, of another scene, or of another size.

    `index` is its place in the bracket and `reason` the cause; the message begins with its name and ends
    with the `advice`.
    """

    def __init__(self, index: int, name: str, reason: str, advice: str = "") -> None:
        self.index = index
        self.reason = reason
        super().__init__(f"{name} {reason}" + (f"\n{advice}" if advice else ""))


@dataclass(frozen=True, eq=False, kw_only=True)
class Registration:
    """Where a frame lies in the reference, and how bright it is.

    `matrix` maps reference pixels to frame pixels (3×3 float64, the third row 0 0 1 unless a
    homography), as `cv2.warpAffine` takes it with WARP_INVERSE_MAP. `gain` multiplies the frame's
    linear light, per channel, to match the reference.
    """

    matrix: Matrix = field(default_factory=lambda: np.eye(3))
    gain: tuple[float, ...] = (1.0,)
    shift: tuple[float, float] = (0.0, 0.0)  # of the centre of the reference, pixels along x and y
    rotation: float = 0.0  # degrees
    scale: float = 1.0  # frame pixels per reference pixel: above 1, the frame sees less
    # With the middle frame of a bracket; with its neighbour where only over that it could be placed:
    ecc: float = 1.0  # correlation of the shared structure, −1..1
    residual: float = 0.0  # median displacement that parts of the frame still show, pixels
    spread: float = 0.0  # standard error of the displacement at the worst corner, pixels
    index: int = 0  # the frame's place in the bracket
    reference: int = 0  # the reference's

    @property
    def exposure(self) -> float:
        """How much brighter the frame is made to match the reference, EV."""
        return math.log2(sum(self.gain) / len(self.gain))

    @property
    def is_identity(self) -> bool:
        """Whether the frame needs no resampling."""
        return bool(np.array_equal(self.matrix, np.eye(3)))


class _Placed(NamedTuple):
    """A frame on the way to its registration."""

    fit: Fit  # frame ← anchor
    gain: tuple[float, ...]  # of linear light, to match the anchor


class _Trail(NamedTuple):
    """The last frame that was placed, from where the next one is looked for."""

    proxy: Proxy
    fit: Fit  # frame ← anchor
    pace: Matrix  # frame ← the frame before it: the best guess of the next step


def register_bracket(
    load: Callable[[int], Image],
    count: int,
    *,
    motion: Motion = "similarity",
    curve: ToneCurve = SRGB,
    names: Sequence[str] | None = None,
    on_bad: Callable[[ForeignFrameError], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Registration]:
    """Register `count` frames, obtained one at a time from `load(i)`, to one with the smallest field of view.

    The result is in the order of the frames; each entry names its frame (`index`) and the `reference`. A
    frame that does not belong raises ForeignFrameError with its entry of `names`; with `on_bad`, that is
    called with the error instead and the frame left out. `progress` gets (done, count). Raises BracketError
    for a size that cannot be registered.
    """
    if motion not in MOTIONS:
        raise ValueError(f"unknown motion {motion!r}: expected one of {', '.join(MOTIONS)}")
    if count < 1:
        raise ValueError("no frames")
    names = names if names is not None else [f"frame {i + 1} of {count}" for i in range(count)]
    middle = (count - 1) // 2
    anchors = sorted(range(count), key=lambda i: abs(i - middle))
    best: tuple[dict[int, _Placed], dict[int, str], tuple[int, int]] | None = None
    for anchor in anchors[: ANCHOR_TRIES if count > 2 else 1]:
        result = _place_all(
            lambda i: make_proxy(load(i), curve),
            count,
            anchor,
            motion=motion,
            name=names[anchor],
            progress=progress,
        )
        if best is None or len(result[0]) > len(best[0]):
            best = result
        if len(result[1]) < len(result[0]):  # else the anchor itself may be the one that does not belong
            break
    assert best is not None  # noqa: S101 - there is at least one anchor
    placed, refused, size = best
    for index in sorted(refused):
        if len(placed) < 2:
            raise ForeignFrameError(index, names[index], refused[index], "no two photos belong together")
        if on_bad is None:
            raise ForeignFrameError(index, names[index], refused[index], LEAVE_OUT)
        on_bad(ForeignFrameError(index, names[index], refused[index]))
    reference = _smallest_field(placed, size)
    placed = _rebase(placed, reference)
    return [_registration(placed[i], size, index=i, reference=reference) for i in sorted(placed)]


def common_field(registrations: Sequence[Registration], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The rectangle (x, y, width, height) of the reference that every frame covers.

    `size` is (width, height) of the frames. Raises BracketError where nothing is common to all.
    """
    width, height = size
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [width - 1, height - 1, 1], [0, height - 1, 1]], float)
    left, top, right, bottom = 0.0, 0.0, width - 1.0, height - 1.0
    for registration in registrations:
        moved = corners @ np.linalg.inv(registration.matrix).T
        (_, x1, x2, _), (_, y1, y2, _) = np.sort((moved[:, :2] / moved[:, 2:]).T).tolist()
        left, top, right, bottom = max(left, x1), max(top, y1), min(right, x2), min(bottom, y2)
    x, y = math.ceil(left - 1e-6), math.ceil(top - 1e-6)
    w, h = math.floor(right + 1e-6) - x + 1, math.floor(bottom + 1e-6) - y + 1
    if w < 1 or h < 1:
        raise BracketError(
            "the frames have no field of view in common\nleave out the outer frames, or use --no-crop"
        )
    return x, y, w, h


def warp(
    frame: Image,
    registration: Registration,
    size: tuple[int, int],
    *,
    crop: tuple[int, int, int, int] | None = None,
    linear: bool = False,
    curve: ToneCurve = SRGB,
) -> Image:
    """`frame` (H×W×C) as the reference would show it: one Lanczos resampling, exposure matched.

    `size` is (width, height) of the reference, `crop` a rectangle (x, y, width, height) of it. `linear`
    resampling, instead, does not overshoot at edges. The dtype is kept, values are clipped, the border is
    replicated. Channels beyond the gains (alpha) keep their values.
    With the identity and gain 1 the pixels come back as they are: `frame` itself, or a view of a part. No
    side of frame or result may be longer than 32766 pixels unless the registration is the identity.
    """
    x, y, width, height = crop or (0, 0, *size)
    inside = x >= 0 and y >= 0 and x + width <= frame.shape[1] and y + height <= frame.shape[0]
    if registration.is_identity and inside:
        part = frame if (height, width) == frame.shape[:2] else frame[y : y + height, x : x + width]
        return _expose(part, registration.gain, frame.dtype, curve)
    # the gain is applied in 16 bit, before the resampling: rounded once, at the end
    source = frame
    if not _neutral(registration.gain):
        source = _expose(frame, registration.gain, np.dtype(np.uint16), curve)
    matrix = registration.matrix @ np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)
    flags = (cv2.INTER_LINEAR if linear else cv2.INTER_LANCZOS4) | cv2.WARP_INVERSE_MAP
    if np.array_equal(matrix[2], [0, 0, 1]):
        out = cv2.warpAffine(
            source, matrix[:2], (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
    else:
        out = cv2.warpPerspective(
            source, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
    if out.dtype != frame.dtype:
        out = cv2.convertScaleAbs(out, alpha=1 / 257)
    return out.reshape(height, width, frame.shape[2])


def _place_all(
    load: Callable[[int], Proxy],
    count: int,
    anchor: int,
    *,
    motion: Motion,
    name: str,
    progress: Callable[[int, int], None] | None,
) -> tuple[dict[int, _Placed], dict[int, str], tuple[int, int]]:
    """Every frame placed in `anchor` (called `name`) or refused with a reason; the size of the frames."""
    fixed = load(anchor)
    check_registrable(fixed.size, name)
    reason = _emptiness(fixed)
    if reason is not None:
        return {}, {anchor: reason}, fixed.size
    placed = {anchor: _Placed(Fit(np.eye(3), 1.0, 0.0, 1.0, 0.0), (1.0,) * fixed.light.shape[2])}
    refused: dict[int, str] = {}
    for side in (range(anchor - 1, -1, -1), range(anchor + 1, count)):
        trail = _Trail(fixed, placed[anchor].fit, np.eye(3))
        for index in side:
            proxy = load(index)
            reason = _emptiness(proxy) or _misfit(proxy, fixed)
            if reason is None:
                found = _place(proxy, trail, fixed, motion)
                reason = _doubt(found.fit, name, fixed.size)
            if reason is None:
                trail = found
                placed[index] = _Placed(found.fit, exposure_gain(proxy, fixed, found.fit.matrix))
            else:
                refused[index] = reason
            if progress is not None:
                progress(len(placed) + len(refused), count)
    return placed, refused, fixed.size


def _place(proxy: Proxy, trail: _Trail, anchor: Proxy, motion: Motion) -> _Trail:
    """Place `proxy` in `anchor`: over its neighbour at the end of `trail`, and directly."""
    if trail.proxy is anchor:
        direct = fit(proxy, anchor, motion, [])
        return _Trail(proxy, direct, direct.matrix)
    step = fit(proxy, trail.proxy, motion, [trail.pace])
    if _doubt(step, "", anchor.size) is not None:
        return _Trail(proxy, fit(proxy, anchor, motion, [trail.fit.matrix]), np.eye(3))
    chained = step.matrix @ trail.fit.matrix
    chain = step._replace(
        matrix=chained / chained[2, 2],
        overlap=_overlap(chained, anchor.size),
        spread=math.hypot(step.spread, trail.fit.spread),
    )
    direct = fit(proxy, anchor, motion, [chain.matrix], features=False)
    apart = displacement(direct.matrix @ np.linalg.inv(chain.matrix), anchor.size)
    if _doubt(direct, "", anchor.size) is not None or apart > 1 + 6 * math.hypot(chain.spread, direct.spread):
        return _Trail(proxy, chain, step.matrix)  # neighbours share more than the ends of a bracket do
    share = direct.spread**2 / max(direct.spread**2 + chain.spread**2, 1e-12)
    matrix = share * chain.matrix + (1 - share) * direct.matrix
    spread = math.sqrt(share) * chain.spread  # of the mean of two, weighted by their errors
    return _Trail(proxy, direct._replace(matrix=matrix, spread=spread), step.matrix)


def _overlap(matrix: Matrix, size: tuple[int, int]) -> float:
    """Return what share of the one that sees less two images of `size` (width, height) have in common."""
    x, y = (side.ravel() for side in np.meshgrid(*(np.linspace(0, length - 1, 33) for length in size)))

    def covered(to: NDArray[np.floating]) -> float:
        moved = to @ np.stack((x, y, np.ones_like(x)))
        u, v = moved[:2] / moved[2]
        return float(((u >= 0) & (u <= size[0] - 1) & (v >= 0) & (v <= size[1] - 1)).mean())

    return max(covered(matrix), covered(np.linalg.inv(matrix)))


def _smallest_field(placed: dict[int, _Placed], size: tuple[int, int]) -> int:
    """The frame that sees least; the anchor, which is placed without error, where all see the same."""
    anchor = min(placed, key=lambda i: placed[i].fit.spread)
    scales = {i: _similarity(placed[i].fit.matrix, size)[0] for i in placed}
    least = max(scales, key=scales.__getitem__)
    return least if scales[least] > SAME_FIELD else anchor


def _rebase(placed: dict[int, _Placed], reference: int) -> dict[int, _Placed]:
    """The same frames, placed in `reference` instead of the anchor."""
    origin = placed[reference]
    back = np.linalg.inv(origin.fit.matrix)
    moved: dict[int, _Placed] = {}
    for index, (found, gain) in placed.items():
        matrix = found.matrix @ back
        spread = math.hypot(found.spread, origin.fit.spread) if index != reference else 0.0
        gains = tuple(g / o for g, o in zip(gain, origin.gain, strict=True))
        moved[index] = _Placed(found._replace(matrix=matrix / matrix[2, 2], spread=spread), gains)
    moved[reference] = _Placed(Fit(np.eye(3), 1.0, 0.0, 1.0, 0.0), (1.0,) * len(origin.gain))
    return moved


def _registration(placed: _Placed, size: tuple[int, int], *, index: int, reference: int) -> Registration:
    """The public figures of a placed frame; what cannot be told from the identity becomes it."""
    found, gain = placed
    matrix = found.matrix
    if displacement(matrix, size) < max(STILL, min(STILL_AT_MOST, STILL_ERRORS * found.spread)):
        matrix = np.eye(3)
    if max(abs(g - 1) for g in gain) < SAME_GAIN:
        gain = (1.0,) * len(gain)
    scale, rotation = _similarity(matrix, size)
    centre = _centre(size)
    moved = matrix @ centre
    dx, dy = (moved[:2] / moved[2] - centre[:2]).tolist()
    return Registration(
        matrix=matrix,
        gain=gain,
        shift=(dx, dy),
        rotation=rotation,
        scale=scale,
        ecc=found.ecc,
        residual=found.residual,
        spread=found.spread,
        index=index,
        reference=reference,
    )


def _centre(size: tuple[int, int]) -> NDArray[np.float64]:
    """The middle of a photo of `size` (width, height), as (x, y, 1)."""
    return np.array([(size[0] - 1) / 2, (size[1] - 1) / 2, 1.0])


def _similarity(matrix: Matrix, size: tuple[int, int]) -> tuple[float, float]:
    """Scale and rotation in degrees of `matrix` in the middle of a photo of `size`: those of its Jacobian."""
    x, y, w = matrix @ _centre(size)
    a = (matrix[:2, :2] - np.outer((x / w, y / w), matrix[2, :2])) / w
    return math.sqrt(abs(np.linalg.det(a))), math.degrees(math.atan2(a[1, 0] - a[0, 1], a[0, 0] + a[1, 1]))


def _emptiness(proxy: Proxy) -> str | None:
    if proxy.contrast >= MIN_CONTRAST:
        return None
    return "is black or empty: nothing in it can be registered"


def _misfit(proxy: Proxy, reference: Proxy) -> str | None:
    if proxy.size != reference.size:
        (w, h), (w0, h0) = proxy.size, reference.size
        return f"has {w}×{h} pixels, the reference {w0}×{h0}"
    if proxy.light.shape[2] != reference.light.shape[2]:
        return "and the reference differ in their channels: one is gray, the other in colour"
    return None


def _doubt(found: Fit, reference: str, size: tuple[int, int]) -> str | None:
    """Why `found` cannot be the place of a frame of the same scene; None where it can."""
    if found.ecc < MIN_ECC:
        return f"shows another scene than {reference} (correlation {found.ecc:.2f}, {MIN_ECC} expected)"
    scale, _ = _similarity(found.matrix, size)
    if not 1 / MAX_SCALE <= scale <= MAX_SCALE:
        return f"has a field of view too different from that of {reference} (scale {scale:.2f})"
    if found.overlap < MIN_OVERLAP:
        return f"shares only {found.overlap:.0%} of its field with {reference}"
    return None


def _neutral(gain: tuple[float, ...]) -> bool:
    return all(g == 1.0 for g in gain)


def _expose(
    frame: Image, gain: tuple[float, ...], dtype: np.dtype[np.unsignedinteger], curve: ToneCurve
) -> Image:
    """`frame` with its linear light multiplied by `gain`, as `dtype`; itself where nothing changes."""
    if _neutral(gain) and dtype == frame.dtype:
        return frame
    levels = curve.table(frame.dtype)
    top, channels = np.iinfo(dtype).max, frame.shape[2]
    gains = np.array([*gain, *[1.0] * channels][:channels], np.float32)
    tables = np.rint(curve.value(levels[:, None] * gains) * top).astype(dtype)
    if frame.dtype == np.uint8:
        return cv2.LUT(frame, tables[:, None]).reshape(frame.shape)
    out = np.empty(frame.shape, dtype)
    for channel in range(channels):
        np.take(tables[:, channel], frame[..., channel], out=out[..., channel], mode="clip")
    return out
