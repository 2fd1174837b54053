"""ICC profiles: is one usable, and the few conversions that reading and writing need."""

from __future__ import annotations

import functools
import io

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ._decoded import Pixels, Warn, to_8_bit

__all__ = ["SPACES", "gray_to_srgb", "icc_fault", "same_profile", "srgb_profile", "to_srgb", "usable_icc"]

SPACES = {1: "GRAY", 3: "RGB"}  # the colour space a profile must describe, by channels
_LARGEST = 16_000_000  # bytes; what 255 JPEG segments hold


@functools.cache
def srgb_profile() -> bytes:
    """The sRGB profile, byte for byte the same on every call and every day."""
    profile = _timeless(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    return profile[:24] + bytes.fromhex("07d000010001000000000000") + profile[36:]


def same_profile(one: bytes | None, other: bytes | None) -> bool:
    """Whether two profiles differ in nothing but their date: some programs make one for each file."""
    return _timeless(one or b"") == _timeless(other or b"")


def _timeless(icc: bytes) -> bytes:
    """A profile without its creation time and the MD5 identifier that depends on it.

    Bytes 24-35 and 84-99 (ICC.1:2010, 7.2).
    """
    return icc[:24] + bytes(12) + icc[36:84] + bytes(16) + icc[100:]


def icc_fault(icc: bytes, space: str) -> str | None:
    """Why the profile cannot serve for pixels of `space` ("RGB", "GRAY", "CMYK"); None if it can."""
    if len(icc) > _LARGEST:
        return f"is larger than {_LARGEST // 1_000_000} MB"
    if len(icc) < 132 or icc[36:40] != b"acsp":
        return "is no ICC profile"
    if int.from_bytes(icc[:4], "big") > len(icc):
        return "is cut short"
    found = icc[16:20].decode("ascii", "replace").strip()
    if found != space:
        return f"describes {found} colours, but the pixels are {space}"
    mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}[space]
    try:
        _transform(icc, mode)
    except Exception as fault:  # noqa: BLE001 - littleCMS reports hostile profiles in many ways
        return f"is damaged ({fault})"
    return None


def usable_icc(
    icc: bytes | None, space: str, warn: Warn, *, then: str = "; it is left out and sRGB assumed"
) -> bytes | None:
    """The profile if it can serve for pixels of `space`; else None, with a warning that ends with `then`."""
    if icc is None or (fault := icc_fault(icc, space)) is None:
        return icc
    warn(f"the colour profile {fault}{then}")
    return None


def _transform(icc: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(icc)),
        ImageCms.ImageCmsProfile(io.BytesIO(srgb_profile())),
        mode,
        "RGB",
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


def to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """CMYK or RGB → RGB in sRGB, through the profile if there is one, else by Pillow's formula."""
    if icc is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, _transform(icc, image.mode))
    if converted is None:  # only an in-place conversion returns nothing
        raise ValueError("colour conversion failed")
    return converted


def gray_to_srgb(gray: Pixels, icc: bytes | None) -> tuple[NDArray[np.uint8], bytes | None]:
    """H×W×1 gray pixels, uint8 or uint16, as H×W×3 uint8, with the profile that then fits.

    By a table of all levels, each computed in full: Little CMS's short cut for 8 bits loses the shadows of
    linear profiles, and so does rounding 16 bits before.
    """
    if icc is None:
        return np.repeat(to_8_bit(gray), 3, axis=2), None
    table = imagecodecs.cms_transform(
        np.arange(np.iinfo(gray.dtype).max + 1, dtype=gray.dtype)[None],
        icc,
        srgb_profile(),
        colorspace="gray",
        outcolorspace="rgb",
        outdtype="uint8",
        intent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE,
    )
    return table[0][gray[:, :, 0]], srgb_profile()
