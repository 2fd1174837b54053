"""Q_P: how well the fused image keeps the sources' features, measured by phase congruency.

J. Zhao, R. Laganière, Z. Liu, "Performance assessment of combinative pixel-level image fusion based on
an absolute feature measurement", Int. J. Innovative Computing, Information and Control 3(6A), 2007.
Phase congruency: P. Kovesi, "Image features from phase congruency", Videre 1(3), 1999, and "Phase
congruency detects corners and edges", DICTA 2003.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.metrics._common import (
    AnyImage,
    FloatImage,
    check_triple,
    filter_same,
    gaussian_window,
    row_blocks,
)

MIN_SIDE = 11  # the window of the local correlation

_SCALES = 4
_ORIENTATIONS = 6
_MIN_WAVELENGTH = 3.0
_WAVELENGTH_FACTOR = 2.1
_SIGMA_ON_F = 0.55
_ANGULAR_SIGMA = np.pi / _ORIENTATIONS / 1.2  # dThetaOnSigma 1.2
_NOISE_K = 2.0
_WIDTH_CUTOFF, _WIDTH_GAIN = 0.5, 10.0
_LOWPASS_CUTOFF, _LOWPASS_ORDER = 0.45, 15
_EPSILON = 1e-4

_FEATURE_THRESHOLD = 0.1
_C = 1e-4

# Above this many pixels a filter bank (80 bytes per pixel) is built for each image and not kept.
_CACHED_PIXELS = 4_000_000


def q_p(a: AnyImage, b: AnyImage, fused: AnyImage) -> float:
    """Phase congruency based fusion quality: the product of three feature correlations.

    Args:
        a: first source, one channel (H, W), at least 11×11: uint8, uint16, or float in 0…255.
        b: second source, the same size. The metric is symmetric in a and b.
        fused: the fused image, the same size.

    Returns:
        At most 1, more is better; usually in 0…1. Even fused = a = b gives a little less than 1, as
        the sources' maps are masked to their features and the fused image's is not. 0 when neither
        source has a feature (both constant): there is nothing to keep.

    Raises:
        ValueError: sizes differ, not one channel, smaller than 11×11, or values out of range.
    """
    triple = check_triple("q_p", a, b, fused, min_side=MIN_SIDE)
    return compare_features(*(phase_features(image) for image in triple))


class Features(NamedTuple):
    """Phase congruency and its moments, each (H, W), ≥ 0."""

    congruency: FloatImage  # 0…1
    max_moment: FloatImage  # edges and corners
    min_moment: FloatImage  # corners


class _FilterBank(NamedTuple):
    """Log-Gabor filters in the frequency domain: filter (s, o) = radial[s]·angular[o]."""

    radial: FloatImage  # (scales, H, W)
    angular: FloatImage  # (orientations, H, W)
    noise_gain: tuple[float, ...]  # per orientation: noise energy of all scales over that of the smallest


def compare_features(a: Features, b: Features, fused: Features) -> float:
    """Q_P from the features of the two sources and the fused image, all of one size."""
    from_a = a.congruency > b.congruency
    strongest = Features(*(np.where(from_a, x, y) for x, y in zip(a, b, strict=True)))
    masks = [source.congruency > _FEATURE_THRESHOLD for source in (a, b, strongest)]
    count = int(masks[2].sum())
    if count == 0:
        return 0.0
    product = 1.0
    for map_a, map_b, map_max, map_f in zip(a, b, strongest, fused, strict=True):
        correlations = _local_correlations([map_a, map_b, map_max], masks, map_f)
        product *= float(correlations.sum()) / count  # Zhao et al. 2007, P_blind with α = β = γ = 1
    return product


def _local_correlations(
    maps: list[FloatImage], masks: list[NDArray[np.bool_]], fused: FloatImage
) -> FloatImage:
    """At each pixel the best correlation of the fused map with the masked maps around it, (H, W)."""
    window = gaussian_window(11, 1.5)
    mean_f = filter_same(fused, window)
    var_f = filter_same(fused * fused, window) - mean_f * mean_f
    best = np.full_like(fused, -np.inf)
    for source, mask in zip(maps, masks, strict=True):
        x = source * mask
        mean_x = filter_same(x, window)
        var_x = filter_same(x * x, window) - mean_x * mean_x
        cov = filter_same(x * fused, window) - mean_x * mean_f
        correlation = (cov + _C) / (np.sqrt(np.abs(var_x * var_f)) + _C)
        np.maximum(best, np.where(mask, correlation, 0.0), out=best)
    return best


def phase_features(image: FloatImage) -> Features:
    """Phase congruency of one channel (H, W), with its largest and smallest moment."""
    bank = (_cached_filter_bank if image.size <= _CACHED_PIXELS else _filter_bank)(image.shape)
    # The filters pass no constant part. Without it a flat image is exactly 0 and has no features.
    spectrum = np.fft.fft2(image - image[0, 0])

    energy, amplitude = np.zeros_like(image), np.zeros_like(image)  # summed over orientations
    responses = np.empty((_SCALES, *image.shape), dtype=np.complex128)  # one memory for all orientations
    squares = np.empty((_ORIENTATIONS, *image.shape))  # of the congruency of each orientation
    for orientation in range(_ORIENTATIONS):
        threshold = _oriented_responses(spectrum, bank, orientation, responses)
        for rows in row_blocks(image.shape[0]):
            e, a = _oriented_energy(responses[:, rows], threshold)
            energy[rows] += e
            amplitude[rows] += a
            a[a == 0] = 1  # a pixel without any response has no congruency: 0/0 = 0
            squares[orientation, rows] = (e / a) ** 2

    # Kovesi 2003, moments of phase congruency, with the factors of the fusion toolbox
    angle = np.arange(_ORIENTATIONS) * np.pi / _ORIENTATIONS
    x, y = np.cos(angle), np.sin(angle)
    third, sixth = _ORIENTATIONS / 2, _ORIENTATIONS
    cxx, cyy, cxy = np.tensordot(np.stack([x * x / third, y * y / third, x * y / sixth]), squares, axes=1)
    spread = np.sqrt(cxy * cxy + (cxx - cyy) ** 2) + _EPSILON
    return Features(
        energy / (amplitude + _EPSILON),  # Kovesi 1999, PC₂ over all orientations
        (cxx + cyy + spread) / 2,
        (cxx + cyy - spread) / 2,
    )


def _oriented_responses(
    spectrum: NDArray[np.complex128], bank: _FilterBank, orientation: int, out: NDArray[np.complex128]
) -> float:
    """Write the responses even + i·odd of all scales, smallest first, to out (scales, H, W).

    Returns:
        The threshold under which the energy of this orientation is noise.
    """
    oriented = spectrum * bank.angular[orientation]
    for radial, response in zip(bank.radial, out, strict=True):
        _inverse_fft_in_place(np.multiply(oriented, radial, out=response))
    # Kovesi 1999, noise compensation: the smallest scale tells the noise. Its amplitude has a Rayleigh
    # distribution, in which the median of the square is ln 2 times its mean.
    tau = np.sqrt(_median_square(np.abs(out[0])) / np.log(2) * bank.noise_gain[orientation])
    mean, deviation = tau * np.sqrt(np.pi / 2), np.sqrt((2 - np.pi / 2) * tau * tau)
    return float((mean + _NOISE_K * deviation) / 1.7)


def _oriented_energy(responses: NDArray[np.complex128], threshold: float) -> tuple[FloatImage, FloatImage]:
    """Weighted, noise-free energy and summed amplitude, each (h, W), of responses (scales, h, W)."""
    # Energy along the mean phase less that across it (Kovesi 1999, PC₂). The mean phase is
    # total/length; the parts along it add up to |total|²/length.
    total = responses.sum(axis=0)
    length = np.abs(total)
    across = np.abs((responses * total.conj()).imag).sum(axis=0)
    energy = np.maximum((length * length - across) / (length + _EPSILON) - threshold, 0)

    amplitudes = np.abs(responses)
    amplitude = amplitudes.sum(axis=0)
    width = amplitude / (amplitudes.max(axis=0) + _EPSILON) / _SCALES
    return energy / (1 + np.exp(_WIDTH_GAIN * (_WIDTH_CUTOFF - width))), amplitude


def _inverse_fft_in_place(spectrum: NDArray[np.complex128]) -> None:
    """np.fft.ifft2 by OpenCV, which takes half the time."""
    planes = spectrum.view(np.float64).reshape(*spectrum.shape, 2)
    cv2.dft(planes, dst=planes, flags=cv2.DFT_INVERSE | cv2.DFT_SCALE)


def _median_square(values: FloatImage) -> float:
    """np.median(values**2) for values ≥ 0, in a sixth of its time: one partition, not three."""
    middle = values.size // 2
    parts = np.partition(values.ravel(), middle)
    upper = float(parts[middle])
    lower = upper if values.size % 2 else float(parts[:middle].max())
    return (lower * lower + upper * upper) / 2


def _filter_bank(shape: tuple[int, int]) -> _FilterBank:
    """The filters for images of (H, W), zero frequency first."""
    y, x = np.meshgrid(_frequencies(shape[0]), _frequencies(shape[1]), indexing="ij")
    radius = np.hypot(x, y)
    lowpass = 1 / (1 + (radius / _LOWPASS_CUTOFF) ** (2 * _LOWPASS_ORDER))
    radius[0, 0] = 1  # any value: the filters are zero there
    wavelengths = [_MIN_WAVELENGTH * _WAVELENGTH_FACTOR**s for s in range(_SCALES)]
    bell = 2 * np.log(_SIGMA_ON_F) ** 2
    radial = np.stack([np.exp(-(np.log(radius * w) ** 2) / bell) * lowpass for w in wavelengths])
    radial[:, 0, 0] = 0

    theta = np.arctan2(-y, x)
    angular = np.empty((_ORIENTATIONS, *shape))
    for o in range(_ORIENTATIONS):
        offset = theta - o * np.pi / _ORIENTATIONS
        offset = np.arctan2(np.sin(offset), np.cos(offset))  # the shorter way round
        angular[o] = np.exp(-(offset**2) / (2 * _ANGULAR_SIGMA**2))

    gains = []
    for spread in angular:
        # Σ_s‖f_s‖² + 2·Σ_{i<j}⟨f_i, f_j⟩ is ‖Σ_s f_s‖², f_s being the even filter in the image domain
        even = np.fft.ifft2(radial.sum(axis=0) * spread).real
        gains.append(float((even**2).sum() * even.size / ((radial[0] * spread) ** 2).sum()))
    radial.flags.writeable = angular.flags.writeable = False
    return _FilterBank(radial, angular, tuple(gains))


_cached_filter_bank = lru_cache(maxsize=2)(_filter_bank)


def _frequencies(n: int) -> FloatImage:
    """The frequencies of n samples, zero first, in −0.5…0.5; for odd n the grid reaches both ends."""
    grid = (np.arange(n) - (n - 1) / 2) / (n - 1) if n % 2 else (np.arange(n) - n / 2) / n
    return np.fft.ifftshift(grid)
