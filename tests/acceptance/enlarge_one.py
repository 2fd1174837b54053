"""Enlarge one photo with the network alone, without tiles or labels: enlarge_one.py PHOTO SCALE OUT."""

from __future__ import annotations

import sys

import numpy as np
import torch

from mffsr import Photo, load_model, read_photo, write_photo


def main() -> None:
    """Enlarge and write."""
    photo = read_photo(sys.argv[1])
    model, _ = load_model(int(sys.argv[2]))
    image = torch.from_numpy(photo.pixels.astype(np.float32) / 255).permute(2, 0, 1)[None]
    with torch.inference_mode():
        large = model.render([image], torch.ones_like(image[:, :1]))
    pixels = (large[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
    write_photo(Photo(pixels=np.ascontiguousarray(pixels)), sys.argv[3])


if __name__ == "__main__":
    main()
