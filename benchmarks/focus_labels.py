"""How often the focus map names the right frame, on synthetic brackets of N frames with depth.

    python benchmarks/focus_labels.py PHOTO... --frames 3 7 15 [--width 4096] [--full]

A photograph gets N random depths; in frame k, what lies at depth d is blurred by a disc whose radius grows
with |d − k|, up to 1 % of the width, and JPEG 90 follows (equation 21 with N layers). A pixel is right where
the chosen frame is the one in focus, or as near to the sharp photograph there (5×5 mean, within 1/255).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.checkpoint import load_model
from mffsr.compare import levels
from mffsr.device import choose
from mffsr.engine import fuse_bracket

Image = NDArray[np.uint8]
BLUR = 0.01  # of the width: radius of the blur over the whole range of depths
EQUAL = 1.0  # of 255: frames whose errors differ by less are equally sharp


def disc(image: Image, radius: float) -> Image:
    """Blur an image by a disc of `radius` pixels with a soft rim."""
    if radius < 0.3:
        return image
    half = int(np.ceil(radius)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


def depths(height: int, width: int, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a depth 0…count−1 for every pixel: a slope with hills, in equally large steps."""
    coarse = rng.standard_normal((6, 8)).astype(np.float32)
    hills = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    ground = hills + 3 * (x * np.cos(angle) + y * np.sin(angle))
    edges = np.quantile(ground[::7, ::7], np.arange(1, count) / count)
    return np.digitize(ground, edges).astype(np.uint8)


def bracket(sharp: Image, depth: NDArray[np.uint8], count: int) -> Iterator[Image]:
    """Yield the frames: frame k is in focus at depth k."""
    step = BLUR * sharp.shape[1] / (count - 1)
    blurred = [disc(sharp, away * step) for away in range(count)]
    for focused in range(count):
        frame = np.empty_like(sharp)
        for away, image in enumerate(blurred):
            there = np.abs(depth.astype(np.int16) - focused) == away
            frame[there] = image[there]
        _, data = cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        yield np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1])


def score(frames: list[Image], sharp: Image, depth: NDArray[np.uint8], labels: NDArray[np.uint16]) -> float:
    """Return the share of pixels whose frame is right or as good."""
    chosen, best = np.zeros((2, *labels.shape), np.float32)
    for index, frame in enumerate(frames):
        error = cv2.blur(np.abs(frame.astype(np.float32) - sharp).mean(2), (5, 5))
        chosen[labels == index] = error[labels == index]
        best[depth == index] = error[depth == index]
    return float(((labels == depth) | (chosen <= best + EQUAL)).mean())


def main() -> None:
    """Print a line per bracket."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--frames", nargs="+", type=int, default=[3, 7, 15])
    parser.add_argument("--width", type=int, help="resize each photograph to this width first")
    parser.add_argument("--weights", default="photo")
    parser.add_argument("--full", action="store_true", help="run every level of the pyramid everywhere")
    parser.add_argument("--maps", type=Path, help="write depth and label map side by side into this folder")
    options = parser.parse_args()
    if min(options.frames) < 2:
        parser.error("--frames: a bracket has at least 2")
    if options.maps:
        options.maps.mkdir(parents=True, exist_ok=True)
    runtime = choose()
    model = runtime.place(load_model(1, options.weights)[0])
    print(f"{'photo':>24} {'size':>10} {'N':>3} levels   same frame   right   undecided   tiles   seconds")
    for path in options.photos:
        read = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if read is None:
            raise SystemExit(f"{path}: cannot be read as a photo")
        sharp = read[:, :, ::-1]
        if options.width:
            height = round(sharp.shape[0] * options.width / sharp.shape[1])
            sharp = cv2.resize(sharp, (options.width, height), interpolation=cv2.INTER_LANCZOS4)
        for count in options.frames:
            depth = depths(*sharp.shape[:2], count, np.random.default_rng([count, sharp.shape[1]]))
            frames = list(bracket(sharp, depth, count))
            started = time.perf_counter()
            fusion = fuse_bracket(frames, model, runtime, align=False, adaptive=not options.full)
            seconds = time.perf_counter() - started
            ran, every = fusion.focus_tiles
            print(
                f"{path.name:>24} {sharp.shape[1]}×{sharp.shape[0]} {count:>3} "
                f"{levels(*sharp.shape[:2]) + 1:>6} {(fusion.labels == depth).mean():11.2%} "
                f"{score(frames, sharp, depth, fusion.labels):8.2%} {fusion.undecided:10.2%} "
                f"{ran:>4}/{every} {seconds:9.1f}",
                flush=True,
            )
            if options.maps:
                both = np.hstack((depth, fusion.labels.astype(np.uint8))) * (255 // (count - 1))
                cv2.imwrite(str(options.maps / f"{path.stem}-{count}.png"), both.astype(np.uint8))


if __name__ == "__main__":
    main()
