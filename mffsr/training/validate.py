"""How good the networks are while they train, measured on photographs they never see."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mffsr.model import FAPN, FN
from mffsr.model.joint import decide
from mffsr.model.resize import enlarge, enlarge_bilinear
from mffsr.model.transition import transition
from mffsr.training import degrade
from mffsr.training.batches import validation_brackets
from mffsr.training.losses import ssim
from mffsr.training.photos import Photos
from mffsr.training.synth import DIFFERS, NEAR

__all__ = ["MOST", "SCORES", "SMALLEST", "focus_scores", "fusion_scores", "psnr_y", "sr_scores", "ssim_y"]

SMALLEST = 96  # pixels a side that a photo must have to be validated on, at any scale
MOST = 24  # photographs that are validated on: as many as Kodak's
LARGEST = 1024  # pixels a side that are enlarged, in one piece: memory grows with them
SCORES = {  # what is measured of each stage
    "fapn": ("accuracy", "boundary"),
    "srn": ("psnr_y", "psnr_y_bicubic", "ssim_y"),
    "joint": ("psnr_y", "psnr_y_ceiling", "psnr_y_bicubic", "ssim_y"),
}


def _luma(image: Tensor, border: int) -> Tensor:
    """Return the luma (BT.601, 16…235) of 8-bit rounded images (1, 3, H, W), less a border: (1, 1, h, w)."""
    weights = torch.tensor([65.481, 128.553, 24.966], device=image.device).view(1, 3, 1, 1)
    rounded = (image.clamp(0, 1) * 255).round() / 255
    luma = (rounded.float() * weights).sum(1, keepdim=True) + 16
    return luma[:, :, border:-border, border:-border]


def psnr_y(image: Tensor, truth: Tensor, border: int) -> float:
    """Return the PSNR in dB of the luma (BT.601, 16…235) of 8-bit rounded images (1, 3, H, W)."""
    return float(10 * torch.log10(255**2 / (_luma(image, border) - _luma(truth, border)).square().mean()))


def ssim_y(image: Tensor, truth: Tensor, border: int) -> float:
    """Return the structural similarity of the same luma."""
    with torch.autocast(image.device.type, enabled=False):  # half precision would round the index to 1/256
        return float(ssim(_luma(image, border) / 255, _luma(truth, border) / 255))


@torch.inference_mode()
def sr_scores(network: FN, photos: Photos, kind: degrade.Degradation, limit: int) -> dict[str, float]:
    """Return mean PSNR-Y and SSIM-Y of the enlarged photos, and the former of bicubic enlargement.

    Low resolution is as `kind` makes it, without its random faults. Of a photo larger than `LARGEST` a side
    the centre counts.
    """
    scale, ours = network.config.scale, []
    for photo in photos.images[:limit]:
        top, left = (max(0, side - LARGEST) // 2 for side in photo.shape[1:])
        high = photo[None, :, top : top + LARGEST, left : left + LARGEST].float() / 255
        height, width = (side // scale * scale for side in high.shape[2:])
        high = high[:, :, :height, :width]
        make = degrade.reduce_opencv if kind == "paper" else degrade.reduce_antialiased
        low = (make(high, scale).clamp(0, 1) * 255).round() / 255
        image = network.srn(low.contiguous(memory_format=torch.channels_last))
        bicubic = psnr_y(enlarge(low, scale), high, scale)
        ours.append((psnr_y(image, high, scale), bicubic, ssim_y(image, high, scale)))
    return dict(zip(SCORES["srn"], np.mean(ours, 0).tolist(), strict=True))


@torch.inference_mode()
def focus_scores(network: FAPN, photos: Photos, masks: Tensor, count: int) -> dict[str, float]:
    """Return the share of pixels whose frame is chosen rightly: where the frames differ, and near boundaries.

    Brackets of both kinds, blur radius 1–6 pixels, JPEG 90. `accuracy` counts pixels on which the frames
    differ (by `DIFFERS` after a 5×5 mean); `boundary` those of them within `NEAR` pixels of a boundary.
    """
    right = total = near_right = near_total = 0
    for index in range(count):
        batch = validation_brackets(photos, masks, 256, 1, index)
        chosen = decide(network(batch.image1, batch.image2))
        difference = F.avg_pool2d((batch.image1 - batch.image2).abs().mean(1, keepdim=True), 5, 1, 2)
        differs = (difference > DIFFERS) & (batch.weight > 0)
        hit = (chosen == batch.truth) & differs
        window = (2 * NEAR + 1, 1, NEAR)
        spread = F.max_pool2d(batch.truth, *window) - -F.max_pool2d(-batch.truth, *window)
        near = (spread > 0) & differs
        right, total = right + int(hit.sum()), total + int(differs.sum())
        near_right, near_total = near_right + int((hit & near).sum()), near_total + int(near.sum())
    return {"accuracy": right / max(1, total), "boundary": near_right / max(1, near_total)}


@torch.inference_mode()
def fusion_scores(fapn: FAPN, network: FN, photos: Photos, masks: Tensor, count: int) -> dict[str, float]:
    """Return mean PSNR-Y and SSIM-Y of the fused enlargement of synthetic brackets, and what to compare with.

    `psnr_y_ceiling` is the same network's enlargement of a photo that is in focus everywhere,
    `psnr_y_bicubic` the bicubic enlargement of both frames, fused by the same focus map.
    """
    scale, found = network.config.scale, []
    for index in range(count):
        batch = validation_brackets(photos, masks, 256, scale, index)
        first = decide(fapn(batch.image1, batch.image2))
        frames = (batch.image1, batch.image2)
        weights = transition(torch.cat((first, 1 - first), 1), frames)
        image = network(frames, weights)
        low = (degrade.reduce_antialiased(batch.sharp, scale).clamp(0, 1) * 255).round() / 255
        ceiling = network((low,), torch.ones_like(first))
        wide = enlarge_bilinear(weights, scale)
        bicubic = sum(w * enlarge(frame, scale) for w, frame in zip(wide.split(1, 1), frames, strict=True))
        scores = [psnr_y(x, batch.sharp, scale) for x in (image, ceiling, torch.as_tensor(bicubic))]
        found.append((*scores, ssim_y(image, batch.sharp, scale)))
    return dict(zip(SCORES["joint"], np.mean(found, 0).tolist(), strict=True))
