"""How good the networks are while they train, measured on photographs they never see."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mffsr.model import FAPN, FN
from mffsr.model.joint import decide, soft_transition
from mffsr.training import degrade
from mffsr.training.batches import validation_brackets
from mffsr.training.photos import Photos

__all__ = ["focus_scores", "fusion_scores", "psnr_y", "sr_scores"]


def psnr_y(image: Tensor, truth: Tensor, border: int) -> float:
    """Return the PSNR in dB of the luma (BT.601, 16…235) of 8-bit rounded images (1, 3, H, W)."""
    weights = torch.tensor([65.481, 128.553, 24.966], device=image.device).view(1, 3, 1, 1)

    def luma(x: Tensor) -> Tensor:
        x = (x.clamp(0, 1) * 255).round() / 255
        return (x.float() * weights).sum(1)[:, border:-border, border:-border]

    return float(10 * torch.log10(255**2 / (luma(image) - luma(truth)).square().mean()))


@torch.inference_mode()
def sr_scores(network: FN, photos: Photos, kind: degrade.Degradation, limit: int) -> dict[str, float]:
    """Return the mean PSNR-Y of the enlarged photos and of bicubic enlargement, LR as `kind` makes it."""
    from mffsr.model.srn import enlarge

    scale, ours, bicubic = network.config.scale, [], []
    for image in photos.images[:limit]:
        high = image[None].float() / 255
        height, width = (side // scale * scale for side in high.shape[2:])
        high = high[:, :, :height, :width]
        make = degrade.reduce_opencv if kind == "paper" else degrade.reduce_antialiased
        low = (make(high, scale).clamp(0, 1) * 255).round() / 255
        ours.append(psnr_y(network.srn(low.contiguous(memory_format=torch.channels_last)), high, scale))
        bicubic.append(psnr_y(enlarge(low, scale), high, scale))
    return {"psnr_y": float(np.mean(ours)), "bicubic": float(np.mean(bicubic))}


@torch.inference_mode()
def focus_scores(network: FAPN, photos: Photos, masks: Tensor, count: int) -> dict[str, float]:
    """Return the share of pixels whose frame is chosen rightly: where the frames differ, and near boundaries.

    Brackets of both kinds, blur radius 1–6 pixels, JPEG 90. `accuracy` counts pixels on which the frames
    differ (by 2/255 after a 5×5 mean); `boundary` those of them within 3 pixels of a boundary.
    """
    right = total = near_right = near_total = 0
    for index in range(count):
        batch = validation_brackets(photos, masks, 256, 1, index)
        chosen = decide(network(batch.image1, batch.image2))
        difference = F.avg_pool2d((batch.image1 - batch.image2).abs().mean(1, keepdim=True), 5, 1, 2)
        differs = (difference > 2 / 255) & (batch.weight > 0)
        hit = (chosen == batch.truth) & differs
        spread = F.max_pool2d(batch.truth, 7, 1, 3) - -F.max_pool2d(-batch.truth, 7, 1, 3)
        near = (spread > 0) & differs
        right, total = right + int(hit.sum()), total + int(differs.sum())
        near_right, near_total = near_right + int((hit & near).sum()), near_total + int(near.sum())
    return {"accuracy": right / max(1, total), "boundary": near_right / max(1, near_total)}


@torch.inference_mode()
def fusion_scores(fapn: FAPN, network: FN, photos: Photos, masks: Tensor, count: int) -> dict[str, float]:
    """Return PSNR-Y of the fused enlargement, and of enlarging the all-in-focus photo (the ceiling)."""
    scale, fused, ceiling = network.config.scale, [], []
    for index in range(count):
        batch = validation_brackets(photos, masks, 256, scale, index)
        first = decide(fapn(batch.image1, batch.image2))
        weights = soft_transition(torch.cat((first, 1 - first), 1))
        image = network((batch.image1, batch.image2), weights)
        fused.append(psnr_y(image, batch.sharp, scale))
        low = (degrade.reduce_antialiased(batch.sharp, scale).clamp(0, 1) * 255).round() / 255
        one = torch.ones_like(first)
        ceiling.append(psnr_y(network((low,), one), batch.sharp, scale))
    return {"fused": float(np.mean(fused)), "ceiling": float(np.mean(ceiling))}
