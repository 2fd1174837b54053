"""Image quality: six metrics of fusion without a reference, and PSNR and SSIM against one.

Every function takes arrays, returns a float and raises ValueError where they do not fit together.
Definitions, constants and conventions: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TypedDict

import numpy as np

from mffsr.metrics._common import AnyImage, FloatImage, check_min_side, check_same_size, size_of, to_float
from mffsr.metrics.psnr import psnr
from mffsr.metrics.q_g import _q_g_toolbox, q_g
from mffsr.metrics.q_mi import _q_mi, q_mi
from mffsr.metrics.q_nice import _q_nice, q_nice
from mffsr.metrics.q_p import MIN_SIDE, compare_features, phase_features, q_p
from mffsr.metrics.q_s import _q_s, q_s
from mffsr.metrics.q_y import _q_y, q_y
from mffsr.metrics.ssim import ssim

__all__ = [
    "FUSION_KEYS",
    "FusionMetrics",
    "fusion_metrics",
    "psnr",
    "q_g",
    "q_mi",
    "q_nice",
    "q_p",
    "q_s",
    "q_y",
    "ssim",
]

# Without the checks, which would take a nearly black uint16 image, once divided by 257, for floats of 0…1.
# Q_P is not here: fusion_metrics computes its features once per image, not once per pair.
_PAIR_METRICS = {"Q_MI": _q_mi, "Q_NICE": _q_nice, "Q_G": _q_g_toolbox, "Q_S": _q_s, "Q_Y": _q_y}
FUSION_KEYS = ("Q_MI", "Q_NICE", "Q_G", "Q_P", "Q_S", "Q_Y")  # in the order of JSON and CSV


class FusionMetrics(TypedDict):
    """The metrics of one fused image, ready for JSON, by FUSION_KEYS."""

    per_channel: dict[str, list[float]]  # [r, g, b], or one value for a grey image
    mean: dict[str, float]


def fusion_metrics(sources: Sequence[AnyImage], fused: AnyImage) -> FusionMetrics:
    """All fusion metrics of a fused image, per channel and their mean over the channels.

    Args:
        sources: two or more arrays (H, W), (H, W, 1) or (H, W, 3) RGB, at least 11×11, uint8 or uint16
            (counted as v/257). The order of the first two matters to Q_G alone, and there hardly (see `q_g`).
        fused: the fused image, the same size.

    Returns:
        {"per_channel": {"Q_MI": [r, g, b], …}, "mean": {"Q_MI": …, …}}. The metrics are defined for two
        sources. For more, each value is the mean over all pairs of sources: an extension of this package,
        lower than a two-source value would be, and to be compared only at the same number of sources.

    Raises:
        ValueError: fewer than two sources, sizes that differ, neither gray nor RGB, smaller than
            11×11, or another dtype.
    """
    if len(sources) < 2:
        raise ValueError(f"fusion_metrics: got {len(sources)} source(s); at least 2 are needed")
    images = {f"source {i}": source for i, source in enumerate(sources, start=1)}
    images["the fused image"] = fused
    floats = {name: _checked(image, name) for name, image in images.items()}
    check_same_size("fusion_metrics", **floats)
    check_min_side("fusion_metrics", floats["the fused image"], MIN_SIDE)

    *channels_of_sources, channels_of_fused = (np.atleast_3d(image) for image in floats.values())
    per_channel: dict[str, list[float]] = {key: [] for key in FUSION_KEYS}
    for c in range(channels_of_fused.shape[2]):
        channels = [np.ascontiguousarray(image[:, :, c]) for image in channels_of_sources]
        values = _one_channel(channels, np.ascontiguousarray(channels_of_fused[:, :, c]))
        for key in FUSION_KEYS:
            per_channel[key].append(values[key])
    return {
        "per_channel": per_channel,
        "mean": {key: float(np.mean(values)) for key, values in per_channel.items()},
    }


def _checked(image: AnyImage, name: str) -> FloatImage:
    if isinstance(image, np.ndarray):
        if image.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"fusion_metrics: {name} is {image.dtype}; expected uint8 or uint16")
        if image.ndim != 2 and image.shape[2:] not in ((1,), (3,)):
            raise ValueError(
                f"fusion_metrics: {name} is {size_of(image)}; expected height×width or height×width×3"
            )
    return to_float(image, f"fusion_metrics: {name}")


def _one_channel(sources: list[FloatImage], fused: FloatImage) -> dict[str, float]:
    """The mean of each metric over all pairs of sources; all images (H, W)."""
    pairs = list(combinations(range(len(sources)), 2))
    values = {
        key: float(np.mean([metric(sources[i], sources[j], fused) for i, j in pairs]))
        for key, metric in _PAIR_METRICS.items()
    }
    features, features_fused = [phase_features(source) for source in sources], phase_features(fused)
    values["Q_P"] = float(
        np.mean([compare_features(features[i], features[j], features_fused) for i, j in pairs])
    )
    return values
