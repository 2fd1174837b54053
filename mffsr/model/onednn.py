"""Sums of convolutions by oneDNN on a CPU, which adds up in place and takes the activation with the last one.

To copy what a dense layer convolves side by side would take as long as its convolutions, and activations of
their own a fifth of FAPN's time. The PyTorch operators are undocumented; where they are missing, `usable`
says so.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["sum_of_convolutions", "usable", "working_type"]

PRESENT = (
    torch.backends.mkldnn.is_available()
    and platform.machine() in ("x86_64", "AMD64")
    and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
)
TYPES = (  # oneDNN itself refuses bfloat16 on processors without AVX-512 or AVX-NE-CONVERT
    (torch.float32, torch.bfloat16)
    if PRESENT and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else (torch.float32,)
)


def working_type(x: Tensor) -> torch.dtype:
    """Return the type in which the device convolves `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def usable(x: Tensor) -> bool:
    """Return whether oneDNN's own operators may convolve `x`; they know no gradients, and no compiler."""
    if not PRESENT or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return working_type(x) in TYPES


def sum_of_convolutions(
    terms: Sequence[tuple[Tensor, Tensor]],
    bias: Tensor | None = None,
    onto: Tensor | None = None,
    slope: float | None = None,
) -> Tensor:
    """Return Σ x * weight + bias + onto, (B, out, h, w), of terms x (B, c, h, w) and weight (out, c, k, k).

    All are of one type; k is odd, and height and width are kept (zero padding). Where a `slope` is given,
    LeakyReLU comes at last (0: ReLU); after a sum oneDNN knows only ReLU.
    """
    onednn = torch.ops.mkldnn
    total: Any = None
    for i, (x, weight) in enumerate(terms):
        kind = None if slope is None or i < len(terms) - 1 else "leaky_relu" if slope else "relu"
        unary = (kind, [slope] if slope else [], "")
        padding = [size // 2 for size in weight.shape[2:]]
        given = (weight.contiguous(memory_format=torch.channels_last), bias, padding, [1, 1], [1, 1], 1)
        if total is not None:
            total = onednn._convolution_pointwise_.binary(total, x, *given, "add", 1.0, *unary)
        elif onto is not None:
            total = onednn._convolution_pointwise.binary(x, onto, *given, "add", 1.0, *unary)
        else:
            total = onednn._convolution_pointwise(x, *given, kind or "none", *unary[1:])
        bias = None  # added once
    return total
