"""What the metrics share: checking their inputs, histograms, gradients, windows, local statistics.

Conventions: one channel is a float64 array (H, W) with values in 0…255. "Same" filtering pads with
zeros, "valid" filtering keeps only the windows that lie inside the image.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FloatImage = NDArray[np.float64]
AnyImage = NDArray[Any]

PEAK = 255.0
SSIM_C1, SSIM_C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2  # Wang et al. 2004, section III-B
_UINT16_PER_LEVEL = 257.0  # 65535 / 255: white stays white, and 257·v is exactly the 8-bit value v


# Checking -------------------------------------------------------------------------------------------------


def size_of(image: AnyImage) -> str:
    """The shape as messages write it: "520×520×3"."""
    return "×".join(map(str, image.shape)) or "a single number"


def to_float(image: AnyImage, name: str) -> FloatImage:
    """The pixels as float64 in 0…255: uint8 as they are, uint16 divided by 257, floats checked.

    (H, W, 1), as gray `Photo.pixels` are, becomes (H, W).

    Raises:
        ValueError: another dtype, a float that is not finite or lies outside 0…255, floats of 0…1.
    """
    if not isinstance(image, np.ndarray):
        raise ValueError(f"{name} is a {type(image).__name__}; expected a NumPy array")
    if image.shape[2:] == (1,):
        image = image[:, :, 0]
    if image.dtype == np.uint8:
        return image.astype(np.float64)
    if image.dtype == np.uint16:
        return np.asarray(image.astype(np.float64) / _UINT16_PER_LEVEL)
    if image.dtype in (np.float32, np.float64):
        values = image.astype(np.float64)
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        if not (low >= 0 and high <= PEAK):  # a NaN fails both comparisons
            raise ValueError(f"{name} has values from {low:g} to {high:g}; floats must lie in 0…255")
        if high <= 1 and (values % 1).any():  # SSIM's constants and the peak would be far too large for them
            raise ValueError(
                f"{name} has values from {low:g} to {high:g}; floats must lie in 0…255: multiply them by 255"
            )
        return values
    raise ValueError(f"{name} is {image.dtype}; expected uint8, uint16, or float32/float64 in 0…255")


def check_same_size(metric: str, **images: AnyImage) -> None:
    """All images have one shape.

    Raises:
        ValueError: two of them differ; the message names both with their sizes.
    """
    for (name, image), (other_name, other) in pairwise(images.items()):
        if image.shape != other.shape:
            raise ValueError(
                f"{metric}: {name} is {size_of(image)} but {other_name} is {size_of(other)}; "
                "they must have the same size"
            )


def check_min_side(metric: str, image: AnyImage, min_side: int) -> None:
    """Both sides of the image, (H, W) or (H, W, channels), hold the metric's window.

    Raises:
        ValueError: a side is shorter than `min_side`.
    """
    if min(image.shape[:2]) < min_side:
        raise ValueError(
            f"{metric}: the images are {size_of(image)}; at least {min_side}×{min_side} is needed"
        )


def check_triple(
    metric: str, a: AnyImage, b: AnyImage, fused: AnyImage, *, min_side: int = 1
) -> tuple[FloatImage, FloatImage, FloatImage]:
    """The two sources and the fused image, each one channel (H, W), as float64 in 0…255.

    Raises:
        ValueError: not one channel each, different sizes, too small, or values out of range.
    """
    images = {"source a": a, "source b": b, "the fused image": fused}
    floats = {name: to_float(image, f"{metric}: {name}") for name, image in images.items()}
    for name, image in floats.items():
        if image.ndim != 2:
            raise ValueError(f"{metric}: {name} is {size_of(image)}; expected one channel, height×width")
    check_same_size(metric, **floats)
    check_min_side(metric, floats["source a"], min_side)
    return floats["source a"], floats["source b"], floats["the fused image"]


def prepare_pair(
    metric: str, reference: AnyImage, image: AnyImage, *, luma: bool, border: int
) -> tuple[FloatImage, FloatImage]:
    """Reference and image as float64 (h, w, channels) in 0…255, cropped and converted as asked.

    Raises:
        ValueError: see `psnr`.
    """
    images = {"the reference": reference, "the image": image}
    floats = {name: to_float(pixels, f"{metric}: {name}") for name, pixels in images.items()}
    for name, pixels in floats.items():
        if pixels.ndim != 2 and pixels.shape[2:] != (3,):
            raise ValueError(
                f"{metric}: {name} is {size_of(pixels)}; expected height×width or height×width×3"
            )
    check_same_size(metric, **floats)
    shape = floats["the image"].shape
    if luma and len(shape) == 2:
        raise ValueError(f"{metric}: luma needs RGB, height×width×3; the images are {shape[0]}×{shape[1]}")
    if border < 0 or 2 * border >= min(shape[:2]):
        raise ValueError(f"{metric}: a border of {border} leaves nothing of {shape[0]}×{shape[1]} pixels")
    inner = slice(border, shape[0] - border), slice(border, shape[1] - border)
    x, y = (np.atleast_3d(pixels)[inner] for pixels in floats.values())
    return (_luma(x), _luma(y)) if luma else (x, y)


def _luma(rgb: FloatImage) -> FloatImage:
    """BT.601 luma of (H, W, 3), 16…235, (H, W, 1)."""
    weights = np.array([[65.481], [128.553], [24.966]]) / PEAK
    return np.asarray(16 + rgb @ weights, dtype=np.float64)


def row_blocks(height: int) -> list[slice]:
    """Slices that cover the rows; work on one block at a time stays in the processor's cache."""
    return [slice(top, min(top + 16, height)) for top in range(0, height, 16)]


# Histograms -----------------------------------------------------------------------------------------------


def norm255(image: FloatImage) -> NDArray[np.intp]:
    """Stretch (H, W) to the whole numbers 0…255, halves rounded up; a constant image becomes all zero."""
    low, high = image.min(), image.max()
    if high == low:
        return np.zeros(image.shape, dtype=np.intp)
    stretched = PEAK * (image - low) / (high - low)
    whole = np.floor(stretched)
    whole += stretched - whole >= 0.5  # np.round would round halves to even
    return np.asarray(whole, dtype=np.intp)


class PairEntropies:
    """Entropies in bits of two images of whole numbers 0…255, from their 256×256 joint histogram."""

    def __init__(self, x: NDArray[np.intp], y: NDArray[np.intp]) -> None:
        joint = np.bincount((256 * x + y).ravel(), minlength=256 * 256).reshape(256, 256)
        self.first = _entropy(joint.sum(axis=1))
        self.second = _entropy(joint.sum(axis=0))
        self.joint = _entropy(joint)

    @property
    def mutual(self) -> float:
        """MI(X, Y) = H(X) + H(Y) − H(X, Y), in bits, 0…8."""
        return self.first + self.second - self.joint


def _entropy(counts: NDArray[np.intp]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum()) + 0.0  # + 0.0: a single bin gives 0, not −0


# Windows --------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def gaussian_window(size: int, sigma: float) -> FloatImage:
    """One side (size,) of the square Gaussian window; sums to one. The window is its outer product."""
    x = np.arange(size) - (size - 1) / 2
    w = np.exp(-(x * x) / (2 * sigma * sigma))
    w /= w.sum()
    w.flags.writeable = False
    return w


def filter_same(image: FloatImage, window: FloatImage) -> FloatImage:
    """Weighted mean over the square window at each pixel, (H, W) → (H, W), zeros beyond the border."""
    return np.asarray(
        cv2.sepFilter2D(image, cv2.CV_64F, window, window, borderType=cv2.BORDER_CONSTANT), dtype=np.float64
    )


class LocalStatistics:
    """Means, variances and covariances of images over the same Gaussian windows, whole windows only.

    Images (H, W) have one-letter names, and every map is (H − n + 1, W − n + 1) for a window of side n:
    `s = LocalStatistics(window, ["AA", "FF", "AF"], A=a, F=f)`, `s.means["A"]`, `s.covs["AF"]`.

    The usual E[xy] − E[x]E[y] leaves round-off of about 1e-11 where a window is flat, which metrics
    with tiny constants would then divide by. Here every term is a product of deviations, so a flat
    window gives 0 (to 1e-25). By the law of total covariance the two directions come apart:
    cov = mean over rows of the covariance inside the row + covariance of the row means.
    """

    def __init__(self, window: FloatImage, pairs: list[str], **images: FloatImage) -> None:
        rows = {name: _slide(image, window, axis=1) for name, image in images.items()}
        self.means = {name: _slide(row, window, axis=0) for name, row in rows.items()}
        inside = _slide_covariances(images, rows, pairs, window, axis=1)
        between = _slide_covariances(rows, self.means, pairs, window, axis=0)
        self.covs = {pair: _slide(inside[pair], window, axis=0) + between[pair] for pair in pairs}

    def ssim(self, pair: str, c1: float, c2: float) -> FloatImage:
        """The SSIM of two images at each window (Wang et al. 2004, eq. 13). c1, c2 > 0."""
        x, y = pair[0], pair[1]
        mx, my = self.means[x], self.means[y]
        luminance = (2 * mx * my + c1) / (mx * mx + my * my + c1)
        return luminance * (2 * self.covs[pair] + c2) / (self.covs[x + x] + self.covs[y + y] + c2)

    def salience(self, first: str, second: str, *, flat: float | FloatImage = 0.5) -> FloatImage:
        """λ = σ²_first / (σ²_first + σ²_second) at each window; `flat` where both are flat."""
        v1, v2 = self.covs[first * 2], self.covs[second * 2]
        both_flat = (v1 < 1e-12) & (v2 < 1e-12)
        return np.where(both_flat, flat, v1 / np.where(both_flat, 1.0, v1 + v2))


def _slide(image: FloatImage, window: FloatImage, *, axis: int) -> FloatImage:
    """Valid correlation with the window along one axis."""
    kernel_x, kernel_y = (window, np.ones(1)) if axis == 1 else (np.ones(1), window)
    half = len(window) // 2
    full = cv2.sepFilter2D(image, cv2.CV_64F, kernel_x, kernel_y, borderType=cv2.BORDER_CONSTANT)
    inner = full[:, half : full.shape[1] - half] if axis == 1 else full[half : full.shape[0] - half]
    return np.ascontiguousarray(inner, dtype=np.float64)


def _slide_covariances(
    images: dict[str, FloatImage],
    means: dict[str, FloatImage],
    pairs: list[str],
    window: FloatImage,
    *,
    axis: int,
) -> dict[str, FloatImage]:
    """Valid covariances of the pairs along one axis, from deviations to the given means."""
    height, width = next(iter(means.values())).shape
    totals = {pair: np.zeros((height, width)) for pair in pairs}
    for rows in row_blocks(height):
        for k, weight in enumerate(window):
            shifted_rows = slice(rows.start + k, rows.stop + k) if axis == 0 else rows
            columns = slice(k, k + width) if axis == 1 else slice(None)
            deviations = {name: images[name][shifted_rows, columns] - means[name][rows] for name in means}
            weighted = {name: weight * deviation for name, deviation in deviations.items()}
            for pair, total in totals.items():
                total[rows] += weighted[pair[0]] * deviations[pair[1]]
    return totals


# Gradients ------------------------------------------------------------------------------------------------


def sobel(image: FloatImage) -> tuple[FloatImage, FloatImage]:
    """Horizontal and vertical Sobel responses, each (H, W), zeros beyond the border."""
    gx = cv2.Sobel(image, cv2.CV_64F, 1, 0, ksize=3, borderType=cv2.BORDER_CONSTANT)
    gy = cv2.Sobel(image, cv2.CV_64F, 0, 1, ksize=3, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(gx, dtype=np.float64), np.asarray(gy, dtype=np.float64)
