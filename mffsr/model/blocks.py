"""Building blocks that several sub-networks share.

Conventions of the whole package `mffsr.model`: tensors are (batch, channels, height, width), images are
RGB in [0, 1], and every operator is *local*: an output pixel depends on input pixels within a finite,
known radius only, and never on the size of the image. That is what makes tiling exact (`mffsr.tiles`).
"""

from __future__ import annotations

import platform
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "DenseResidualBlock",
    "Stack",
    "activated",
    "box_mean",
    "concatenate",
    "conv",
    "conv_stack",
    "gradient_map",
    "merge_windows",
    "windows",
]

LEAK = 0.2  # LeakyReLU slope of the authors
FUSED = (  # PyTorch names the operator itself in no documentation: without it, all goes on as before
    torch.backends.mkldnn.is_available()
    and platform.machine() in ("x86_64", "AMD64")
    and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
)


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps height and width (zero padding)."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def activated(layer: nn.Conv2d, x: Tensor, slope: float = 0.0) -> Tensor:
    """Return LeakyReLU of a convolution (slope 0: ReLU).

    On a CPU, without gradients, oneDNN does both in one pass over memory, as in a graph that torch.compile
    makes of it (`FUSED`): a fifth of FAPN's time. Only the rounding before the activation falls away.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    fits = x.device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)
    if not (FUSED and fits) or torch.is_grad_enabled():
        return F.leaky_relu(layer(x), slope) if slope else F.relu(layer(x))
    bias = None if layer.bias is None else layer.bias.to(dtype)
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x.to(dtype),
        layer.weight.to(dtype),
        bias,
        layer.padding,
        layer.stride,
        layer.dilation,
        layer.groups,
        "leaky_relu" if slope else "relu",
        [slope] if slope else [],
        "",
    )
    return out


class Stack(nn.Sequential):
    """Layers in sequence; an activation that follows a convolution is taken together with it."""

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.Conv2d) and layers and isinstance(layers[0], nn.ReLU | nn.LeakyReLU):
                x = activated(layer, x, getattr(layers.pop(0), "negative_slope", 0.0))
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
            x = torch.cat((x, activated(layer, x)), 1)  # type: ignore[arg-type] # a list of modules
        out: Tensor = self.fuse(x)
        return out
