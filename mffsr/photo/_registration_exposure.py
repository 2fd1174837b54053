"""How much brighter one frame is than another: ratios of strongly blurred linear light."""

from __future__ import annotations

import cv2
import numpy as np

from mffsr.photo._registration_proxy import Float, Proxy
from mffsr.photo._registration_solve import Matrix

__all__ = ["exposure_gain"]

BLUR = 6.0  # pixels of the thumbnail, whose longer side is 256: wider than any blur disc that matters
USABLE = 0.9  # share of unclipped pixels behind a thumbnail pixel that takes part
SUPPORT = 0.5  # share of the blur window that takes part
FEWEST = 16
LIMIT = 16.0  # four stops


def exposure_gain(frame: Proxy, reference: Proxy, matrix: Matrix) -> tuple[float, ...]:
    """Per channel, the factor of linear light from `frame` to `reference`; 1 where nothing can be compared.

    `matrix` maps reference pixels to frame pixels.
    """
    height, width, channels = reference.light.shape
    shrink, unshrink = _to_thumbnail(frame), np.linalg.inv(_to_thumbnail(reference))
    small = shrink @ matrix @ unshrink
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    light, valid = (
        np.asarray(cv2.warpPerspective(image, small, (width, height), flags=flags), np.float32).reshape(
            height, width, channels
        )
        for image in (frame.light, frame.valid)
    )
    return tuple(
        _ratio(light[..., c], reference.light[..., c], np.minimum(valid[..., c], reference.valid[..., c]))
        for c in range(channels)
    )


def _ratio(frame: Float, reference: Float, valid: Float) -> float:
    """Median of reference / frame over the blurred pixels, weighted by their light."""
    mask = (valid > USABLE).astype(np.float32)
    blurred = [cv2.GaussianBlur(image, (0, 0), BLUR) for image in (frame * mask, reference * mask, mask)]
    rows, columns = (slice(min(1, side - 1), None, 3) for side in mask.shape)  # a long photo may have one row
    below, above, support = (image[rows, columns].ravel() for image in blurred)
    keep = (support > SUPPORT) & (below > 1e-5) & (above > 1e-5)
    if keep.sum() < FEWEST:
        keep = (support > 0.02) & (below > 1e-5) & (above > 1e-5)
    if keep.sum() < FEWEST:
        return 1.0
    ratio, weight = above[keep] / below[keep], (above + below)[keep]
    order = np.argsort(ratio)
    total = np.cumsum(weight[order])
    median = float(ratio[order][np.searchsorted(total, 0.5 * total[-1])])
    return float(np.clip(median, 1 / LIMIT, LIMIT))


def _to_thumbnail(proxy: Proxy) -> Matrix:
    """Frame pixels to thumbnail pixels."""
    sx, sy = proxy.light.shape[1] / proxy.size[0], proxy.light.shape[0] / proxy.size[1]
    return np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]])
