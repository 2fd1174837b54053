"""The pyramid: the same for any tiles, coarse levels only where they are sure, hardly another map."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import textured, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from mffsr import compare as pyramid
from mffsr.compare import TIE, UNDECIDED, compare, contrast, detail, levels
from mffsr.errors import MffsrError
from mffsr.model import FocusMaps
from mffsr.model.blocks import box_mean, gradient_map


@pytest.fixture
def small_pyramid(monkeypatch):
    monkeypatch.setattr(pyramid, "SMALLEST_SIDE", 40)


def sharpness_model(model, monkeypatch):
    """Let the model measure sharpness: the means of the gradient over 9×9 pixels, compared."""

    def measure(image1, image2, wanted):
        s1, s2 = (box_mean(gradient_map(image).abs(), 9) for image in (image1, image2))
        m1 = torch.sigmoid(12 * (s1 - s2) / (s1 + s2 + 1e-3))[:, :, wanted[0], wanted[1]]
        return FocusMaps(m1, 1 - m1)

    monkeypatch.setattr(model, "focus", measure)
    return model


@pytest.mark.parametrize(
    ("size", "expected"),
    [((383, 900), 0), ((512, 768), 0), ((768, 1024), 1), ((1536, 2048), 2), ((4000, 6000), 3)],
)
def test_levels_halve_the_picture_down_to_about_half_a_megapixel(size, expected):
    assert levels(*size) == expected
    assert levels(*size[::-1]) == expected


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 3), st.sampled_from([1, 3]))
def test_reducing_in_blocks_of_rows_is_the_mean_over_pixels(height, width, level, channels):
    rng = np.random.default_rng(height * 71 + width)
    photo = rng.integers(0, 65536, (height, width, channels)).astype(np.uint16)
    small = pyramid.reduced(photo, level)
    step = 1 << level
    assert small.shape == (-(-height // step), -(-width // step), channels)
    whole = photo[: height // step * step, : width // step * step].astype(float)
    if not whole.size or width % step:  # a last column that is narrower shifts those before it
        return
    means = whole.reshape(height // step, step, width // step, step, channels).mean((1, 3))
    np.testing.assert_allclose(small[: height // step], means, atol=0.51)


def test_blocks_of_rows_change_nothing(monkeypatch):
    photo = textured(130, 90)
    whole = pyramid.reduced(photo, 2)
    monkeypatch.setattr(pyramid, "row_blocks", lambda *_: iter([slice(0, 17)]))
    np.testing.assert_array_equal(pyramid.reduced(photo, 2)[:32], whole[:32])


@pytest.mark.usefixtures("small_pyramid")
@pytest.mark.parametrize("adaptive", [True, False])
def test_tiles_change_nothing(cpu, adaptive):
    model = tiny_model(1)
    sharp = textured(170, 230)
    soft = cv2.GaussianBlur(sharp, (0, 0), 2)
    mask = (np.arange(230) < 100)[None, :, None]
    pair = np.where(mask, sharp, soft), np.where(mask, soft, sharp)
    whole = compare(model, *pair, cpu, tile=512, adaptive=adaptive)
    tiled = compare(model, *pair, cpu, tile=64, adaptive=adaptive)
    assert whole.tiles_all == 1
    assert tiled.tiles_all == 12
    np.testing.assert_allclose(tiled.margin, whole.margin, atol=1)
    assert ((tiled.margin > 0) == (whole.margin > 0)).mean() > 0.999


@pytest.mark.parametrize("tile", [64, 512])
def test_what_nobody_asked_for_stays_undecided(tile, cpu):
    """Rectangles hold more pixels than were asked for, which ones depends on the tiles."""
    sharp = textured(170, 230)
    y, x = np.mgrid[:170, :230]
    where = np.hypot(x - 115, y - 85) < 50
    found = compare(tiny_model(1), sharp, cv2.GaussianBlur(sharp, (0, 0), 2), cpu, tile=tile, where=where)
    assert found.margin[where].any()
    assert not found.margin[~where].any()


def test_no_pixel_of_a_mask_is_lost_at_a_coarser_level():
    mask = np.zeros((4096, 64), np.bool_)
    mask[2000, 30] = True
    assert pyramid.mask_at(mask, (64, 1)).any()


@pytest.mark.usefixtures("small_pyramid")
def test_only_tiles_that_a_boundary_passes_are_decided_in_full(cpu, monkeypatch):
    model = sharpness_model(tiny_model(1), monkeypatch)
    sharp = textured(320, 400)
    soft = cv2.GaussianBlur(sharp, (0, 0), 5)
    mask = (np.arange(400) < 120)[None, :, None]
    pair = np.where(mask, sharp, soft), np.where(mask, soft, sharp)
    quick, full = (compare(model, *pair, cpu, tile=64, adaptive=a) for a in (True, False))
    assert full.tiles_run == full.tiles_all == quick.tiles_all
    assert quick.tiles_run < 0.6 * quick.tiles_all
    decided = np.abs(full.margin) >= TIE
    assert decided.mean() > 0.9
    assert ((quick.margin > 0) == (full.margin > 0))[decided].mean() > 0.99
    far = np.abs(np.arange(400) - 120) > 20
    assert ((quick.margin > 0) == ~mask[:, :, 0])[:, far].mean() > 0.995


@pytest.mark.usefixtures("small_pyramid")
def test_coarse_levels_decide_what_the_fine_one_cannot_see(cpu, monkeypatch):
    """Waves too long for the window of the finest level, in one photo only: no detail, but focus."""
    model = tiny_model(1)
    seen = []

    def measure(image1, image2, wanted):
        seen.append(image1.shape[-1])
        fine = image1.shape[-1] > 130
        tie = torch.full_like(image1[:, :1, wanted[0], wanted[1]], 0.5)
        return FocusMaps(tie, tie) if fine else FocusMaps(tie * 0, tie * 2)

    monkeypatch.setattr(model, "focus", measure)
    photo = textured(200, 240)
    found = compare(model, photo, photo, cpu, tile=512, adaptive=False)
    assert max(seen) == 240
    assert (found.margin == 255).all()


def test_a_margin_that_is_not_finite_is_refused(cpu, monkeypatch):
    model = tiny_model(1)
    nan = torch.full((1, 1, 64, 64), torch.nan)
    monkeypatch.setattr(model, "focus", lambda *_: FocusMaps(nan, nan))
    with pytest.raises(MffsrError, match="not finite"):
        compare(model, textured(64, 64), textured(64, 64), cpu, tile=64)


def test_detail_is_the_same_by_a_few_rows_and_at_any_depth(monkeypatch):
    photo = textured(400, 50)
    whole = detail(photo)
    np.testing.assert_allclose(detail(photo.astype(np.uint16) * 257), whole, rtol=2e-3)
    monkeypatch.setattr("mffsr.frames.BLOCK", 1)
    np.testing.assert_allclose(detail(photo), whole, rtol=2e-3)


def test_next_to_no_detail_is_no_contrast():
    some, none = np.full((2, 2), 0.1, np.float16), np.zeros((2, 2), np.float16)
    assert contrast(some, none).max() < UNDECIDED
    assert contrast(100 * some, none).min() > 0.9


@pytest.mark.parametrize("slight", [-1e-3, 1e-3])
def test_the_slightest_margin_keeps_its_sign(cpu, monkeypatch, slight):
    model, seen = tiny_model(1), []

    def hesitate(image1, _, wanted):
        half = torch.full_like(image1[:, :1, wanted[0], wanted[1]], 0.5)
        return FocusMaps(half, half + slight)

    monkeypatch.setattr(model, "focus", hesitate)
    photo = textured(64, 100)
    found = compare(model, photo, photo, cpu, tile=64, progress=lambda *told: seen.append(told))
    assert (np.sign(found.margin) == np.sign(slight)).all()
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.usefixtures("small_pyramid")
def test_what_only_the_finest_level_shows_is_decided_there(cpu, monkeypatch):
    """Stripes so narrow that no smaller copy shows detail, in one half of one photo."""
    model = tiny_model(1)

    def measure(image1, _, wanted):
        one = torch.ones_like(image1[:, :1, wanted[0], wanted[1]])
        striped = image1.max() > 0.5
        return FocusMaps(one, 0 * one) if striped else FocusMaps(0 * one, one)

    monkeypatch.setattr(model, "focus", measure)
    plain = np.full((200, 240, 3), 100, np.uint8)
    fine = plain.copy()
    fine[:, :120] = np.where(np.arange(120) // 2 % 2, 150, 50)[:, None]
    found = compare(model, fine, plain, cpu, tile=512)
    assert (found.margin[:, :120] == -255).all()
    assert (found.margin[:, 160:] == 255).all(), "there the smaller copies have the last word"
