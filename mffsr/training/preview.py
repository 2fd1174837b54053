"""A contact sheet of synthetic brackets: what the network is shown, to be looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mffsr.photo import Photo, write_photo
from mffsr.training.batches import FOCUS_SCALES, MARGIN, focus_batch
from mffsr.training.photos import Photos
from mffsr.training.synth import mask_bank

__all__ = ["write_preview"]

GAP = 4


def write_preview(photos: Photos, path: Path, count: int, seed: int, patch: int = 160) -> Path:
    """Write `count` rows of frame 1, frame 2, the sharp image and the truth (gray: undecided)."""
    smallest = min(min(image.shape[1:]) for image in photos.images)
    patch = min(patch, smallest // FOCUS_SCALES[-1] - 2 * MARGIN)
    masks = torch.from_numpy(mask_bank(64, 256, np.random.default_rng([seed, 4]))).to(photos.images[0].device)
    batch = focus_batch(photos, masks, patch, seed, 0, range(count))
    truth = torch.where(batch.weight > 0, batch.truth, torch.full_like(batch.truth, 0.5)).expand(
        -1, 3, -1, -1
    )
    columns = (batch.image1, batch.image2, batch.sharp, truth)
    sheet = np.full((count * (patch + GAP) - GAP, 4 * (patch + GAP) - GAP, 3), 128, np.uint8)
    for row in range(count):
        for column, images in enumerate(columns):
            square = (images[row].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
            top, left = row * (patch + GAP), column * (patch + GAP)
            sheet[top : top + patch, left : left + patch] = square
    write_photo(Photo(pixels=sheet), path, overwrite=True)
    return path
