"""What clearing halos is worth, on brackets of two photographs, one before the other.

    python benchmarks/halos.py PHOTO... [--radii 2 4 8 12] [--pictures FOLDER]
    python benchmarks/halos.py PHOTO... --write FOLDER          # the brackets, a folder each: RADIUS-NUMBER
    python benchmarks/halos.py PHOTO... --results FOLDER        # another program's, as RADIUS-NUMBER.png

Each photograph is the background once, and the next one, in the shape of a few blobs, its foreground.
Focused in front, the background is blurred by a disc; focused behind, the foreground is, and lies over the
background (the α-matte boundary), in linear light as in a camera; JPEG 95 follows. Both are fused at scale
1, their halos kept and cleared, and compared with what is sharp throughout: all of the picture, and the
background within 16 pixels of the foreground.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from focus_labels import disc
from numpy.typing import NDArray

from mffsr.checkpoint import load_model
from mffsr.device import choose
from mffsr.engine import fuse_bracket
from mffsr.render import render

Image = NDArray[np.uint8]
Levels = NDArray[np.float32]
BESIDE = 16  # pixels
GAMMA = 2.2  # of pixel values


def read(path: Path, width: int, height: int) -> Levels:
    """Read a photograph, cut or mirrored to a size."""
    found = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if found is None:
        raise SystemExit(f"{path}: cannot be read as a photo")
    pixels = found[:height, :width, ::-1]
    rows, columns = height - pixels.shape[0], width - pixels.shape[1]
    return np.pad(pixels, ((0, rows), (0, columns), (0, 0)), mode="reflect").astype(np.float32)


def blobs(height: int, width: int, rng: np.random.Generator) -> Levels:
    """Draw a few round shapes: 1 inside, 0 outside, h×w×1."""
    noise = rng.standard_normal((height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), min(height, width) / 12)
    return (smooth > np.quantile(smooth, 0.7)).astype(np.float32)[:, :, None]


def bracket(front: Levels, back: Levels, shape: Levels, radius: float) -> tuple[list[Image], Image]:
    """Return the frame focused in front, the one focused behind, and what is sharp throughout."""
    sharp = front * shape + back * (1 - shape)
    front, back = ((x / 255) ** GAMMA for x in (front, back))
    near = front * shape + disc(back, radius) * (1 - shape)
    far = disc(front * shape, radius) + back * (1 - disc(shape, radius)[:, :, None])
    near, far = (255 * x.clip(0, 1) ** (1 / GAMMA) for x in (near, far))
    near, far, sharp = (np.rint(x).astype(np.uint8) for x in (near, far, sharp))
    frames = []
    for frame in (near, far):
        _, data = cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        frames.append(np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]))
    return frames, sharp


def psnr(picture: Image | Levels, sharp: Image, where: NDArray[np.bool_]) -> float:
    """Return the PSNR over the pixels `where`, in dB."""
    error = (picture.astype(np.float32) - sharp) ** 2
    return float(10 * np.log10(255**2 / error[where].mean()))


def brackets(photos: Sequence[Path], radius: float) -> Iterator[tuple[str, list[Image], Image, Levels]]:
    """Yield the name, the frames, the sharp picture and the foreground's shape of each bracket."""
    for number, (path, other) in enumerate(zip(photos, [*photos[1:], photos[0]], strict=True)):
        back, front = read(path, 768, 512), read(other, 768, 512)
        shape = blobs(512, 768, np.random.default_rng([number, round(10 * radius)]))
        yield f"{radius:g}-{number}", *bracket(front, back, shape, radius), shape[:, :, 0]


def write(folder: Path, frames: Sequence[Image]) -> None:
    """Write a bracket's frames for another program."""
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{number}.png"), frame[:, :, ::-1])


def main() -> None:
    """Print a line per radius: means over the photographs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument(
        "--radii", nargs="+", type=float, default=[2.0, 4.0, 8.0, 12.0], help="of the blur, in pixels"
    )
    parser.add_argument("--weights", default="photo")
    parser.add_argument("--pictures", type=Path, help="write both results side by side into this folder")
    parser.add_argument("--write", type=Path, help="write the brackets into this folder, and no more")
    parser.add_argument("--results", type=Path, help="score what another program made of them, and no more")
    options = parser.parse_args()
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    if options.results:
        print("radius       all   beside the foreground")
    elif not options.write:
        print("radius   all: kept  cleared   beside the foreground: kept  cleared   brackets better   worse")
        runtime = choose()
        model = runtime.place(load_model(1, options.weights)[0])
    for radius in options.radii:
        rows = []
        for name, frames, sharp, shape in brackets(options.photos, radius):
            if options.write:
                write(options.write / name, frames)
                continue
            if options.results:
                made = [read(options.results / f"{name}.png", 768, 512)]
            else:
                fusion = fuse_bracket(frames, model, runtime, align=False)
                kept = render(model, frames, fusion.labels, runtime, tile=512, depth=8)
                made = [kept.pixels, fusion.photo.pixels]
            outside = shape == 0
            beside = outside & (cv2.distanceTransform(outside.astype(np.uint8), cv2.DIST_L2, 5) <= BESIDE)
            rows.append([psnr(x, sharp, where) for where in (beside | True, beside) for x in made])
            if options.pictures:
                cv2.imwrite(str(options.pictures / f"{name}.png"), np.hstack(made)[:, :, ::-1])
        if not rows:
            continue
        found = np.array(rows)
        means = found.mean(0)
        if options.results:
            print(f"{radius:>6g} {means[0]:>9.2f} {means[1]:>23.2f}", flush=True)
            continue
        gains = found[:, 3] - found[:, 2]
        print(
            f"{radius:>6g} {means[0]:>11.2f} {means[1]:>8.2f} {means[2]:>29.2f} {means[3]:>8.2f} "
            f"{(gains > 0.01).sum():>17} {(gains < -0.01).sum():>7}",
            flush=True,
        )


if __name__ == "__main__":
    main()
