"""Building blocks that several sub-networks share.

Conventions of the whole package `mffsr.model`: tensors are (batch, channels, height, width), images are
RGB in [0, 1], and every operator is *local*: an output pixel depends on input pixels within a finite,
known radius only, and never on the size of the image. That is what makes tiling exact (`mffsr.tiles`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mffsr.model.onednn import sum_of_convolutions, usable, working_type
from mffsr.tiles import Region

__all__ = [
    "LEAK",
    "MOST_BLOCKS",
    "WIDEST",
    "Stack",
    "box_mean",
    "check_sizes",
    "check_switches",
    "concatenate",
    "conv",
    "conv_stack",
    "convolve",
    "crop",
    "gradient_map",
    "merge_windows",
    "narrowed",
    "scaled",
    "start_of",
    "whole",
    "widened",
    "windows",
    "within",
]

CPU_START = 1 << 12  # pixels that a CPU would do while oneDNN makes code for another size
CUDA_START = 1 << 17  # pixels that a graphics card would do while the host starts a network once
LEAK = 0.2  # LeakyReLU slope of the authors
MOST_BLOCKS = 100  # ten times the paper's; to build the network that a weight file asks for takes a second
WIDEST = 1024  # channels or pixels


def check_sizes(config: object, names: Sequence[str], most: int) -> None:
    """Raise ValueError unless the fields of a configuration are whole numbers from 1 to `most`."""
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(f"{name} is {value!r}, expected a whole number from 1 to {most}")


def check_switches(config: object, names: Sequence[str]) -> None:
    """Raise ValueError unless the fields of a configuration are true or false."""
    for name in names:
        if not isinstance(value := getattr(config, name), bool):
            raise ValueError(f"{name} is {value!r}, expected true or false")


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps height and width (zero padding)."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def convolve(
    layer: nn.Conv2d, *parts: Tensor, slope: float | None = None, onto: Tensor | None = None
) -> Tensor:
    """Return the convolution of `parts`, (B, c, h, w) each, side by side in their channels.

    `onto` (B, out, h, w) is added to it; then, where a `slope` is given, comes LeakyReLU (0: ReLU).
    """
    leaky_sum = bool(slope) and (len(parts) > 1 or onto is not None)  # which oneDNN does not know
    if usable(parts[0]) and not torch.is_grad_enabled() and not leaky_sum:
        dtype = working_type(parts[0])
        weights = layer.weight.to(dtype).split([part.shape[1] for part in parts], 1)
        terms = [(part.to(dtype), weight) for part, weight in zip(parts, weights, strict=True)]
        bias, onto = (None if x is None else x.to(dtype) for x in (layer.bias, onto))
        return sum_of_convolutions(terms, bias, onto, slope)
    out: Tensor = layer(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
    out = out if onto is None else out + onto
    if slope is None:
        return out
    return F.leaky_relu(out, slope) if slope else F.relu(out)


class Stack(nn.Sequential):
    """Layers in sequence; an activation that follows a convolution is taken together with it."""

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.Conv2d) and layers and isinstance(layers[0], nn.ReLU | nn.LeakyReLU):
                x = convolve(layer, x, slope=getattr(layers.pop(0), "negative_slope", 0.0))
            else:
                x = layer(x)
        return x


def conv_stack(widths: tuple[int, ...], kernel: int = 3) -> Stack:
    """Return convolutions widths[0]→widths[1]→… with a LeakyReLU after each."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [conv(inputs, outputs, kernel), nn.LeakyReLU(LEAK)]
    return Stack(*layers)


def concatenate(*parts: Tensor) -> Tensor:
    """Concatenate (B, c, h, w) along their channels, channels last.

    A part of one channel fits both memory formats, and `torch.cat` then answers in the other one: ten times
    slower, and so is everything after it.
    """
    return torch.cat([part.permute(0, 2, 3, 1) for part in parts], -1).permute(0, 3, 1, 2)


def widened(region: Region, reach: int, image: Tensor) -> tuple[Region, Region]:
    """Return `region` of an image (B, C, h, w) with `reach` pixels around it, and where it lies therein."""
    sizes = image.shape[-2:]
    (top, bottom), (left, right) = (
        (max(0, own.start - reach), min(size, own.stop + reach))
        for own, size in zip(region, sizes, strict=True)
    )
    outer = slice(top, bottom), slice(left, right)
    return outer, within(region, outer)


def within(part: Region, region: Region) -> Region:
    """Return where a part lies in the region that it is a part of."""
    rows, columns = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(part, region, strict=True))
    return rows, columns


def scaled(region: Region, scale: int) -> Region:
    """Return where a region lies in the enlarged image."""
    rows, columns = (slice(own.start * scale, own.stop * scale) for own in region)
    return rows, columns


def crop(x: Tensor, region: Region) -> Tensor:
    """Return a region of (B, C, h, w) as a tensor of its own, channels last; `x` if that is all of it."""
    if region == whole(x):
        return x
    return x[:, :, region[0], region[1]].contiguous(memory_format=torch.channels_last)


def whole(image: Tensor) -> Region:
    """Return all of an image (B, C, h, w) as a region."""
    return slice(0, image.shape[-2]), slice(0, image.shape[-1])


def narrowed(region: Region, reach: int, *maps: Tensor) -> tuple[Region, list[Tensor]]:
    """Return maps (B, C, h, w) of one size within `reach` of a region, and where it then lies therein."""
    outer, inner = widened(region, reach, maps[0])
    return inner, [crop(x, outer) for x in maps]


def start_of(device: torch.device) -> int:
    """Return how many pixels a device would do while a network is started once."""
    return CUDA_START if device.type == "cuda" else CPU_START


def gradient_map(image: Tensor) -> Tensor:
    """Return the gradient map ∇I, (B, 1, h, w), of an image (B, 3, h, w).

    One 3×3 Laplacian (8 in the middle, −1 around) summed over R, G and B, as the authors compute it.
    The border is zero padded.
    """
    gray = image.sum(1, keepdim=True)
    return 9 * gray - 9 * F.avg_pool2d(gray, 3, stride=1, padding=1)


def box_mean(x: Tensor, size: int) -> Tensor:
    """Return the mean over a size×size window (size odd) around each pixel; outside the image nothing counts.

    In float32 at least, (B, C, h, w) contiguous. Columns, then rows, each by sums of 1, 2, 4, … pixels: the
    additions of a pixel are always the same ones, wherever a tile begins (an integral image would round
    differently from tile to tile).
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    for dim in (2, 3):
        pixels = x.shape[dim]
        here = torch.arange(pixels, device=x.device)
        ends = (here + size // 2).clamp(max=pixels - 1) - (here - size // 2).clamp(min=0) + 1
        x = _window_sums(x, size, dim) / (ends[:, None] if dim == 2 else ends)
    return x


def _window_sums(x: Tensor, size: int, dim: int) -> Tensor:
    """Return the sum of `size` pixels around each along `dim`, zero outside."""
    half, kept, first = size // 2, x.shape[dim], 0
    sums = F.pad(x, (0, 0, half, half) if dim == 2 else (half, half))  # of `power` pixels from here on
    parts = []
    for power in (1 << bit for bit in range(size.bit_length())):
        if power > 1:
            rest = sums.shape[dim] - power // 2
            sums = sums.narrow(dim, 0, rest) + sums.narrow(dim, power // 2, rest)
        if size & power:
            parts.append(sums.narrow(dim, first, kept))
            first += power
    return sum(parts[1:], parts[0])


def windows(x: Tensor, size: int) -> Tensor:
    """Cut (B, C, h, w) into (B, C, rows, columns, size, size) windows on the grid of the image's origin.

    The last windows are filled up with zeros.
    """
    batch, channels, height, width = x.shape
    x = F.pad(x, (0, -width % size, 0, -height % size))
    rows, columns = x.shape[2] // size, x.shape[3] // size
    return x.reshape(batch, channels, rows, size, columns, size).transpose(3, 4)


def merge_windows(x: Tensor, height: int, width: int) -> Tensor:
    """Undo `windows`: (B, C, rows, columns, size, size) → (B, C, height, width)."""
    batch, channels, rows, columns, size, _ = x.shape
    return x.transpose(3, 4).reshape(batch, channels, rows * size, columns * size)[:, :, :height, :width]
