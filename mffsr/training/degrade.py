"""From a sharp photograph to the low-resolution photo a network is trained on.

Every function takes and returns batches (B, 3, H, W), RGB in [0, 1], float32, on any device, and is a pure
function of its arguments: what is random is drawn by the caller (`mffsr.training.batches`).
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Degradation",
    "convolve",
    "jpeg",
    "reduce_antialiased",
    "reduce_area",
    "reduce_opencv",
    "shift",
    "to_8_bit",
]

Degradation = Literal["photo", "clean", "paper"]


def steady_round(x: Tensor) -> Tensor:
    """Round; halves always upwards, whatever the last bits say.

    Means of 8-bit pixels often lie half-way between two values. There the order of additions, which depends
    on the size of the batch, would decide, and two processes would see other photos than one.
    """
    return torch.round(x + 1e-3)


def to_8_bit(image: Tensor) -> Tensor:
    """Clip to [0, 1] and round to the 256 values of an 8-bit photo."""
    return steady_round(image.clamp(0, 1) * 255).clamp(max=255) / 255


def reduce_antialiased(image: Tensor, scale: int) -> Tensor:
    """Reduce by 1/scale with the antialiased bicubic kernel (a = −0.5) of Pillow and MATLAB."""
    size = (image.shape[2] // scale, image.shape[3] // scale)
    return F.interpolate(image, size, mode="bicubic", antialias=True)


def reduce_opencv(image: Tensor, scale: int) -> Tensor:
    """Reduce by 1/scale with OpenCV's INTER_CUBIC (a = −0.75, no antialiasing), as the paper does."""
    size = (image.shape[2] // scale, image.shape[3] // scale)
    return F.interpolate(image, size, mode="bicubic", align_corners=False)


def reduce_area(image: Tensor, scale: int) -> Tensor:
    """Reduce by 1/scale by the mean of scale×scale pixels, as a coarser sensor would see the scene."""
    return F.avg_pool2d(image, scale)


def convolve(image: Tensor, kernels: Tensor) -> Tensor:
    """Convolve each image (B, C, H, W) with its own kernel (B, k, k), k odd, by FFT.

    The image is taken as periodic: a margin of k // 2 pixels has to be cut off by the caller.
    """
    height, width = image.shape[-2:]
    k = kernels.shape[-1]
    padded = image.new_zeros(len(kernels), 1, height, width)
    padded[:, 0, :k, :k] = kernels
    padded = torch.roll(padded, (-(k // 2), -(k // 2)), (2, 3))
    return torch.fft.irfft2(torch.fft.rfft2(image) * torch.fft.rfft2(padded), s=(height, width))


def shift(image: Tensor, offsets: Tensor) -> Tensor:
    """Shift each image by its own (dy, dx) pixels (B, 2), sub-pixel, without blur (phase ramp; periodic)."""
    height, width = image.shape[-2:]
    fy = torch.fft.fftfreq(height, device=image.device)[None, :, None]
    fx = torch.fft.rfftfreq(width, device=image.device)[None, None, :]
    phase = -2 * torch.pi * (fy * offsets[:, 0, None, None] + fx * offsets[:, 1, None, None])
    ramp = torch.polar(torch.ones_like(phase), phase)[:, None]
    return torch.fft.irfft2(torch.fft.rfft2(image) * ramp, s=(height, width))


_LUMA = [
    [16, 11, 10, 16, 24, 40, 51, 61],
    [12, 12, 14, 19, 26, 58, 60, 55],
    [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62],
    [18, 22, 37, 56, 68, 109, 103, 77],
    [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101],
    [72, 92, 95, 98, 112, 100, 103, 99],
]
_CHROMA = [
    [17, 18, 24, 47, 99, 99, 99, 99],
    [18, 21, 26, 66, 99, 99, 99, 99],
    [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99],
    *([[99] * 8] * 4),
]


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return the DCT matrix and both quantisation tables, (8, 8) each; copied to a device once only.

    A copy from the host would stop a GPU until it has arrived.
    """
    with torch.inference_mode(False):
        n = torch.arange(8, dtype=torch.float32)
        matrix = torch.cos((2 * n[None] + 1) * n[:, None] * torch.pi / 16) / 2
        matrix[0] /= 2**0.5
        luma, chroma = (torch.tensor(table, dtype=torch.float32) for table in (_LUMA, _CHROMA))
        return matrix.to(device), luma.to(device), chroma.to(device)


def _quantise(plane: Tensor, table: Tensor) -> Tensor:
    """DCT, quantise and restore planes (B, C, H, W), multiples of 8, by tables (B, 8, 8); values around 0."""
    batch, channels, height, width = plane.shape
    dct = _constants(plane.device)[0]
    blocks = plane.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    steps = table[:, None, None, None]
    blocks = steady_round(dct @ blocks @ dct.T / steps) * steps
    return (dct.T @ blocks @ dct).transpose(3, 4).reshape(batch, channels, height, width)


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Return what JPEG with 4:2:0 chroma at `quality` (B,), 1…100, leaves of each image.

    Height and width must be multiples of 16. Transform and quantisation are JPEG's (ITU-T T.81, annex K
    tables scaled as libjpeg does); the lossless entropy coding is left out.
    """
    if image.shape[2] % 16 or image.shape[3] % 16:
        raise ValueError(f"image is {image.shape[3]}×{image.shape[2]}, expected multiples of 16")
    q = quality.to(image).clamp(1, 100)
    percent = torch.where(q < 50, 5000 / q, 200 - 2 * q)[:, None, None]
    luma, chroma = (
        ((table * percent + 50) / 100).floor().clamp(1, 255) for table in _constants(image.device)[1:]
    )
    r, g, b = (to_8_bit(image) * 255).split(1, 1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    cb, cr = 0.564334 * (b - y), 0.713267 * (r - y)
    y = _quantise(y - 128, luma) + 128
    colour = _quantise(F.avg_pool2d(torch.cat((cb, cr), 1), 2), chroma)
    cb, cr = F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False).split(1, 1)
    rgb = torch.cat((y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb), 1)
    return to_8_bit(rgb / 255)
