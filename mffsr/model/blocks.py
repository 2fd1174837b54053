"""Building blocks that several sub-networks share.

Conventions of the whole package `mffsr.model`: tensors are (batch, channels, height, width), images are
RGB in [0, 1], and every operator is *local*: an output pixel depends on input pixels within a finite,
known radius only, and never on the size of the image. That is what makes tiling exact (`mffsr.tiles`).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["DenseResidualBlock", "box_mean", "conv", "conv_stack", "gradient_map", "merge_windows", "windows"]

LEAK = 0.2  # LeakyReLU slope of the authors


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps height and width (zero padding)."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def conv_stack(widths: tuple[int, ...], kernel: int = 3) -> nn.Sequential:
    """Return convolutions widths[0]→widths[1]→… with a LeakyReLU after each."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [conv(inputs, outputs, kernel), nn.LeakyReLU(LEAK)]
    return nn.Sequential(*layers)


def gradient_map(image: Tensor) -> Tensor:
    """Return the gradient map ∇I, (B, 1, h, w), of an image (B, 3, h, w).

    One 3×3 Laplacian (8 in the middle, −1 around) summed over R, G and B, as the authors compute it.
    The border is zero padded.
    """
    gray = image.sum(1, keepdim=True)
    return 9 * gray - 9 * F.avg_pool2d(gray, 3, stride=1, padding=1)


def box_mean(x: Tensor, size: int) -> Tensor:
    """Return the mean over a size×size window (size odd) around each pixel; outside the image nothing counts.

    Separable: two passes of `size` additions, whose result does not depend on where a tile begins
    (an integral image would round differently from tile to tile).
    """
    half = size // 2
    x = F.avg_pool2d(x, (size, 1), stride=1, padding=(half, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, size), stride=1, padding=(0, half), count_include_pad=False)


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


class DenseResidualBlock(nn.Module):
    """Three densely connected 3×3 convolutions with ReLU, fused by a 1×1 convolution.

    Input (B, inputs, h, w), output (B, features, h, w). The caller adds the residual, because the input
    of an SRB block carries the GEB's channels as well.
    """

    def __init__(self, inputs: int, features: int, growth: int, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(inputs + i * growth, growth) for i in range(layers))
        self.fuse = conv(inputs + layers * growth, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, F.relu(layer(x))), 1)
        out: Tensor = self.fuse(x)
        return out
