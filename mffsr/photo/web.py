"""Pixels → pictures for a browser: 8-bit sRGB JPEG."""

from __future__ import annotations

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ._colour import SPACES, gray_to_srgb, icc_fault, to_srgb
from ._decoded import Pixels, to_8_bit

__all__ = ["jpeg", "web_pixels"]


def web_pixels(pixels: Pixels, icc: bytes | None) -> NDArray[np.uint8]:
    """Return pixels (H×W×1 or H×W×3, uint8 or uint16) as 8-bit sRGB, H×W×1 or H×W×3.

    `icc` is their profile; without one, or with one that does not fit them, they count as sRGB.
    """
    if icc is None or icc_fault(icc, SPACES[pixels.shape[2]]) is not None:
        return to_8_bit(pixels)
    if pixels.shape[2] == 1:
        return gray_to_srgb(pixels, icc)[0]
    return np.asarray(to_srgb(Image.fromarray(to_8_bit(pixels)), icc))


def jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Return 8-bit pixels (H×W×1 or H×W×3) as JPEG; `quality` is 1..100."""
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    plain = np.ascontiguousarray(flat)
    return bytes(imagecodecs.jpeg8_encode(plain, level=quality, subsampling="444", optimize=True))
