"""What registration keeps of a frame: a pyramid of its structure, its features, its light.

A frame is read once, reduced to at most two megapixels and forgotten, so that a bracket of a
hundred photographs takes no more memory than one of two. From its luminance, in linear light
because that is where defocus is a plain convolution (measured: half the bias of sRGB values), come

- the *structure pyramid*: every level is low-passed, freed of its local mean and divided by its
  local standard deviation. Exposure, vignetting and drifting light drop out, and a defocused edge
  weighs as much as a focused one;
- SIFT *features* of a blurred copy: fine detail is what two frames of a focus bracket do not share;
- a thumbnail in *linear light*: defocus spreads light but keeps its mean there, and only there.

Pixel coordinates are those of OpenCV, (x, y) with the centre of the first pixel at (0, 0). All
matrices are in pixels of the full frame, whatever the level they were measured on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.errors import BracketError
from mffsr.photo.tone import SRGB, ToneCurve

__all__ = ["Float", "Image", "Level", "Proxy", "make_proxy"]

Float = NDArray[np.float32]
Image = NDArray[Any]  # H×W×C, uint8 or uint16

PROXY_PIXELS = 2_000_000
FEATURE_PIXELS = 400_000
LIGHT_SIDE = 256
COARSEST_SIDE = 48
MIN_SIDE = 16
LOW_PASS = 1.2  # pixels of the level
LOCAL = 6.0  # window of the local mean and deviation, pixels of the level
NOISE_FLOOR = 1.0 / 255.0  # deviations of linear light below this are noise rather than structure
MAX_FEATURES = 1500
CLIPPED = 0.955  # linear light above (98 % of sRGB's values) tells no exposure; black does, blur reaches it
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)  # of linear Rec. 709 light


@dataclass(frozen=True)
class Level:
    """One level of the structure pyramid.

    `image` is H×W×3 float32: the structure (mean 0, deviation at most about 1) and its derivatives along x
    and y per level pixel. `scale` is (level size / frame size) along x and y.
    """

    image: Float
    scale: tuple[float, float]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the level."""
        return self.image.shape[1], self.image.shape[0]

    def locate(self, x: Float, y: Float) -> tuple[Float, Float]:
        """Level coordinates of the frame coordinates `x`, `y`."""
        sx, sy = self.scale
        return (x + 0.5) * sx - 0.5, (y + 0.5) * sy - 0.5


@dataclass(frozen=True)
class Proxy:
    """A frame as registration sees it; made by `make_proxy`."""

    size: tuple[int, int]  # width, height of the full frame
    luminance: Float  # H×W linear light in 0..1, at most PROXY_PIXELS
    light: Float  # h×w×C linear light in 0..1, the longer side at most LIGHT_SIDE
    valid: Float  # h×w×C, the share of the pixels behind `light` that were not clipped

    @cached_property
    def levels(self) -> list[Level]:
        """The structure pyramid, finest level first."""
        return [_structure(self.luminance, size, self.size) for size in _level_sizes(self.luminance.shape)]

    @cached_property
    def contrast(self) -> float:
        """Standard deviation of the low-passed lightness (the square root of the light), 0..0.5."""
        height, width = self.luminance.shape
        small = cv2.resize(self.luminance, _size_within(width, height, 16_384), interpolation=cv2.INTER_AREA)
        return float(np.sqrt(small).std())

    @cached_property
    def features(self) -> tuple[Float, Float]:
        """SIFT features of the blurred lightness: K×2 frame coordinates and K×128 unit descriptors."""
        height, width = self.luminance.shape
        small = cv2.resize(
            self.luminance, _size_within(width, height, FEATURE_PIXELS), interpolation=cv2.INTER_AREA
        )
        small = np.sqrt(cv2.GaussianBlur(small, (0, 0), LOW_PASS))
        low, high = np.percentile(small[::4, ::4], (0.5, 99.5))
        stretched = np.clip((small - low) * (255.0 / max(float(high - low), NOISE_FLOOR)), 0, 255)
        sift = cv2.SIFT.create(nfeatures=MAX_FEATURES, contrastThreshold=0.01)
        points, descriptors = sift.detectAndCompute(stretched.astype(np.uint8), None)
        if descriptors is None or len(points) == 0:
            return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
        ratio = np.array([self.size[0] / small.shape[1], self.size[1] / small.shape[0]])
        where = (np.array([p.pt for p in points]) + 0.5) * ratio - 0.5
        unit = descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-6)
        return where.astype(np.float32), unit.astype(np.float32)


def make_proxy(frame: Image, curve: ToneCurve = SRGB) -> Proxy:
    """Reduce `frame` (H×W×C uint8 or uint16, C = 1 or 3, RGB) to what registration needs.

    Raises ValueError on any other array, BracketError on one smaller than MIN_SIDE pixels along a side.
    """
    if frame.ndim != 3 or frame.shape[2] not in (1, 3) or frame.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected an H×W×1 or H×W×3 uint8 or uint16 array, got {frame.dtype} {frame.shape}")
    height, width, channels = frame.shape
    if min(height, width) < MIN_SIDE:
        raise BracketError(
            f"photos of {width}×{height} pixels are too small to be registered: at least {MIN_SIDE} a side\n"
            "use --no-align (in Python align=False)"
        )
    small = frame
    if height * width > PROXY_PIXELS:
        small = cv2.resize(frame, _size_within(width, height, PROXY_PIXELS), interpolation=cv2.INTER_AREA)
        small = small.reshape(*small.shape[:2], channels)
    linear = curve.table(frame.dtype)[small]
    usable = (linear < CLIPPED).astype(np.float32)
    linear = np.minimum(linear, 1)
    shrink = min(1.0, LIGHT_SIDE / max(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    shape = (size[1], size[0], channels)
    light, valid = (
        np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32).reshape(shape)
        for image in (linear, usable)
    )
    luminance = linear @ LUMA if channels == 3 else np.ascontiguousarray(linear[..., 0])
    return Proxy((width, height), luminance, light, valid)


def _size_within(width: int, height: int, pixels: int) -> tuple[int, int]:
    """The largest size of the same shape with at most `pixels` pixels; never larger than given."""
    shrink = min(1.0, (pixels / (width * height)) ** 0.5)
    return max(1, int(width * shrink)), max(1, int(height * shrink))


def _level_sizes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    height, width = shape[:2]
    sizes = [(width, height)]
    while min(sizes[-1]) >= 2 * COARSEST_SIDE:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def _structure(light: Float, size: tuple[int, int], frame: tuple[int, int]) -> Level:
    """The structure of `light` at `size`: what remains when local mean and local contrast are taken out."""
    small = light if size == light.shape[::-1] else cv2.resize(light, size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), LOW_PASS)
    high = small - cv2.GaussianBlur(small, (0, 0), LOCAL)
    deviation = np.sqrt(cv2.GaussianBlur(high * high, (0, 0), LOCAL))
    floor = max(NOISE_FLOOR, 0.5 * float(np.median(deviation[::2, ::2])))
    structure = high / (deviation + floor)
    kernel = np.array([[-0.5, 0.0, 0.5]], np.float32)
    along_x = cv2.filter2D(structure, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    along_y = cv2.filter2D(structure, -1, kernel.T, borderType=cv2.BORDER_REPLICATE)
    image = np.asarray(cv2.merge([structure, along_x, along_y]), np.float32)
    return Level(image, (size[0] / frame[0], size[1] / frame[1]))
