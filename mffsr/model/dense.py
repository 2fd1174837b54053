"""The dense residual block of SRN, computed part by part.

PyTorch copies what a dense layer convolves side by side, and its gradient apart again: that takes as long as
the convolutions. So each part is convolved by itself: on a CPU as each layer asks for it, adding up in place,
elsewhere at once for all layers that take it, since GPUs are fast with wide convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mffsr.model.blocks import conv
from mffsr.model.onednn import sum_of_convolutions, usable, working_type

__all__ = ["DenseResidualBlock"]


class DenseResidualBlock(nn.Module):
    """Three densely connected 3×3 convolutions with ReLU, fused by a 1×1 convolution.

    Takes what it works on in any number of parts, `inputs` channels together, and returns its residual added
    to `onto`, both (B, features, h, w).
    """

    def __init__(self, inputs: int, features: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(inputs + i * growth, growth) for i in range(3))
        self.fuse = conv(inputs + 3 * growth, features, 1)

    def forward(self, *parts: Tensor, onto: Tensor) -> Tensor:
        if usable(onto):
            out: Tensor = _ByParts.apply(len(parts), onto, *parts, *self.parameters())  # type: ignore[no-untyped-call]
            return out
        return onto + self._fused(torch.cat(parts, 1) if len(parts) > 1 else parts[0])

    def _fused(self, x: Tensor) -> Tensor:
        """Return the residual; each part is convolved once, for all layers that take it."""
        weights, biases = list(self.parameters())[:-2:2], list(self.parameters())[1:-2:2]
        parts, bias, taken = [x], torch.cat([*biases]), 0
        sums: Sequence[Tensor] = ()
        for _ in self.layers:
            own = slice(taken, taken + parts[-1].shape[1])
            wide = torch.cat([weight[:, own] for weight in weights])
            added = F.conv2d(parts[-1], wide, None if taken else bias, padding=1).chunk(len(weights), 1)
            sums = [x + y for x, y in zip(sums, added, strict=True)] if taken else added
            parts.append(F.relu(sums[0]))
            weights, sums, taken = weights[1:], sums[1:], own.stop
        out: Tensor = self.fuse(torch.cat(parts, 1))
        return out


class _ByParts(torch.autograd.Function):
    """The block, given the number of its parts, `onto`, the parts, and the weight and bias of each layer."""

    @staticmethod
    def forward(ctx: Any, count: int, onto: Tensor, *given: Tensor) -> Tensor:
        dtype = working_type(onto)
        onto, *typed = (x.to(dtype) for x in (onto, *given))
        parts, weights, biases = typed[:count], typed[count::2], typed[count + 1 :: 2]
        for weight, bias in zip(weights, biases, strict=True):
            terms = _terms(parts, weight)
            last = weight is weights[-1]
            parts.append(sum_of_convolutions(terms, bias, onto if last else None, None if last else 0.0))
        out = parts.pop()
        ctx.count = count
        ctx.save_for_backward(*parts, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        layers = (len(ctx.saved_tensors) - ctx.count + 1) // 2
        parts, weights = ctx.saved_tensors[:-layers], ctx.saved_tensors[-layers:]
        out = grads[0].to(parts[0].dtype).contiguous(memory_format=torch.channels_last)
        behind = [out]  # the gradients of the layers' convolutions, the last layer's first
        of_parts: list[Tensor] = []
        where = _where(parts)
        for i in reversed(range(len(parts))):
            terms = [
                (grad, weight[:, where[i]].flip(2, 3).transpose(0, 1))
                for grad, weight in zip(behind, reversed(weights), strict=False)
            ]
            grad = sum_of_convolutions(terms)
            if i < ctx.count:
                of_parts.insert(0, grad)
            else:
                behind.append(torch.ops.aten.threshold_backward(grad, parts[i], 0))
        of_layers: list[Tensor] = []
        if out.dtype == torch.float32:  # whose weights' gradients take twice as long channels last
            parts, behind = ([x.contiguous() for x in some] for some in (parts, behind))
        for weight, grad in zip(weights, reversed(behind), strict=True):
            of_layers += _gradients(_terms(parts, weight), grad)
        return None, out, *of_parts, *of_layers


def _where(parts: Sequence[Tensor]) -> list[slice]:
    """Where each part lies among the channels of all."""
    ends = list(accumulate(part.shape[1] for part in parts))
    return [slice(end - part.shape[1], end) for end, part in zip(ends, parts, strict=True)]


def _terms(parts: Sequence[Tensor], weight: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each part with its share of `weight`, of a layer that takes the first of them side by side."""
    where = _where(parts)
    return [
        (part, weight[:, own]) for part, own in zip(parts, where, strict=True) if own.start < weight.shape[1]
    ]


def _gradients(terms: Sequence[tuple[Tensor, Tensor]], grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of a layer's weight and bias, `grad` being that of its convolution."""
    of_parts = []
    for i, (x, weight) in enumerate(terms):
        padding = [size // 2 for size in weight.shape[2:]]
        wanted = [False, True, i == 0]  # that of x is not, that of the bias once
        of_parts.append(
            torch.ops.aten.convolution_backward(
                grad, x, weight, [len(weight)], [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
            )
        )
    return torch.cat([of_weight for _, of_weight, _ in of_parts], 1), of_parts[0][2]
