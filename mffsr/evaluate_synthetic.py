"""Synthetic brackets for evaluation: whole photographs, two depths, with the truth beside them.

The optics are those of training (`mffsr.training.synth`); what is drawn at random is drawn here.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from mffsr.evaluate_files import Pixels
from mffsr.focus_map import Labels
from mffsr.training.synth import (
    BLUR,
    DIFFERS,
    JPEG_QUALITY,
    NEAR,
    SPREAD,
    defocus,
    kernel,
    mask_bank,
)

__all__ = ["Reduction", "SyntheticBracket", "bicubic", "label_scores", "reduce", "synthetic_bracket"]

Reduction = Literal["paper", "antialiased"]


def reduce(image: Pixels, scale: int, reduction: Reduction) -> Pixels:
    """Reduce an image, whose sides are multiples of `scale`, by 1/scale.

    `paper`: OpenCV's INTER_CUBIC, which does not antialias. `antialiased`: Pillow's bicubic.
    """
    size = (image.shape[1] // scale, image.shape[0] // scale)
    if scale == 1:
        return image
    if reduction == "antialiased":
        return _pillow(image, size)
    small = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(small.reshape(size[1], size[0], -1), dtype=np.uint8)


def bicubic(image: Pixels, scale: int) -> Pixels:
    """Enlarge by Pillow's bicubic (a = −0.5)."""
    return _pillow(image, (image.shape[1] * scale, image.shape[0] * scale))


def _pillow(image: Pixels, size: tuple[int, int]) -> Pixels:
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
    resized = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), dtype=np.uint8)
    return np.ascontiguousarray(resized.reshape(size[1], size[0], -1))


class SyntheticBracket(NamedTuple):
    """Two frames made of one sharp photo; h = H/T, w = W/T."""

    frames: list[Pixels]  # h×w×3, JPEG
    all_in_focus: Pixels  # h×w×3, JPEG: the sharp photo reduced; super-resolving it is the ceiling
    clean: Pixels  # h×w×3: the same without JPEG
    sharp: Pixels  # H×W×3
    truth: Labels  # h×w: index of the sharper frame


def synthetic_bracket(
    sharp: Pixels, scale: int, rng: Generator, *, matte: bool, reduction: Reduction = "antialiased"
) -> SyntheticBracket:
    """Photograph a sharp photo (H, W, 3), sides multiples of `scale`, as a scene of two depths, twice.

    Each frame has one depth in focus and the other blurred by a disc or a Gaussian of radius 1…6
    low-resolution pixels, is reduced by 1/scale and compressed as JPEG 90 (4:2:0). `matte`: the α-matte
    boundary, where a defocused foreground spreads over the background, instead of equation (21)'s hard one.
    """
    height, width = sharp.shape[:2]
    radii = torch.zeros(2, 2, 1)  # frame, layer (nearest first)
    radii[0, 1], radii[1, 0] = (float(radius) * scale for radius in rng.uniform(*BLUR, 2))
    if rng.random() < 0.5:
        radii = radii.flip(0)
    disc = bool(rng.random() < 0.5)
    side = 2 * int(np.ceil(float(radii.max()))) + 3
    kernels = np.stack([[[kernel(float(r), disc=disc, size=side) for r in row] for row in f] for f in radii])
    margin = max(side // 2, SPREAD) + 1
    near = _mask(height, width, scale, rng)
    wide = ((margin, margin), (margin, margin))
    image = torch.from_numpy(
        np.pad(sharp, (*wide, (0, 0)), mode="symmetric").transpose(2, 0, 1) / np.float32(255)
    )
    layer = torch.from_numpy(np.pad(near, wide, mode="symmetric"))[None, None]
    made = defocus(
        image[None],
        torch.cat((layer, 1 - layer), 1),
        torch.from_numpy(kernels),
        radii,
        torch.tensor([matte]),
    )
    rows, columns = slice(margin, margin + height), slice(margin, margin + width)
    frames = []
    for frame in made.frames:
        pixels = (
            (frame[0][:, rows, columns].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
        )
        frames.append(_jpeg(reduce(np.ascontiguousarray(pixels), scale, reduction)))
    second = made.truth[:, :, rows, columns].float()
    truth = (F.avg_pool2d(second, scale) > 0.5)[0, 0].numpy().astype(np.uint16)
    clean = reduce(sharp, scale, reduction)
    return SyntheticBracket(frames, _jpeg(clean), clean, sharp, truth)


def _mask(height: int, width: int, scale: int, rng: Generator) -> NDArray[np.float32]:
    """Return the nearer layer (H, W), 0…1, with an edge about one pixel wide.

    Shapes as in training, in low-resolution pixels, so that their detail does not depend on the scale.
    """
    side = -(-max(height, width) // scale)
    for _ in range(20):
        mask = mask_bank(4, max(side, 32), rng)[int(rng.integers(4))]
        if rng.random() < 0.5:
            mask = 255 - mask
        mask = mask[: -(-height // scale), : -(-width // scale)]
        if 0.1 <= mask.mean() / 255 <= 0.9:
            break
    smooth = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), 0.7)
    large = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)
    layer: NDArray[np.float32] = np.clip((large - 0.5) * 2 * scale + 0.5, 0, 1).astype(np.float32)
    return layer


def _jpeg(image: Pixels) -> Pixels:
    """Return what JPEG 90 leaves of an image (H, W, 3)."""
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return np.ascontiguousarray(decoded[:, :, ::-1], dtype=np.uint8)


def label_scores(made: SyntheticBracket, labels: Labels) -> dict[str, float]:
    """Return the share of rightly chosen frames, of all pixels that differ and of those near a boundary."""
    first, second = (frame.astype(np.float32) / 255 for frame in made.frames)
    differs = cv2.blur(np.abs(first - second).mean(2), (5, 5)) > DIFFERS
    truth = made.truth.astype(np.uint8)
    window = np.ones((2 * NEAR + 1, 2 * NEAR + 1), np.uint8)
    near = differs & (cv2.dilate(truth, window) != cv2.erode(truth, window))
    right = labels == made.truth

    def share(pixels: NDArray[np.bool_]) -> float:
        return float(right[pixels].mean()) if pixels.any() else float("nan")

    return {"label_accuracy": share(differs), "boundary_accuracy": share(near)}
