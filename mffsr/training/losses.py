"""The paper's losses, equations (17)–(20): pure functions of batches in [0, 1], float32."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mffsr.model.blocks import gradient_map
from mffsr.model.fapn import FocusMaps
from mffsr.model.resize import enlarge_bilinear

__all__ = ["fapn_loss", "fusion_loss", "ssim", "super_resolution_loss"]

TIE = 0.25  # weight of a pixel that is as sharp in one photo as in the other
_BELL = [math.exp(-(at**2) / (2 * 1.5**2)) for at in range(-5, 6)]
WINDOW = [weight / sum(_BELL) for weight in _BELL]  # one side of SSIM's


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Return the mean structural similarity (Wang et al. 2004) of two batches (B, C, h, w), a scalar.

    11×11 Gaussian, σ = 1.5; the sides are at least 11.
    """
    mx, my = _windowed(x), _windowed(y)
    vx, vy, cov = _windowed(x * x) - mx * mx, _windowed(y * y) - my * my, _windowed(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return index.mean()


def _windowed(x: Tensor) -> Tensor:
    """Return the mean of (B, C, h, w) over each whole window, (B, C, h − 10, w − 10).

    Not by `conv2d`: a GPU may round what it convolves to TF32, and a variance, the difference of two such
    means, would be off by as much as c2, which it is compared with.
    """
    for dim in (2, 3):
        length = x.shape[dim] - len(WINDOW) + 1
        total = x.narrow(dim, 0, length) * WINDOW[0]
        for at, weight in enumerate(WINDOW[1:], 1):
            total = torch.add(total, x.narrow(dim, at, length), alpha=weight)
        x = total
    return x


def fapn_loss(
    logits: Tensor, image1: Tensor, image2: Tensor, sharp: Tensor, truth: Tensor, weight: Tensor
) -> Tensor:
    """Equations (17)–(18): 0.8 mask + 0.1 gradient + 0.1 (1 − SSIM), from the maps before their sigmoid.

    logits (B, 2, h, w): of M1 and M2; image1, image2 (B, 3, h, w): the pair; sharp (B, 3, h, w): the
    all-in-focus truth; truth (B, 1, h, w): 1 where image 1 is the sharper one; weight (B, 1, h, w): 0 where
    neither is, which both maps are taught to say by 0.5: |M1 − M2| then tells a decision from a guess. The
    result is a scalar. The mask term is the cross entropy instead of the paper's L1 distance, whose gradient
    vanishes where the sigmoid saturates: with it the maps stayed at chance for hundreds of steps.
    """
    target = torch.where(weight > 0, torch.cat((truth, 1 - truth), 1), 0.5)
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    mask = ((weight + TIE * (1 - weight)) * entropy).mean()
    maps = FocusMaps(*torch.sigmoid(logits).split(1, 1))
    fused = maps.m1 * image1 + maps.m2 * image2
    gradient = (gradient_map(fused) - gradient_map(sharp)).abs().mean() / 3
    return 0.8 * mask + 0.1 * gradient + 0.1 * (1 - ssim(fused, sharp))


def super_resolution_loss(enlarged: Tensor, truth: Tensor) -> Tensor:
    """Equation (19) of one source: the L1 distance of (B, 3, H, W) and its truth, a scalar."""
    return (enlarged - truth).abs().mean()


def fusion_loss(fused: Tensor, sharp: Tensor, frames: tuple[Tensor, Tensor], masks: Tensor) -> Tensor:
    """Equation (20): L1 to the all-in-focus truth, and within each mask to that frame's own truth.

    fused, sharp and both frames: (B, 3, s·h, s·w); masks: (B, 2, h, w), summing to 1. Returns a scalar.
    """
    resized = enlarge_bilinear(masks, fused.shape[-1] // masks.shape[-1])
    loss = (fused - sharp).abs().mean()
    for mask, frame in zip(resized.split(1, 1), frames, strict=True):
        loss = loss + (mask * (fused - frame).abs()).mean()
    return loss
