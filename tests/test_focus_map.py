"""The label map: ties, frames that do not cover the picture, glow, and what the network is asked at all."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from conftest import textured, tiny_model, undecided

from mffsr.compare import TIE
from mffsr.focus_map import _Details, _plausible, decide_focus, preview
from mffsr.model import FocusMaps
from mffsr.regions import Glow, fill_holes, nearby, settle_undecided


def saying(margin):
    """Return a stand-in for `JointModel.focus`: a network that prefers photo 2 by `margin` everywhere."""

    def focus(image1, _, wanted):
        half = torch.full_like(image1[:, :1, wanted[0], wanted[1]], 0.5)
        return FocusMaps(half - margin / 2, half + margin / 2)

    return focus


@pytest.fixture
def decide(cpu, monkeypatch):
    """Decide by a network that prefers every time the second, or newer, frame by `margin`."""
    model = tiny_model(1)

    def run(margin, frames, **options):
        monkeypatch.setattr(model, "focus", undecided if margin == 0 else saying(margin))
        return decide_focus(model, frames, cpu, tile=512, **options)

    return run


def quarters(height, width):
    """Return three frames, plain on their right; of the left each has another half sharp, the third none."""
    sharp = textured(height, width)
    sharp[:, width // 2 :] = 90
    soft = cv2.GaussianBlur(sharp, (0, 0), 3)
    upper = (np.arange(height) < height // 2)[:, None, None]
    return [np.where(upper, sharp, soft), np.where(upper, soft, sharp), soft]


@pytest.mark.parametrize(("tie", "chosen"), [("first", 0), ("last", 1)])
@pytest.mark.parametrize("wrong", [-0.9, 0.9])
def test_what_neither_photo_shows_sharply_is_a_tie_whatever_the_network_says(decide, tie, chosen, wrong):
    near, far, _ = quarters(120, 240)
    found = decide(wrong, [near, far], tie=tie)
    assert (found.labels[:, 180:] == chosen).all()
    assert (found.labels[10:110, 10:90] == (wrong > 0)).all()
    assert found.confidence[60, 60] == 230
    assert found.undecided == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("wanted", [-0.9, 0.9])
def test_of_two_photos_none_is_taken_where_it_has_no_pixels(decide, wanted):
    view = np.ones((2, 100, 120), np.bool_)
    view[0, :30] = view[1, :, :40] = False
    view[:, :30, :40] = True
    labels = decide(wanted, [textured(100, 120, seed) for seed in (0, 1)], seen=lambda i: view[i]).labels
    assert (labels[:30, 40:] == 1).all()
    assert (labels[30:, :40] == 0).all()
    assert (labels[30:, 40:] == (wanted > 0)).all()


def test_of_a_stack_none_is_taken_where_it_has_no_pixels_though_the_network_wants_it(decide):
    frames = [textured(120, 140, seed) for seed in range(3)]
    view = np.ones((3, 120, 140), np.bool_)
    view[1, :, 100:] = view[2, :, :40] = False
    everywhere = decide(0.9, frames).labels
    assert not np.take_along_axis(view, everywhere[None].astype(int), 0).all()
    labels = decide(0.9, frames, seen=lambda i: view[i]).labels
    assert np.take_along_axis(view, labels[None].astype(int), 0).all()


@pytest.mark.parametrize("tie", [None, "first"])
def test_a_stack_whose_ties_are_given_away_leaves_none_to_the_network(decide, tie):
    near, far, soft = quarters(120, 240)
    frames = [near, far, ((soft.astype(int) + near) // 2).astype(np.uint8)]
    before, after = (decide(margin / 255, frames, tie=tie).labels for margin in (0, TIE - 2))
    clear = decide((TIE + 2) / 255, frames, tie=tie).labels
    assert (clear != before).any()
    assert np.array_equal(after, before if tie else clear)


def test_confidence_of_a_stack_is_that_of_the_network_where_it_was_asked(decide):
    told = []
    found = decide(0, quarters(120, 240), progress=lambda *progress: told.append(progress))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found.tiles_all == 3
    assert (found.confidence[55:65, 10:90] == 0).mean() > 0.3, "between two frames that are both sharp nearby"
    assert found.confidence[20:30, 20:80].min() > 60, "detail alone decides"
    assert found.undecided == pytest.approx(0.5, abs=0.1)


def test_what_is_plain_in_all_frames_of_a_stack_is_not_left_to_the_network(decide):
    """It would take every frame's word for what any of them shows as well."""
    labels = decide(0.9, quarters(160, 320)).labels
    assert len(np.unique(labels[:, 200:])) == 1
    assert len(np.unique(labels[:, :140])) == 2


def test_the_preview_begins_with_red_and_ends_with_violet():
    colours = preview(np.arange(4, dtype=np.uint16)[None], 4)[0].astype(int)
    assert colours[0].argmax() == 0
    assert colours[0, 1] == colours[0, 2]
    assert colours[3, 2] > colours[3, 0] > colours[3, 1]
    assert len(np.unique(colours, axis=0)) == 4
    many = preview(np.arange(500, dtype=np.uint16)[None], 500)[0]
    assert len(np.unique(many, axis=0)) == 500


# -- regions -----------------------------------------------------------------------------------------------


def test_many_frames_may_have_smaller_regions():
    labels = np.repeat(np.arange(8, dtype=np.uint16), 20)[None].repeat(100, 0)  # an eighth each
    labels[:15, 30:60] = 7
    np.testing.assert_array_equal(fill_holes(labels, share=0.1), labels)
    assert not (fill_holes(labels, share=0.12)[:15, 30:60] == 7).any()


def test_what_glows_comes_from_what_surrounds_it():
    labels, contrast = np.zeros((240, 320), np.uint16), np.full((240, 320), 0.8, np.float16)
    glow = np.zeros(labels.shape, np.bool_)
    glow[100:140, 100:140] = True
    labels[glow] = 1
    assert not settle_undecided(labels, contrast, glow).any()


@pytest.mark.parametrize(("shown", "stays"), [(0.3, False), (0.5, True)])
def test_the_rim_of_an_undecided_region_ends_where_the_contrast_is_large(shown, stays):
    labels, contrast = np.zeros((240, 320), np.uint16), np.full((240, 320), 0.8, np.float16)
    labels[66:174, 106:214] = 1
    contrast[66:174, 106:214] = shown
    contrast[80:160, 120:200] = 0.02  # 14 pixels further in
    settled = settle_undecided(labels, contrast, np.zeros(labels.shape, np.bool_))
    assert (settled[68, 125:195] == stays).all()


def test_detail_nearby_is_that_within_a_share_of_the_picture():
    detail = np.zeros((400, 600), np.float16)
    detail[198:202, 298:302] = 50
    found = cv2.resize(nearby(detail), (600, 400), interpolation=cv2.INTER_NEAREST)
    near = np.hypot(*(np.indices(detail.shape) - np.array([199.5, 299.5])[:, None, None]))
    assert (found[near <= 12] == 50).all(), "0.04 of 400 pixels are 16"
    assert not found[near > 22].any()


def test_a_glow_is_faint_beside_an_edge_in_frames_that_blur_it():
    around = [np.full((5, 5), most, np.float32) for most in (100, 45, 30)]
    most, contrast = np.full((40, 40), 50, np.float16), np.full((40, 40), 0.2, np.float16)
    most[:, 20:], contrast[20:] = 15, 0.6
    glow = Glow.of(most, contrast, around)
    expected = np.zeros((40, 40), np.bool_)
    expected[:20, 20:] = True  # little detail for what there is nearby, and no decision
    np.testing.assert_array_equal(glow.likely(most), expected)
    assert glow.likely(np.full((40, 40), 0.5, np.float16)).all(), "no detail at all"
    assert [glow.blurred(i).all() for i in range(3)] == [False, True, True]
    assert [glow.blurred(i, greatly=True).any() for i in range(3)] == [False, False, True]


@pytest.mark.parametrize(("blurs", "beyond"), [(0, 7), (1, 7), (2, 0)])
def test_a_frame_that_blurs_greatly_needs_its_detail_right_there(blurs, beyond):
    most = np.full((60, 60), 20, np.float16)
    own = most.copy()
    own[:, 30:] = 5
    nothing = np.zeros((60, 60), np.bool_)
    details = _Details(most, most / 20, nothing.astype(np.uint16), nothing, [])
    glow = Glow(nothing, np.full((1, 6, 6), blurs, np.uint8))
    assert (_plausible(0, own, details, glow).sum(1) == 30 + beyond).all()
