"""Fuse NumPy arrays, such as a microscope's stack, without any files; and look at who was in focus where.

    python examples/fuse_arrays.py

The stack is drawn here: a 16-bit gray texture, sharp in one third of each of three frames.
"""

from __future__ import annotations

import cv2
import numpy as np

import mffsr


def stack(height: int = 96, width: int = 144) -> list[np.ndarray]:
    """Return three frames (H, W) uint16, sharp on the left, in the middle and on the right."""
    texture = np.random.default_rng(0).uniform(0, 1, (height, width)).astype(np.float32)
    texture = cv2.GaussianBlur(texture, (0, 0), 0.8)
    sharp = cv2.normalize(texture, None, 2000, 60000, cv2.NORM_MINMAX)
    blurred = cv2.GaussianBlur(sharp, (0, 0), 2.5)
    columns = np.arange(width) * 3 // width
    return [np.where(columns == third, sharp, blurred).astype(np.uint16) for third in range(3)]


if __name__ == "__main__":
    frames = stack()
    fused = mffsr.fuse(frames, scale=2, align=False).pixels
    print(f"{len(frames)} frames {frames[0].shape} {frames[0].dtype} → {fused.shape} {fused.dtype}")
