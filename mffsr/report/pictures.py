"""What a report shows of a bracket, made while its registered frames are still at hand.

    frames ─ bicubic, to the result's size ─┐
    result ─────────────────────────────────┴─ same reduction, same JPEG quality ─ pictures of one size

A page is to be sent around, so its pictures share `BUDGET` bytes. A result larger than its share allows is
reduced, and its frames alike; then `details` show the sharpest part that each frame gave, pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.engine import Fusion
from mffsr.focus_map import Labels, preview
from mffsr.frames import CodedFrame, Frame
from mffsr.photo import Photo, Pixels
from mffsr.photo.tone import ToneCurve
from mffsr.photo.web import jpeg, web_pixels

__all__ = ["Detail", "Picture", "Pictures", "take_pictures"]

BUDGET = 7_500_000  # bytes of all pictures but the details; base64 adds a third
LARGEST = 3840 * 2160  # pixels of one picture: what the largest common screens show
LONGEST = 32767  # pixels a side: more not all browsers show, and above 65535 there is no JPEG
BYTES_PER_PIXEL = 0.15  # of a detailed photo as JPEG; noisy ones get a lower quality
QUALITIES = (88, 80, 70)
DETAILS = 6
DETAIL = (960, 720)  # pixels of the result, width and height
PROXY = 512  # longer side of the map on which details are looked for
THUMB = 160  # longer side, pixels
COVER = 400
MAP = 1400

Depth = TypeVar("Depth", bound=np.uint8 | np.uint16)


class Picture(NamedTuple):
    """A JPEG."""

    data: bytes
    width: int
    height: int


class Detail(NamedTuple):
    """A part of the result at full size, and of the frame that it is taken from."""

    frame: int  # index in the order given
    result: Picture
    source: Picture
    thumb: Picture


class Pictures(NamedTuple):
    """All pictures of a report; frames are called by their index in the order given."""

    result: Picture
    sources: dict[int, Picture]  # of the result's size here, by bicubic interpolation
    thumbs: dict[int, Picture]
    details: list[Detail]  # empty where `result` is not reduced
    labels: bytes  # PNG, exactly in `colours`: which frame each pixel comes from
    ground: Picture  # the result in pale gray, to lie under the labels
    cover: Picture  # the result, small
    colours: list[str]  # of the labels, #rrggbb by index
    zoom: float  # pixels of `result` per pixel of the real one, at most 1
    brightened: bool  # shown so, as the photos are dark


def take_pictures(frames: Mapping[int, Frame], fusion: Fusion, scale: int) -> Pictures:
    """Return what a report shows of a fused bracket.

    `frames` are the registered ones (H×W×C) by index, those left out missing; `fusion` is made of them with
    `scale`. Colours are converted to sRGB from the profile they share; dark photos are shown as
    `fusion.shown` says.
    """
    brightened = fusion.shown is not None
    if fusion.shown is not None:
        frames, fusion = _brightened(frames, fusion, fusion.shown)
    icc = fusion.photo.icc
    width, height = fusion.photo.size
    fused, quality = _within_budget(fusion.photo, BUDGET // (len(frames) + 1))
    size = (fused.shape[1], fused.shape[0])
    zoom = max(size) / max(width, height)
    sources, thumbs = {}, {}
    for index, frame in frames.items():
        shown = _shown(frame[:, :], icc, size)
        sources[index] = _picture(shown, quality)
        thumbs[index] = _picture(_within(shown, THUMB), 75)
    spots = _spots(fused, fusion.labels, (width, height)) if zoom < 1 else []
    count = len(fusion.shares)
    colours = preview(np.arange(count, dtype=np.uint16)[None], count)[0]
    small = _within(fused, MAP)
    return Pictures(
        result=_picture(fused, quality),
        sources=sources,
        thumbs=thumbs,
        details=[_detail(frames[index], index, fusion, scale, spot) for index, spot in spots],
        labels=_label_png(fusion.labels, colours, (small.shape[1], small.shape[0])),
        ground=_picture((110 + 0.57 * _gray(small)).astype(np.uint8), 80),
        cover=_picture(_within(fused, COVER), 80),
        colours=["#{:02x}{:02x}{:02x}".format(*(int(v) for v in colour)) for colour in colours],
        zoom=zoom,
        brightened=brightened,
    )


def _brightened(
    frames: Mapping[int, Frame], fusion: Fusion, curve: ToneCurve
) -> tuple[dict[int, Frame], Fusion]:
    """Return frames and result as sRGB has the light that `curve` says they mean."""
    photo = fusion.photo
    depths = {photo.pixels.dtype, *(frame.dtype for frame in frames.values())}
    tables = {depth: curve.as_srgb(depth) for depth in depths}
    seen: dict[int, Frame] = {
        index: CodedFrame(frame, tables[frame.dtype]) for index, frame in frames.items()
    }
    pixels = tables[photo.pixels.dtype][photo.pixels]
    return seen, replace(fusion, photo=replace(photo, pixels=pixels, icc=None))


def _within_budget(photo: Photo, share: int) -> tuple[NDArray[np.uint8], int]:
    """Return a photo, reduced as far as needed, and the quality with which its JPEG has `share` bytes."""
    width, height = photo.size
    zoom = (min(LARGEST, share / BYTES_PER_PIXEL) / (width * height)) ** 0.5
    zoom = min(1.0, zoom, LONGEST / max(width, height))
    while True:
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        shown = _shown(photo.pixels, photo.icc, size)
        for quality in QUALITIES:
            if (length := len(jpeg(shown, quality))) <= share:
                return shown, quality
        zoom *= 0.9 * (share / length) ** 0.5


def _shown(pixels: Pixels, icc: bytes | None, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return pixels (H×W×C) as 8-bit sRGB of `size` (width, height)."""
    if size[0] < pixels.shape[1]:
        return web_pixels(_resize(pixels, size), icc)
    return _resize(web_pixels(pixels, icc), size)


def _picture(pixels: NDArray[np.uint8], quality: int) -> Picture:
    return Picture(jpeg(pixels, quality), pixels.shape[1], pixels.shape[0])


def _resize(pixels: NDArray[Depth], size: tuple[int, int]) -> NDArray[Depth]:
    """Enlarge by bicubic interpolation, or reduce by averaging; `size` is (width, height)."""
    height, width, channels = pixels.shape
    if (width, height) == size:
        return pixels
    method = cv2.INTER_CUBIC if size[0] > width else cv2.INTER_AREA
    resized = cv2.resize(pixels, size, interpolation=method).reshape(size[1], size[0], channels)
    return resized.astype(pixels.dtype, copy=False)


def _within(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Reduce so that no side is longer than `side`."""
    height, width = pixels.shape[:2]
    factor = min(1.0, side / max(width, height))
    return _resize(pixels, (max(1, round(width * factor)), max(1, round(height * factor))))


def _gray(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.shape[2] == 1:
        return pixels
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)[:, :, None]


def _label_png(labels: Labels, colours: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    """Return labels (H×W) in their colours, reduced without mixing them; `size` is (width, height)."""
    image = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    done, data = cv2.imencode(".png", np.ascontiguousarray(colours[image][:, :, ::-1]))
    if not done:
        raise ValueError("the focus map could not be encoded")
    return data.tobytes()


def _spots(
    fused: NDArray[np.uint8], labels: Labels, size: tuple[int, int]
) -> list[tuple[int, tuple[int, int]]]:
    """Return the sharpest place of each of the frames that give most: the frame, and x, y within `size`."""
    proxy = _within(_gray(fused), PROXY)[:, :, 0]
    height, width = proxy.shape
    owner = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    detail = np.abs(cv2.Laplacian(proxy, cv2.CV_32F, ksize=3))
    window = tuple(max(1, round(d * p / s)) for d, p, s in zip(DETAIL, (width, height), size, strict=True))
    found = []
    taken = np.zeros(proxy.shape, np.bool_)
    for index in np.argsort(-np.bincount(owner.ravel()))[:DETAILS]:
        own = np.where((owner == index) & ~taken, detail, 0).astype(np.float32)
        energy = cv2.boxFilter(own, -1, window, borderType=cv2.BORDER_CONSTANT)
        y, x = np.unravel_index(int(energy.argmax()), energy.shape)
        if energy[y, x] > 0:
            taken[
                max(0, y - window[1] // 2) : y + window[1] // 2 + 1,
                max(0, x - window[0] // 2) : x + window[0] // 2 + 1,
            ] = True
            centre = (int((x + 0.5) * size[0] / width), int((y + 0.5) * size[1] / height))
            found.append((int(index), centre))
    return found


def _detail(frame: Frame, index: int, fusion: Fusion, scale: int, centre: tuple[int, int]) -> Detail:
    """Cut one detail out of the result and of its frame; `centre` (x, y) is in pixels of the result."""
    icc = fusion.photo.icc
    height, width = frame.shape[:2]
    side = tuple(min(d // scale, s) for d, s in zip(DETAIL, (width, height), strict=True))
    left, top = (
        min(max(0, c // scale - d // 2), s - d) for c, d, s in zip(centre, side, (width, height), strict=True)
    )
    margin = 4  # pixels of the frame around the part, for the interpolation
    x, y = max(0, left - margin), max(0, top - margin)
    around = frame[y : top + side[1] + margin, x : left + side[0] + margin]
    large = _resize(web_pixels(around, icc), (around.shape[1] * scale, around.shape[0] * scale))
    rows = slice((top - y) * scale, (top - y + side[1]) * scale)
    columns = slice((left - x) * scale, (left - x + side[0]) * scale)
    cut = fusion.photo.pixels[top * scale : (top + side[1]) * scale, left * scale : (left + side[0]) * scale]
    result = web_pixels(np.ascontiguousarray(cut), icc)
    return Detail(
        index,
        _picture(result, 85),
        _picture(np.ascontiguousarray(large[rows, columns]), 85),
        _picture(_within(result, THUMB), 75),
    )
