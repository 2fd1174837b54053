"""Synthetic focus brackets from sharp photographs, equation (21) and beyond.

Two kinds of focus boundary are made. The *hard* one is the paper's: blur pasted inside a binary mask. The
*matte* one is what a lens does: a defocused foreground spreads over the background, and a defocused
background is not stained by the foreground (the α-matte model of Ma et al., the paper's reference [49]).

All functions are pure: images and masks in, frames and truth out; random numbers come as arguments.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from mffsr.training.degrade import convolve

__all__ = [
    "BLUR",
    "DIFFERS",
    "JPEG_QUALITY",
    "NEAR",
    "SPREAD",
    "Frames",
    "defocus",
    "kernel",
    "kernels",
    "mask_bank",
]

Mask = NDArray[np.uint8]

SPREAD = 14  # reach of what `defocus` continues behind an edge, pixels
# The protocol of synthetic brackets that networks are measured by, in evaluation as in validation.
BLUR = (1.0, 6.0)  # least and largest radius, low-resolution pixels
JPEG_QUALITY = 90
DIFFERS = 2 / 255  # of two frames, after a 5×5 mean: from here on it matters which one is chosen
NEAR = 3  # low-resolution pixels around a boundary of the focus map


class Frames(NamedTuple):
    """A bracket made of one sharp image."""

    frames: list[Tensor]  # n × (B, 3, H, W)
    truth: Tensor  # (B, 1, H, W) int64: index of the sharpest frame
    decided: Tensor  # (B, 1, H, W) bool: False where two frames are equally sharp


def kernels(radii: Tensor, disc: Tensor, size: int) -> Tensor:
    """Return normalised blur kernels (..., size, size), float32, for radii (...) in pixels.

    Where `disc` (...) is true a disc with an antialiased edge, elsewhere a Gaussian of σ = radius / 2.
    Radius 0 is the identity.
    """
    line = torch.arange(size, device=radii.device, dtype=torch.float32) - size // 2
    distance = torch.hypot(line[:, None], line)
    radius = radii.float()[..., None, None]
    discs = (radius + 0.5 - distance).clamp(0, 1)
    gaussians = torch.exp(-0.5 * (distance / (radius / 2).clamp_min(1e-6)) ** 2)
    weights = torch.where(disc[..., None, None], discs, gaussians)
    weights = torch.where(radius > 0, weights, (distance == 0).float())
    return weights / weights.sum((-2, -1), keepdim=True)


def kernel(radius: float, *, disc: bool, size: int) -> NDArray[np.float32]:
    """Return one of `kernels` as an array (size, size)."""
    return np.asarray(kernels(torch.tensor(radius), torch.tensor(disc), size).numpy())


def defocus(image: Tensor, layers: Tensor, kernels: Tensor, radii: Tensor, matte: Tensor) -> Frames:
    """Photograph a layered scene once per frame, each time focused elsewhere.

    image: (B, 3, H, W) sharp; layers: (B, L, H, W) in [0, 1], nearest layer first, summing to 1;
    kernels: (N, L, B, k, k) blur of layer l in frame n; radii: (N, L, B) the same blurs' radii, of which the
    smallest is the sharpest; matte: (B,) bool, α-matte boundary instead of the hard one of equation (21).
    """
    frames = [_blend(image, layers, per_frame, matte) for per_frame in kernels]
    owner = layers.argmax(1, keepdim=True)  # (B, 1, H, W): which layer a pixel lies on
    sharpest = radii.argmin(0)  # (L, B)
    ordered = radii.sort(0).values
    clear = ordered[1] - ordered[0] > 0.3 if len(radii) > 1 else torch.ones_like(ordered[0], dtype=torch.bool)
    rows = torch.arange(len(image), device=image.device)[:, None, None, None]
    return Frames(frames, sharpest[owner, rows], clear[owner, rows])


def _blend(image: Tensor, layers: Tensor, kernels: Tensor, matte: Tensor) -> Tensor:
    """Make one frame, each image's boundary of its own kind."""
    if image.device.type != "cpu":  # both kinds of every image: to look at `matte` would stop the device
        both = _matte(image, layers, kernels), _hard(image, layers, kernels)
        return torch.where(matte[:, None, None, None], *both)
    out = torch.empty_like(image)
    for make, chosen in ((_matte, matte), (_hard, ~matte)):
        if bool(chosen.any()):
            out[chosen] = make(image[chosen], layers[chosen], kernels[:, chosen])
    return out


def _hard(image: Tensor, layers: Tensor, kernels: Tensor) -> Tensor:
    """Equation (21) for any number of layers: Σ M_l ⊙ f_blur(I)."""
    out = torch.zeros_like(image)
    for index in range(layers.shape[1]):
        out = out + layers[:, index : index + 1] * convolve(image, kernels[index])
    return out


def _matte(image: Tensor, layers: Tensor, kernels: Tensor) -> Tensor:
    """Layers composed from the farthest to the nearest; each spreads over what lies behind it."""
    count = layers.shape[1]
    out = torch.zeros_like(image)
    for index in reversed(range(count)):
        alpha = layers[:, index : index + 1]
        if index == count - 1:  # the farthest layer also lies, unseen, behind the others
            stacked = convolve(torch.cat((image * alpha, alpha), 1), kernels[index])
            blurred = stacked[:, :3] / stacked[:, 3:].clamp_min(1e-3)
            wide = _spread(image, alpha)
            cover = stacked[:, 3:].clamp(0, 1)
            out = blurred * cover + wide * (1 - cover)
        else:
            stacked = convolve(torch.cat((image * alpha, alpha), 1), kernels[index])
            out = stacked[:, :3] + (1 - stacked[:, 3:].clamp(0, 1)) * out
    return out


def _spread(image: Tensor, alpha: Tensor) -> Tensor:
    """Continue the pixels where alpha = 1 over the rest, smoothly."""
    radii = torch.full((len(image),), float(SPREAD), device=image.device)
    weights = kernels(radii, torch.zeros_like(radii, dtype=torch.bool), 2 * SPREAD + 1)
    stacked = convolve(torch.cat((image * alpha, alpha), 1), weights)
    mean = (image * alpha).mean((2, 3), keepdim=True) / alpha.mean((2, 3), keepdim=True).clamp_min(1e-3)
    return (stacked[:, :3] + 1e-3 * mean) / (stacked[:, 3:] + 1e-3)


def mask_bank(count: int, size: int, rng: Generator) -> Mask:
    """Return (count, size, size) binary masks (0 or 255): shapes found by `findContours` in smooth noise.

    The paper takes its decision masks from OpenCV's findContours; the noise's smoothness is drawn anew for
    each mask. Every fourth one is instead a drawn shape (half-plane, polygons, thin branches), which have the
    straight and the thin borders that noise lacks.
    """
    masks = np.zeros((count, size, size), np.uint8)
    for index, mask in enumerate(masks):
        if index % 4 == 3:
            _draw(mask, rng)
        else:
            _contours(mask, rng)
    return masks


def _contours(mask: Mask, rng: Generator) -> None:
    size = len(mask)
    noise = cv2.GaussianBlur(rng.standard_normal((size, size)), (0, 0), float(rng.uniform(4, size / 8)))
    level = np.quantile(noise, rng.uniform(0.35, 0.65))
    found, _ = cv2.findContours((noise > level).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    largest = sorted(found, key=cv2.contourArea, reverse=True)[: int(rng.integers(1, 4))]
    cv2.drawContours(mask, largest, -1, 255, cv2.FILLED)


def _draw(mask: Mask, rng: Generator) -> None:
    size = len(mask)
    kind = rng.integers(3)
    if kind == 0:  # a horizon
        y, x = np.mgrid[:size, :size] - size / 2
        angle = rng.uniform(0, 2 * np.pi)
        mask[x * np.cos(angle) + y * np.sin(angle) > rng.uniform(-size / 4, size / 4)] = 255
    elif kind == 1:  # things with straight sides
        for _ in range(int(rng.integers(1, 4))):
            corners = rng.integers(0, size, 2) + rng.uniform(
                -size / 2, size / 2, (int(rng.integers(3, 7)), 2)
            )
            cv2.fillPoly(mask, [cv2.convexHull(corners.astype(np.int32))], 255)
    else:  # branches, antennae
        for _ in range(int(rng.integers(2, 6))):
            points = np.cumsum(rng.normal(0, size / 8, (8, 2)), 0) + rng.integers(0, size, 2)
            cv2.polylines(mask, [points.astype(np.int32)], False, 255, int(rng.integers(2, 14)))
