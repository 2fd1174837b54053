"""What networks are trained on: degradations, synthetic brackets, photos, batches."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import data_folder, textured
from PIL import Image
from torch import Tensor

from mffsr.errors import TrainingError, UsageError
from mffsr.training import degrade
from mffsr.training.batches import (
    MARGIN,
    _blurs,
    _compress,
    _layers,
    _to_take,
    _zoom,
    focus_batch,
    fusion_batch,
    reduce,
    sr_batch,
    validation_brackets,
)
from mffsr.training.photos import Crop, Photos, find_photos, hold_out, load_photos, sharp_blocks
from mffsr.training.preview import write_preview
from mffsr.training.synth import defocus, kernel, kernels, mask_bank

CPU = torch.device("cpu")


def photo(height: int = 96, width: int = 144, seed: int = 0) -> Tensor:
    return torch.from_numpy(textured(height, width, seed).transpose(2, 0, 1).astype(np.float32) / 255)[None]


def smooth(size: int = 96, seed: int = 0) -> Tensor:
    image = cv2.GaussianBlur(textured(size, size, seed), (0, 0), 1.5)
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)[None]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.fixture(scope="module")
def photos() -> Photos:
    images = [textured(200 + 40 * i, 260 - 20 * i, i) for i in range(3)]
    planes = [torch.from_numpy(np.ascontiguousarray(i.transpose(2, 0, 1))) for i in images]
    return Photos(planes, [sharp_blocks(i) for i in images], ["a", "b", "c"])


@pytest.fixture(scope="module")
def masks() -> Tensor:
    return torch.from_numpy(mask_bank(12, 128, np.random.default_rng(4)))


# -- degradations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_antialiased_reduction_is_pillows_bicubic(scale: int) -> None:
    image = photo()
    ours = degrade.reduce_antialiased(image, scale)[0].numpy()
    for plane, reduced in zip(image[0].numpy(), ours, strict=True):
        size = (plane.shape[1] // scale, plane.shape[0] // scale)
        pillow = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC))
        assert np.abs(pillow - reduced).max() < 1 / 255


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_paper_reduction_is_opencvs_bicubic(scale: int) -> None:
    image = photo()
    size = (image.shape[3] // scale, image.shape[2] // scale)
    theirs = cv2.resize(image[0].permute(1, 2, 0).numpy(), size, interpolation=cv2.INTER_CUBIC)
    ours = degrade.reduce_opencv(image, scale)[0].permute(1, 2, 0).numpy()
    assert np.abs(theirs - ours).max() < 1e-4


def test_area_reduction_is_the_mean() -> None:
    image = photo()
    theirs = cv2.resize(image[0].permute(1, 2, 0).numpy(), (48, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(theirs - degrade.reduce_area(image, 3)[0].permute(1, 2, 0).numpy()).max() < 1e-5


@pytest.mark.parametrize("quality", [30, 75, 90, 100])
def test_jpeg_is_nearly_libjpegs(quality: int) -> None:
    image = (smooth() * 255).round() / 255
    pixels = (image[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    theirs = np.asarray(Image.open(file))
    ours = (degrade.jpeg(image, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy() * 255).round()
    assert psnr(ours, theirs) > 42
    assert abs(psnr(ours, pixels) - psnr(theirs, pixels)) < 0.6  # equally much is lost


def test_jpeg_takes_a_quality_for_each_image_and_whole_blocks_only() -> None:
    image = photo().expand(2, -1, -1, -1)
    both = degrade.jpeg(image, torch.tensor([20.0, 95.0]))
    assert torch.equal(both[1:], degrade.jpeg(image[1:], torch.tensor([95.0])))
    assert (both[0] - image[0]).abs().mean() > 1.5 * (both[1] - image[1]).abs().mean()
    with pytest.raises(ValueError, match="multiples of 16"):
        degrade.jpeg(image[:, :, :50], torch.tensor([90.0, 90.0]))


def test_what_is_no_pixel_is_clipped_before_it_is_rounded() -> None:
    given = torch.tensor([-0.2, 0.0, 0.49 / 255, 0.5 / 255, 254.6 / 255, 1.0, 1.3])
    assert (degrade.to_8_bit(given) * 255).round().tolist() == [0, 0, 0, 1, 255, 255, 255]


def test_convolution_is_opencvs_inside_the_margin() -> None:
    image, blur = photo(), kernel(3.3, disc=True, size=15)
    ours = degrade.convolve(image, torch.from_numpy(blur)[None])[0].permute(1, 2, 0).numpy()
    theirs = cv2.filter2D(image[0].permute(1, 2, 0).numpy(), -1, blur)
    assert np.abs(ours - theirs)[7:-7, 7:-7].max() < 1e-5


def test_shift_by_whole_pixels_rolls_and_halves_add_up() -> None:
    image = smooth()
    rolled = torch.roll(image, (2, -3), (2, 3))
    assert (degrade.shift(image, torch.tensor([[2.0, -3.0]])) - rolled).abs().max() < 1e-5
    half = torch.tensor([[0.25, 0.4]])
    back = degrade.shift(degrade.shift(image, half), -half)
    assert (back - image).abs().max() < 5e-3  # but for the highest frequency of an even side
    assert (degrade.shift(image, half) - image).abs().max() > 0.01


@pytest.mark.parametrize("kind", get_args(degrade.Degradation))
def test_every_degradation_gives_8_bit_photos_of_the_size(kind: degrade.Degradation) -> None:
    image = photo().expand(6, -1, -1, -1)
    low = reduce(image, 3, kind, [np.random.default_rng(seed) for seed in range(6)])
    assert low.shape == (6, 3, 32, 48)
    assert low.min() >= 0
    assert low.max() <= 1
    assert (low * 255 - (low * 255).round()).abs().max() < 1e-3


def test_compressing_shades_no_border_of_a_photo_of_any_size() -> None:
    flat = torch.full((4, 3, 20, 37), 0.8)
    packed = _compress(flat, 1, 75, [np.random.default_rng(seed) for seed in range(4)])
    assert (packed - flat).abs().max() < 1.01 / 255


def test_a_photo_is_blurred_averaged_noisy_and_compressed_in_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    qualities: list[float] = []

    def packed(image: Tensor, quality: Tensor) -> Tensor:
        qualities.extend(quality.tolist())
        return image

    monkeypatch.setattr(degrade, "jpeg", packed)
    rngs = [[np.random.default_rng(seed) for seed in range(200)] for _ in range(2)]
    flat = reduce(torch.full((200, 3, 32, 32), 0.5), 2, "photo", rngs[0])
    noisy = flat.std((1, 2, 3)) > 0
    assert 0.05 < noisy.float().mean() < 0.25
    assert flat.std((1, 2, 3)).max() < 0.011
    assert 0.05 < len(qualities) / 200 < 0.25
    assert 80 <= min(qualities) < max(qualities) <= 100
    stripes = (torch.arange(32) // 2 % 2).float().expand(3, 32, 32)[None]
    low = reduce(stripes.expand(200, -1, -1, -1), 2, "photo", rngs[1])
    ways = [degrade.to_8_bit(way(stripes, 2)) for way in (degrade.reduce_antialiased, degrade.reduce_area)]
    clean, averaged = ((low - way).abs().amax((1, 2, 3)) < 1e-4 for way in ways)
    assert 0.4 < clean.float().mean() < 0.75
    assert 0.03 < averaged.float().mean() < 0.25
    blurred = low.std((1, 2, 3)) < 0.95 * min(way.std() for way in ways)
    assert 0.05 < blurred.float().mean() < 0.25


# -- synthetic brackets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("disc", [True, False])
@pytest.mark.parametrize("radius", [0.0, 0.8, 2.5, 7.0])
def test_kernels_are_normalised_symmetric_and_as_wide_as_asked(radius: float, disc: bool) -> None:
    found = kernels(torch.tensor([radius]), torch.tensor([disc]), 31)[0]
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(found, found.flip(0).T, atol=1e-7)
    line = torch.arange(31.0) - 15
    spread = float((found.sum(0) * line**2).sum()) ** 0.5
    assert spread == pytest.approx(radius / 2, abs=0.3)  # of a disc as of the Gaussian with σ = radius / 2


def test_masks_are_binary_varied_and_reproducible() -> None:
    bank = mask_bank(40, 128, np.random.default_rng(7))
    assert set(np.unique(bank)) == {0, 255}
    shares = (bank > 0).mean((1, 2))
    assert 0.15 < shares.mean() < 0.7
    assert shares.std() > 0.05
    assert np.array_equal(bank, mask_bank(40, 128, np.random.default_rng(7)))


def two_layers(matte: bool, near: float, far: float) -> tuple[Tensor, Tensor, object]:
    """Photograph a half-plane before another: frame 1 with the near one sharp, frame 2 with the far one."""
    image = photo(128, 128)
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., :64] = 1
    radii = torch.tensor([[[0.0], [far]], [[near], [0.0]]])
    blurs = kernels(radii, torch.ones(2, 2, 1, dtype=torch.bool), 31)
    return image, mask, defocus(image, torch.cat((mask, 1 - mask), 1), blurs, radii, torch.tensor([matte]))


@pytest.mark.parametrize("matte", [True, False])
def test_frames_are_the_sharp_image_where_they_are_focused(matte: bool) -> None:
    image, mask, made = two_layers(matte, 4.0, 5.0)
    assert torch.equal(made.truth, (mask == 0).long())
    assert bool(made.decided.all())
    inner = slice(20, 44), slice(84, 108)  # columns far from the boundary and from the border
    rows = slice(20, 108)
    assert (made.frames[0] - image)[:, :, rows, inner[0]].abs().max() < 2e-3
    assert (made.frames[1] - image)[:, :, rows, inner[1]].abs().max() < 2e-3
    assert (made.frames[0] - image)[:, :, rows, inner[1]].abs().mean() > 0.02
    assert (made.frames[1] - image)[:, :, rows, inner[0]].abs().mean() > 0.02


def test_only_a_defocused_foreground_of_the_matte_kind_spreads() -> None:
    image, _, hard = two_layers(False, 6.0, 6.0)
    _, _, matte = two_layers(True, 6.0, 6.0)
    beside = slice(65, 69)  # of the far layer, which frame 2 has in focus
    assert (hard.frames[1] - image)[:, :, 20:108, beside].abs().max() < 2e-3
    assert (matte.frames[1] - image)[:, :, 20:108, beside].abs().mean() > 0.01
    before = slice(59, 63)  # of the near layer, which frame 1 has in focus: the blur behind does not stain it
    assert (matte.frames[0] - image)[:, :, 20:108, before].abs().max() < 2e-3


def test_matte_frames_keep_a_flat_scene_flat() -> None:
    image = torch.full((1, 3, 96, 96), 0.6)
    mask = torch.from_numpy(mask_bank(1, 96, np.random.default_rng(1)))[None].float() / 255
    layers = torch.cat((mask, torch.zeros_like(mask), 1 - mask), 1)
    radii = torch.tensor([[[0.0], [2.0], [6.0]], [[5.0], [1.0], [0.0]]])
    blurs = kernels(radii, torch.zeros(2, 3, 1, dtype=torch.bool), 31)
    for matte in (True, False):
        made = defocus(image, layers, blurs, radii, torch.tensor([matte]))
        for frame in made.frames:
            assert (frame - 0.6).abs().max() < 5e-3


def test_layers_of_equal_sharpness_are_undecided() -> None:
    image = photo(64, 64)
    layers = torch.full((1, 2, 64, 64), 0.0)
    layers[:, 0, :, :32], layers[:, 1, :, 32:] = 1, 1
    radii = torch.tensor([[[2.0], [0.0]], [[2.1], [3.0]]])
    blurs = kernels(radii, torch.ones(2, 2, 1, dtype=torch.bool), 31)
    made = defocus(image, layers, blurs, radii, torch.tensor([False]))
    assert not made.decided[..., :32].any()
    assert bool(made.decided[..., 32:].all())
    assert not made.truth[..., 32:].any()


# -- photos ------------------------------------------------------------------------------------------------


def test_sharp_blocks_tell_sharp_from_blurred() -> None:
    sharp = textured(256, 256)
    assert sharp_blocks(sharp).mean() > 0.9
    assert sharp_blocks(cv2.GaussianBlur(sharp, (0, 0), 2)).mean() < 0.1
    assert np.all(sharp_blocks(np.full((64, 96, 3), 90, np.uint8)) == 0.5)


def test_sharp_blocks_on_real_photos() -> None:
    sharp, blurred = [], []
    for name in ("1", "8", "13", "19"):
        pixels = np.asarray(Image.open(data_folder("kodak24") / f"{name}.png").convert("RGB"))
        sharp.append(sharp_blocks(pixels).mean())
        blurred.append(sharp_blocks(cv2.GaussianBlur(pixels, (0, 0), 2)).mean())
    assert min(sharp) > max(blurred) + 0.2


def test_crops_prefer_sharp_places() -> None:
    image = textured(256, 512)
    image[:, :256] = cv2.GaussianBlur(image, (0, 0), 3)[:, :256]
    plane = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    found = Photos([plane], [sharp_blocks(image)], ["half"])
    rng = np.random.default_rng(0)
    lefts = [found.choose(96, rng).left for _ in range(40)]
    assert np.mean([left >= 224 for left in lefts]) > 0.9


@pytest.mark.parametrize("turn", range(8))
def test_a_cut_is_the_turned_square_of_its_photo(photos: Photos, turn: int) -> None:
    crops = [Crop(0, 3, 5, turn), Crop(2, 31, 60, turn)]
    for crop, cut in zip(crops, photos.cut(crops, 40), strict=True):
        square = photos.images[crop.photo][:, crop.top : crop.top + 40, crop.left : crop.left + 40]
        square = torch.rot90(square, turn % 4, (1, 2))
        square = square.flip(2) if turn >= 4 else square
        assert torch.equal(cut, square.float() / 255)


def test_photos_are_decoded_in_order_and_gray_ones_become_rgb(tmp_path: Path) -> None:
    for name, seed in (("b.png", 1), ("a.jpg", 2), ("sub/c.tif", 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(textured(100, 120, seed)).save(tmp_path / name)
    Image.fromarray(textured(100, 120, 4)[:, :, 0]).save(tmp_path / "d.png")
    (tmp_path / "notes.txt").write_text("not a photo")
    threads = []
    found = load_photos(
        find_photos(tmp_path), CPU, smallest=96, progress=lambda: threads.append(threading.current_thread())
    )
    assert threads == 4 * [threading.current_thread()]
    assert [Path(name).name for name in found.names] == ["a.jpg", "b.png", "d.png", "c.tif"]
    assert all(image.shape == (3, 100, 120) for image in found.images)
    assert torch.equal(found.images[1], torch.from_numpy(textured(100, 120, 1).transpose(2, 0, 1)))
    assert torch.equal(found.images[2][0], found.images[2][2])
    assert found.megapixels == pytest.approx(0.048)


def test_photos_are_there_smaller_too_where_they_stay_large_enough(tmp_path: Path) -> None:
    Image.fromarray(textured(100, 200, 1)).save(tmp_path / "a.png")
    Image.fromarray(textured(200, 240, 2)).save(tmp_path / "b.png")
    found = load_photos(find_photos(tmp_path), CPU, smallest=96, reduced=(0.5,))
    assert [Path(name).name for name in found.names] == ["a.png", "b.png", "b.png"]
    assert found.images[2].shape == (3, 100, 120)
    mean = found.images[1].float().unflatten(1, (100, 2)).unflatten(3, (120, 2)).mean((2, 4))
    assert (found.images[2] - mean).abs().max() <= 0.5


def test_photos_take_their_images_out_of_the_list(photos: Photos) -> None:
    """So that no more than one of them is there twice while they are put into one piece."""
    given = [image.clone() for image in photos.images]
    taken = Photos(given, photos.sharp, photos.names)
    assert given == []
    assert all(torch.equal(a, b) for a, b in zip(taken.images, photos.images, strict=True))


def test_the_raw_and_the_jpeg_of_a_shot_are_one_photograph(tmp_path: Path) -> None:
    for name in ("a.dng", "a.jpg", "b.HEIC", "c.avif", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_photos(tmp_path)] == ["a.jpg", "b.HEIC", "c.avif"]


def test_hidden_files_are_no_photographs(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden" / "photos"
    for name in ("a.jpg", "._a.jpg", ".thumbs/b.jpg", "sub/.x/y/c.jpg", "sub/d.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert find_photos(folder) == [folder / "a.jpg", folder / "sub" / "d.jpg"]


def test_faulty_photos_are_all_named_before_training(tmp_path: Path) -> None:
    Image.fromarray(textured(64, 64)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    with pytest.raises(TrainingError) as error:
        load_photos(find_photos(tmp_path), CPU, smallest=32)
    assert "cut.png" in str(error.value)
    assert "empty.jpg" in str(error.value)
    assert "good.png" not in str(error.value)


def test_small_photos_and_small_folders_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no photographs, training needs at least 2"):
        find_photos(tmp_path, 2)
    Image.fromarray(textured(50, 80)).save(tmp_path / "small.png")
    with pytest.raises(UsageError, match="only one photograph, training needs at least 2"):
        find_photos(tmp_path, 2)
    with pytest.raises(UsageError, match=r"80×50 pixels, training needs at least 60×60"):
        load_photos(find_photos(tmp_path), CPU, smallest=60)
    with pytest.raises(UsageError, match="not a folder"):
        find_photos(tmp_path / "small.png")


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (8, 2), (96, 4), (1000, 4)])
def test_a_few_photos_are_held_out(count: int, held: int) -> None:
    paths = [Path(str(index)) for index in range(count)]
    training, validation = hold_out(paths)
    assert len(validation) == held
    assert not set(training) & set(validation)
    assert len(training) + len(validation) == count


# -- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["focus", "sr", "fusion"])
def test_a_batch_is_a_function_of_seed_step_and_samples(photos: Photos, masks: Tensor, make: str) -> None:
    def batch(seed: int, step: int, samples: range) -> tuple[Tensor, ...]:
        if make == "focus":
            return focus_batch(photos, masks, 32, seed, step, samples)
        if make == "sr":
            return sr_batch(photos, masks, 16, 2, "photo", seed, step, samples, total=8)
        return fusion_batch(photos, masks, 16, 2, "photo", seed, step, samples)

    whole = batch(1, 5, range(8))
    for a, b in zip(whole, batch(1, 5, range(8)), strict=True):
        assert torch.equal(a, b)
    halves = zip(batch(1, 5, range(4)), batch(1, 5, range(4, 8)), strict=True)
    for a, parts in zip(whole, halves, strict=True):
        differs = (a - torch.cat(parts)).abs() > 1e-5  # the last bit, made a level by rounding to 8 bit
        assert differs.float().mean() < 1e-3
    assert not torch.equal(whole[0], batch(2, 5, range(8))[0])
    assert not torch.equal(whole[0], batch(1, 6, range(8))[0])


def test_focus_batches_hold_what_they_say(photos: Photos, masks: Tensor) -> None:
    batch = focus_batch(photos, masks, 64, 3, 0, range(12))
    assert batch.image1.shape == batch.sharp.shape == (12, 3, 64, 64)
    assert set(batch.truth.unique().tolist()) == {0.0, 1.0}
    assert set(batch.weight.unique().tolist()) <= {0.0, 1.0}
    assert batch.weight.mean() > 0.5
    for image in (batch.image1, batch.image2, batch.sharp):
        assert image.min() >= 0
        assert image.max() <= 1
    chosen = torch.where(batch.truth > 0, batch.image1, batch.image2)
    other = torch.where(batch.truth > 0, batch.image2, batch.image1)
    decided = batch.weight.expand_as(chosen) > 0
    right, wrong = ((x - batch.sharp).abs()[decided].mean() for x in (chosen, other))
    assert right < 0.8 * wrong  # misregistration and noise are in both


def plain() -> Photos:
    """A photo with nothing in it, of a level that has room on both sides."""
    return Photos(
        [torch.full((3, 150, 150), 128, dtype=torch.uint8)], [np.ones((4, 4), np.float32)], ["plain"]
    )


def test_focus_batches_have_the_faults_of_real_brackets(
    masks: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets, qualities = [], []

    def moved(image: Tensor, by: Tensor) -> Tensor:
        offsets.append(by)
        return image

    def packed(image: Tensor, quality: Tensor) -> Tensor:
        qualities.append(quality)
        return image

    monkeypatch.setattr(degrade, "shift", moved)
    monkeypatch.setattr(degrade, "jpeg", packed)
    batch = focus_batch(plain(), masks, 16, 0, 0, range(100))
    assert not batch.weight.any(), "no focus shows in what is plain"
    way = torch.cat(offsets)
    assert 0.3 < way.any(1).float().mean() < 0.5
    assert 0.6 < way.abs().max() <= 0.7
    quality = torch.cat(qualities)
    assert 0.4 < len(quality) / 200 < 0.6
    assert 75 <= quality.min() < 80 < 95 < quality.max() <= 100
    for image in (batch.image1, batch.image2):
        level = image.mean((2, 3)) * 255 / 128
        changed = (level - 1).abs().amax(1) > 0.004
        assert 0.35 < changed.float().mean() < 0.65
        assert 0.03 < level.log().abs().max() < 0.095
        assert (level[changed].amax(1) - level[changed].amin(1)).min() > 0, "white balance"
        noise = image.std((2, 3)).mean(1)
        assert 0.35 < (noise > 1e-4).float().mean() < 0.65
        assert 0.015 < noise.max() < 0.021


def test_half_of_the_brackets_show_another_photo_in_front(masks: Tensor) -> None:
    levels = [torch.full((3, 150, 150), level, dtype=torch.uint8) for level in (50, 200)]
    photos = Photos(levels, [np.ones((4, 4), np.float32)] * 2, ["dark", "bright"])
    batch = focus_batch(photos, masks, 32, 0, 0, range(200))
    both = [(batch.sharp * 255 - level).abs().amax(1).flatten(1).amin(1) < 3 for level in (50, 200)]
    share = (both[0] & both[1]).float().mean()
    assert 0.1 < share < 0.3, "of a half, in which both photos are drawn half of the time"
    assert batch.weight[both[0] & both[1]].any()


@pytest.mark.parametrize(("behind", "veiled"), [("plain", True), ("detailed", False)])
def test_beside_a_veil_the_frame_nearer_to_the_sharp_image_is_taken(behind: str, veiled: bool) -> None:
    """A bright object before something: frame 1 has the object in focus, frame 2 what is behind it."""
    image = torch.full((1, 3, 128, 128), 0.2)
    if behind == "detailed":
        image[:] = 0.9 * (torch.rand(128, 128, generator=torch.Generator().manual_seed(0)) > 0.5)
    image[..., :64] = 0.9 if behind == "plain" else 0.45  # the latter as bright as what is behind it
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., :64] = 1
    radii = torch.tensor([[[0.0], [5.0]], [[5.0], [0.0]]])
    blurs = kernels(radii, torch.ones(2, 2, 1, dtype=torch.bool), 31)
    made = defocus(image, torch.cat((mask, 1 - mask), 1), blurs, radii, torch.tensor([True]))
    first = _to_take(made.truth == 0, made.frames, image)[0, 0, 20:108]
    assert bool(first[:, 40:60].all()), "the object itself"
    assert bool(first[:, 64:67].all()) is veiled
    assert not first[:, 72:100].any(), "what is behind, where no veil lies over it"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_low_and_high_resolution_fit_together(photos: Photos, masks: Tensor, scale: int) -> None:
    pair = sr_batch(photos, masks, 16, scale, "clean", 0, 0, range(8))
    assert pair.low.shape == (8, 3, 16, 16)
    assert pair.high.shape == (8, 3, 16 * scale, 16 * scale)
    again = degrade.reduce_antialiased(pair.high, scale)
    assert (again - pair.low)[:, :, 2:-2, 2:-2].abs().max() < 1.01 / 255
    made = fusion_batch(photos, masks, 16, scale, "clean", 0, 0, range(4))
    assert made.sharp.shape == made.high1.shape
    apart = [(high - made.sharp).abs() for high in (made.high1, made.high2)]
    assert torch.minimum(*apart).mean() < 0.5 * min(x.mean() for x in apart), "most is sharp in one of them"
    for low, high in ((made.low1, made.high1), (made.low2, made.high2)):
        reduced = degrade.reduce_antialiased(high, scale)
        assert (reduced - low)[:, :, 2:-2, 2:-2].abs().max() < 1.01 / 255


def test_half_of_the_patches_have_other_colours_and_half_other_tones(masks: Tensor) -> None:
    stripes = np.zeros((150, 150, 3), np.uint8)
    stripes[::2] = 60, 120, 180
    planes = [torch.from_numpy(np.ascontiguousarray(stripes.transpose(2, 0, 1)))]
    photos = Photos(planes, [sharp_blocks(stripes)], ["stripes"])
    made = sr_batch(photos, masks, 16, 2, "clean", 0, 0, range(64), defocused=0, soft=0).high
    colours = (made.amax((2, 3)) * 255).numpy()
    swapped = (np.diff(colours) <= 0).any(1)
    assert 0.25 < swapped.mean() < 0.6  # of six orders one is the old one
    bent = np.abs(np.sort(colours) - (60, 120, 180)).max(1) > 0.5
    assert 0.35 < bent.mean() < 0.65
    gamma = np.log(np.sort(colours) / 255) / np.log(np.array((60, 120, 180)) / 255)
    assert np.allclose(gamma, gamma[:, :1], atol=0.01)  # one for all colours of a patch
    assert gamma.min() >= 0.6
    assert gamma.max() <= 1.66


def test_a_share_of_the_patches_is_soft_with_its_truth(photos: Photos, masks: Tensor) -> None:
    def truth(soft: float) -> Tensor:
        return sr_batch(photos, masks, 16, 2, "clean", 0, 0, range(32), defocused=0, soft=soft).high

    def detail(x: Tensor) -> Tensor:
        return x.diff(dim=-1).abs().mean((1, 2, 3))

    sharp, all_soft, half = detail(truth(0)), detail(truth(1)), detail(truth(0.5))
    assert (all_soft < sharp).all()
    assert set((half < sharp - 1e-5).tolist()) == {True, False}
    kept = half > sharp - 1e-5
    assert torch.allclose(truth(0.5)[kept], truth(0)[kept], atol=1e-5)


def test_the_last_samples_of_a_step_are_frames_of_brackets(photos: Photos, masks: Tensor) -> None:
    def truth(samples: range, defocused: float) -> Tensor:
        return sr_batch(
            photos, masks, 16, 2, "clean", 0, 0, samples, total=8, defocused=defocused, soft=0
        ).high

    sharp, half = truth(range(8), 0), truth(range(8), 0.5)
    assert torch.equal(half[:4], sharp[:4])
    assert half[4:].diff(dim=-1).abs().mean() < 0.8 * sharp[4:].diff(dim=-1).abs().mean()
    torch.testing.assert_close(truth(range(6, 8), 0.5), half[6:])


def test_layers_are_shares_of_every_pixel(masks: Tensor) -> None:
    layers = _layers(masks, 64, [np.random.default_rng(seed) for seed in range(50)])
    assert layers.shape == (50, 3, 64, 64)
    assert layers.min() >= -1e-6
    torch.testing.assert_close(layers.sum(1), torch.ones(50, 64, 64))
    middle = layers[:, 1].amax((1, 2)) > 0.5
    assert 0.15 < middle.float().mean() < 0.5
    assert 0.2 < layers[:, 0].mean() < 0.8


def test_cuts_of_masks_are_scaled_as_torch_does_it(masks: Tensor) -> None:
    cuts = torch.tensor([[0, 3, 5, 50], [7, 0, 1, 127], [11, 28, 28, 100], [2, 64, 60, 64]])
    for (mask, top, left, side), found in zip(cuts.tolist(), _zoom(masks, cuts, 64), strict=True):
        cut = masks[mask, top : top + side, left : left + side][None, None].float() / 255
        torch.testing.assert_close(found, F.interpolate(cut, (64, 64), mode="bilinear")[0, 0])


@pytest.mark.parametrize("scale", [1, 4])
def test_each_frame_has_one_end_of_the_scene_in_focus_and_blurs_the_other(scale: int) -> None:
    blurs, radii = _blurs([np.random.default_rng(seed) for seed in range(80)], scale, CPU)
    assert blurs.shape[:3] == radii.shape == (2, 3, 80)
    ends = radii[:, [0, 2]]
    assert ((ends == 0).sum(0) == 1).all(), "each end is sharp in one frame"
    assert ((ends == 0).sum(1) == 1).all(), "each frame has one end sharp"
    assert 0.3 < (radii[0, 0] == 0).float().mean() < 0.7
    assert 0.8 * scale <= ends[ends > 0].min()
    assert ends.max() <= min(7 * scale, MARGIN - 2), "no blur reaches over the margin"
    assert (radii[:, 1] <= radii.amax(1)).all()


def test_validation_brackets_are_always_the_same(photos: Photos, masks: Tensor) -> None:
    one, two = (validation_brackets(photos, masks, 48, 2, 1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert one.sharp.shape[-1] == 2 * one.image1.shape[-1]
    assert (one.image1 - one.image2).abs().mean() > 0.005
    reduced = degrade.reduce_antialiased(one.sharp, 2)
    first, second = ((image - reduced).abs() for image in (one.image1, one.image2))
    right, wrong = torch.where(one.truth > 0, first, second), torch.where(one.truth > 0, second, first)
    assert right.mean() < 0.6 * wrong.mean()


def test_the_preview_is_a_sheet_of_rows(photos: Photos, tmp_path: Path) -> None:
    sheet = np.asarray(Image.open(write_preview(photos, tmp_path / "p.png", 3, 0, patch=48)))
    assert sheet.shape == (3 * 52 - 4, 4 * 52 - 4, 3)
    assert sheet.std() > 20
