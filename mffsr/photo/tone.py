"""Tone curves: from pixel values to linear light and back, as the colour profile says."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
from numpy.typing import NDArray

__all__ = ["LINEAR", "SRGB", "ToneCurve", "tone_curve"]

VALUES = np.linspace(0.0, 1.0, 1 << 16)
LIGHT_OF_THE_MIDDLE = 0.4  # of linear values it is 0.5, of gamma 1.8 it is 0.29, of sRGB 0.21
SAME = 2e-4  # of linear light: profiles of sRGB differ by so much


class ToneCurve(NamedTuple):
    """`light`: the linear light of each value of 16 bits, rising from 0; 1 is white."""

    light: NDArray[np.float64]

    def table(self, dtype: np.dtype[Any]) -> NDArray[np.float32]:
        """Return the linear light of each value of uint8 or uint16."""
        return self.light[:: (len(VALUES) - 1) // int(np.iinfo(dtype).max)].astype(np.float32)

    @property
    def is_linear(self) -> bool:
        """Whether values go with light rather than with lightness, as of cameras' pictures."""
        return bool(np.interp(0.5, VALUES, self.light / self.light[-1]) > LIGHT_OF_THE_MIDDLE)

    def as_srgb(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return for each value of uint8 or uint16 that of the same light in sRGB, of that type as well."""
        return np.rint(SRGB.value(self.table(dtype)) * np.iinfo(dtype).max).astype(dtype)

    def value(self, light: NDArray[Any]) -> NDArray[np.float64]:
        """Return the pixel values, 0…1, of linear light; white beyond the end of the curve."""
        return np.interp(light, self.light, VALUES)

    def brighter(self, bits: int) -> ToneCurve:
        """Return the curve of values that mean what is brighter by `bits`; above white it goes on rising."""
        if not bits:
            return self
        values = VALUES * (1 << bits)
        power = -math.log2(np.interp(0.5, VALUES, self.light))
        return ToneCurve(np.where(values <= 1, np.interp(values, VALUES, self.light), values**power))


def _srgb() -> NDArray[np.float64]:
    """IEC 61966-2-1."""
    return np.where(VALUES <= 0.04045, VALUES / 12.92, ((VALUES + 0.055) / 1.055) ** 2.4)


SRGB = ToneCurve(_srgb())
LINEAR = ToneCurve(VALUES)


@cache
def tone_curve(icc: bytes | None) -> ToneCurve:
    """Return the tone curve of an RGB or gray profile: that of its neutral colours; sRGB's without one."""
    if icc is None:
        return SRGB
    values = np.rint(VALUES * 65535).astype(np.uint16)
    gray = icc[16:20] == b"GRAY"
    colours = values[None] if gray else np.repeat(values[None, :, None], 3, 2)
    try:
        xyz = imagecodecs.cms_transform(
            colours,
            icc,
            imagecodecs.cms_profile("xyz"),
            colorspace="gray" if gray else "rgb",
            outcolorspace="xyz",
            outdtype="float32",
        )
    except (ValueError, RuntimeError):  # imagecodecs.CmsError is one of the latter
        return SRGB
    light = np.maximum.accumulate(np.maximum(xyz.reshape(-1, 3)[:, 1].astype(np.float64), 0))
    if not light[-1] > 0:
        return SRGB
    light /= light[-1]
    return SRGB if np.abs(light - SRGB.light).max() < SAME else ToneCurve(light)
