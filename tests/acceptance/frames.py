"""Frames that do not belong together, or are no ordinary photos. Scenarios 33–43."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import drivers
import foreign
import numpy as np
import samples
from bench import Bench, SkippedError, check, complete, mib, pixels_of
from numpy.typing import NDArray
from PIL import Image, ImageCms
from registry import scenario

EXPECTED = Path(__file__).with_name("enlarge_one.py")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@scenario(33)
def photos_of_different_sizes_are_refused_with_both_sizes(bench: Bench) -> str:
    sizes = {"wider.jpg": (97, 64), "upright.jpg": (64, 96), "small.jpg": (48, 32)}
    for name, size in sizes.items():
        samples.write(bench.folder / name, samples.textured(size))
        words = [f"{size[0]}×{size[1]}", "96×64", name]
        run = bench.refuses(photos=("a.jpg", name), words=words, codes=[1])
        check(run.cpu < 2, f"refused only after {run.cpu:.1f} s")
    return f"{len(sizes)} pairs"


@scenario(34)
def mixed_depths_and_colours_are_promoted_with_a_word_or_refused(bench: Bench) -> str:
    a, b = samples.bracket((96, 64))
    folder = bench.folder
    samples.write_deep(folder / "deep.tif", b.astype(np.uint16) * 257)
    samples.write(folder / "gray.jpg", b[:, :, 1])
    samples.write(folder / "alpha.png", np.dstack([b, np.full(b.shape[:2], 200, np.uint8)]))
    samples.write(folder / "srgb.jpg", b, icc_profile=SRGB)
    other = bytearray(SRGB)
    other[100:108] = b"differs!"
    samples.write(folder / "other.jpg", a, icc_profile=bytes(other))
    told = []
    for photos, out, words in (
        (("a.jpg", "deep.tif"), "deep.out.tif", "16-bit"),
        (("a.jpg", "gray.jpg"), "gray.out.png", "colour"),
    ):
        run = bench.run("fuse", *photos, "-s", 1, "-o", out)
        check(run.code == 0 and "warning" in run.err and words in run.err, photos, run.told)
        told.append(f"{photos[1]} promoted")
    check(_deep(folder / "deep.out.tif").dtype == np.uint16, "16 bits were lost")
    check(pixels_of(folder / "gray.out.png").ndim == 3, "colour was lost")
    for photos in (("a.jpg", "alpha.png"), ("srgb.jpg", "other.jpg"), ("a.jpg", "srgb.jpg")):
        run = bench.fuse(photos=photos, scale=1, out=f"{photos[1]}.png")
        check(run.code in (0, 1) and "Traceback" not in run.err, photos, run.told)
        check(run.code == 0 or photos[1] in run.err or "transparency" in run.err, photos, run.told)
        told.append(f"{photos[1]} {'refused' if run.code else 'fused'}")
    return ", ".join(told)


def _deep(path: Path) -> NDArray[np.generic]:
    import tifffile

    return np.asarray(tifffile.imread(path))


@scenario(35)
def photos_turned_differently_by_their_exif_fuse_upright(bench: Bench) -> str:
    sharp = samples.textured((180, 120), 3)
    exif = Image.Exif()
    exif[274] = 6  # shown turned clockwise by a quarter
    samples.write(bench.folder / "flat.png", sharp)
    samples.write(bench.folder / "turned.jpg", np.rot90(sharp).copy(), exif=exif.tobytes(), quality=98)
    bench.good(photos=("flat.png", "turned.jpg"), scale=1, out="generated.png")
    quality = samples.psnr(pixels_of(bench.folder / "generated.png") / 255, sharp / 255)
    check(quality >= 28, f"{quality:.1f} dB")
    told = f"generated pair {quality:.1f} dB"
    if bench.corpus is not None and bench.slow:
        pair = [bench.corpus / "exif-orientation" / f"Landscape_{n}.jpg" for n in (1, 6)]
        bench.good(photos=pair, scale=1, out="corpus.png", patience=1200)
        found = foreign.compare(bench.folder / "corpus.png", pair[0])
        told += f", foreign pair {found:.1f} dB"
    return told


@scenario(36)
def photos_of_different_scenes_are_refused(bench: Bench) -> str:
    samples.write(bench.folder / "other.jpg", samples.textured((96, 64), 77))
    bench.refuses(photos=("a.jpg", "other.jpg"), words=["other.jpg"], codes=[1])
    if bench.corpus is None:
        return "generated pair"
    folder = bench.corpus / "exif-orientation"
    with Image.open(bench.corpus / "sharp" / "gain-map.jpg") as image:
        image.convert("RGB").resize((1800, 1200)).save(bench.folder / "foreign.jpg")
    photos = (folder / "Landscape_1.jpg", "foreign.jpg")
    run = bench.refuses(photos=photos, codes=[1])
    return f"generated pair, and photographs: {run.told}"


@scenario(37)
def the_same_photo_twice_becomes_its_own_enlargement(bench: Bench) -> str:
    (bench.folder / "copy.jpg").write_bytes((bench.folder / "a.jpg").read_bytes())
    bench.good("--precision", "fp32", photos=("a.jpg", "copy.jpg"))
    made = bench.spawn([Path(bench.python), EXPECTED, "a.jpg", "3", "expected.png"])
    check(made.code == 0, made.told)
    one, other = (pixels_of(bench.folder / name) / 255 for name in ("out.png", "expected.png"))
    quality = samples.psnr(one, other)
    check(quality > 50, f"{quality:.1f} dB")
    return f"{quality:.1f} dB to the plain enlargement"


@scenario(38)
def black_white_and_constant_photos_stay_what_they_are(bench: Bench) -> str:
    told = []
    for value in (0, 128, 255):
        flat = np.full((64, 96, 3), value, np.uint8)
        for name in ("flat1.png", "flat2.png"):
            samples.write(bench.folder / name, flat)
        bench.good("-f", photos=("flat1.png", "flat2.png"))
        off = int(np.abs(pixels_of(bench.folder / "out.png").astype(int) - value).max())
        check(off <= 1, f"{value} became off by {off}")
        told.append(f"{value} off by {off}")
    samples.write(bench.folder / "black.png", np.zeros((64, 96, 3), np.uint8))
    run = bench.fuse("-f", photos=("a.jpg", "black.png"))
    check(run.code in (0, 1) and "Traceback" not in run.err, run.told)
    check(run.code == 0 or "black.png" in run.err, run.told)
    told.append(f"one black frame: {'refused by name' if run.code else 'fused'}")
    from photo_samples import write_dng

    for name in ("one.dng", "two.dng"):
        write_dng(bench.folder / name, np.zeros((64, 96), np.uint16))
    bench.refuses(photos=("one.dng", "two.dng"), words=["one.dng"], codes=[1], out="raw.png")
    return ", ".join([*told, "black RAW refused"])


@scenario(39)
def clipped_hot_and_noisy_photos_stay_in_range(bench: Bench) -> str:
    a, b = (frame.astype(int) for frame in samples.bracket((96, 64), 8))
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 60, a.shape)
    hot = (rng.uniform(size=a.shape[:2]) < 0.01)[:, :, None] * 255
    kinds: dict[str, Callable[[NDArray[np.int_]], NDArray[np.floating]]] = {
        "clipped": lambda x: (x - 128) * 4.0 + 128,
        "hot": lambda x: np.maximum(x, hot) * 1.0,
        "noisy": lambda x: x + noise,
    }
    for kind, spoil in kinds.items():
        for name, frame in (("p.png", a), ("q.png", b)):
            samples.write(bench.folder / name, spoil(frame).round().clip(0, 255).astype(np.uint8))
        bench.good("-f", "--no-align", photos=("p.png", "q.png"))
        out = pixels_of(bench.folder / "out.png")
        given = np.stack([pixels_of(bench.folder / name) for name in ("p.png", "q.png")]).astype(float)
        # Values that wrapped around would throw the mean off and turn white into black.
        check(abs(out.mean() - given.mean()) < 8, kind, "mean", out.mean(), "of", given.mean())
        large = np.kron((given.min(0) >= 255).all(2), np.ones((3, 3), bool))
        white = float(out[large].mean()) if large.any() else 255.0
        check(white > 200, kind, "white became", white)
    return f"{', '.join(kinds)}: no value wrapped around"


SIZES = ((1, 1), (1, 37), (53, 1), (2, 2), (3, 5), (7, 7), (31, 17), (97, 61), (64, 63))


@scenario(40)
def photos_of_odd_and_tiny_sizes_are_enlarged_exactly(bench: Bench) -> str:
    told = []
    for width, height in SIZES:
        for name, frame in zip(("p.png", "q.png"), samples.bracket((width, height), 2), strict=True):
            samples.write(bench.folder / name, frame)
        run = bench.fuse("-f", photos=("p.png", "q.png"))
        if run.code == 0:
            size = complete(bench.folder / "out.png")
            check(size == (3 * width, 3 * height), (width, height), "became", size)
            told.append(f"{width}×{height}")
        else:
            check(run.code == 1 and "Traceback" not in run.err, (width, height), run.told)
            check("--no-align" in run.err or "small" in run.err, (width, height), run.told)
            bench.good("-f", "--no-align", photos=("p.png", "q.png"))
            size = complete(bench.folder / "out.png")
            check(size == (3 * width, 3 * height), (width, height), "became", size)
            told.append(f"{width}×{height} with --no-align")
    return ", ".join(told)


@scenario(41)
def very_long_photos_do_not_depend_on_the_tiles(bench: Bench) -> str:
    for name, frame in zip(("p.png", "q.png"), samples.bracket((20000, 4), 2), strict=True):
        samples.write(bench.folder / name, frame)
    one = bench.good("--no-align", photos=("p.png", "q.png"), out="one.png", scale=2, patience=900)
    bench.good("--no-align", "--tile", 128, photos=("p.png", "q.png"), out="two.png", scale=2, patience=900)
    check(complete(bench.folder / "one.png") == (40000, 8), "size")
    off = _difference(bench.folder / "one.png", bench.folder / "two.png")
    check(off <= 1, "tiles differ by", off)
    check(one.peak < 4 << 30, mib(one.peak))
    return f"20000×4: peak {mib(one.peak)}, tiles differ by {off}/255; 100 megapixels: see the memory limits"


def _difference(one: Path, other: Path) -> int:
    return int(np.abs(pixels_of(one).astype(int) - pixels_of(other)).max())


@scenario(42)
def memory_does_not_grow_with_the_frames_and_few_frames_are_usage_errors(bench: Bench) -> str:
    peaks = []
    size = (240, 160)
    for count in (5, 50):
        names = [f"{count}_{n:02d}.png" for n in range(count)]
        samples.write_bracket(bench.folder, size, 6, names)
        run = bench.good(photos=names, scale=1, out=f"{count}.png", patience=900)
        peaks.append(run.peak)
    check(peaks[1] <= 1.1 * peaks[0], "peaks", [mib(peak) for peak in peaks])
    bench.refuses(photos=("a.jpg",), codes=[2])
    bench.refuses(photos=(), codes=[2])
    bench.refuses(photos=("a.jpg", "a.jpg"), words=["twice"], codes=[2])
    bench.refuses(photos=("a.jpg", "b.jpg", "./a.jpg"), words=["twice"], codes=[2])
    return f"5 frames {mib(peaks[0])}, 50 frames {mib(peaks[1])}"


def write_bomb(path: Path, side: int) -> Path:
    """Write a small PNG that is said to have side×side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b""))
    return path


@scenario(43)
def pictures_that_would_fill_the_memory_are_refused_from_their_header(bench: Bench) -> str:
    pairs: list[tuple[object, object]] = []
    for side in (29_000, 60_000, 2**31 - 1):
        pairs.append(tuple(write_bomb(bench.folder / f"{side}{end}.png", side) for end in "ab"))  # type: ignore[arg-type]
    if bench.corpus is not None:
        for entry in foreign.entries(bench.corpus, accept=False):
            if entry.firm and any(word in entry.path.name for word in ("large", "giant", "bomb", "huge")):
                copy = bench.folder / f"copy-{entry.path.name}"
                copy.write_bytes(entry.path.read_bytes())
                pairs.append((entry.path, copy))
    slowest, most = 0.0, 0
    for pair in pairs:
        try:
            with drivers.memory_limit(2000 << 20) as memory:
                run = bench.refuses(photos=pair, codes=[1], before=memory.before)
        except SkippedError:
            run = bench.refuses(photos=pair, codes=[1])
        slowest, most = max(slowest, run.cpu), max(most, run.peak)
    check(slowest < 5, f"{slowest:.1f} s")
    check(most < 500 << 20, mib(most))
    return f"{len(pairs)} files, slowest {slowest:.1f} s, peak {mib(most)}"
