"""Rims of what is in front: they go to the photo focused on it where its edge and the network say so."""

import cv2
import numpy as np
import pytest
from conftest import tiny_model

from mffsr import rims as module
from mffsr.compare import Comparison
from mffsr.engine import fuse_bracket
from mffsr.focus_map import FocusMap
from mffsr.photo import Photo
from mffsr.rims import rims

HEIGHT, WIDTH, LEFT, RIGHT, RIM = 400, 440, 150, 290, 10


def scene(height=HEIGHT, width=WIDTH, unit=1):
    """A plain bar before a blurred board, as the photo focused on the bar shows it, and where the bar is."""
    grain = np.random.default_rng(0).normal(size=(height, width, 3)).astype(np.float32)
    view = 90 + 300 * cv2.GaussianBlur(grain, (0, 0), 6 * unit)
    bar = np.zeros((height, width), np.bool_)
    bar[:, LEFT * unit : RIGHT * unit] = True
    view[bar] = (200, 170, 60)
    return np.rint(view).clip(0, 255).astype(np.uint8), bar


def missing(bar, near, rim=RIM):
    """Labels that give a rim of the bar to the other photo, and where that is."""
    inside = cv2.distanceTransform(bar.astype(np.uint8), cv2.DIST_L2, 5)
    lost = bar & (inside <= rim)
    return np.where(bar & ~lost, near, 1 - near).astype(np.uint16), lost


def says(monkeypatch, *answers):
    """Let the network give all pixels of the copies, one after the other, to photo 0 or 1."""
    left = list(answers)

    def compare(_, photo1, photo2, runtime, *, tile, where):
        return Comparison(np.where(where, 200 if left.pop(0) else -200, 0).astype(np.int16), 1, 1)

    monkeypatch.setattr(module, "compare", compare)


@pytest.mark.parametrize("near", [0, 1])
def test_a_rim_ends_at_the_edge(near, monkeypatch, cpu):
    view, bar = scene()
    labels, lost = missing(bar, near)
    says(monkeypatch, near, near)
    found = rims(None, [view, view], labels, near, cpu, tile=512)
    assert (found != lost).sum() <= 4 * HEIGHT  # the edge itself is a pixel wide, on both sides
    assert found[:, LEFT + 2 : LEFT + RIM].all()


def test_both_copies_have_to_agree(monkeypatch, cpu):
    view, bar = scene()
    labels, _ = missing(bar, 0)
    for answers in ((0, 1), (1,)):  # where the coarser one disagrees the finer one is not asked
        says(monkeypatch, *answers)
        assert not rims(None, [view, view], labels, 0, cpu, tile=512).any()


def test_where_labels_are_right_nothing_changes(monkeypatch, cpu):
    view, bar = scene()
    says(monkeypatch, 0, 0)
    found = rims(None, [view, view], missing(bar, 0, 0)[0], 0, cpu, tile=512)
    assert found.sum() <= 2 * HEIGHT  # a pixel on each side


def test_a_gap_before_what_is_behind_stays_open(monkeypatch, cpu):
    """Though on the copies it is too narrow to be seen, and in the photo in front it has no edge."""
    view, bar = scene()
    plain = np.full_like(view, 120)
    labels = np.zeros(bar.shape, np.uint16)
    labels[:, 215:225] = labels[:, 330:] = 1
    says(monkeypatch, 0, 0)
    found = rims(None, [plain, view], labels, 0, cpu, tile=512)
    assert found[:, 215:225].mean() < 0.6
    assert found[:, 340:].sum() == 0


def test_small_pictures_and_labels_without_a_boundary_have_none(monkeypatch, cpu):
    view, bar = scene()
    labels, _ = missing(bar, 0)
    says(monkeypatch)  # the network is not asked
    assert not rims(None, [view[:380]] * 2, labels[:380], 0, cpu, tile=512).any()
    assert not rims(None, [view, view], np.zeros_like(labels), 0, cpu, tile=512).any()
    assert not rims(None, [view, view], np.ones_like(labels), 0, cpu, tile=512).any()


@pytest.mark.parametrize("name", ["deep", "gray"])
def test_depth_and_channels_change_nothing(name, monkeypatch, cpu):
    view, bar = scene()
    view = view[:, :, :1].repeat(3, 2)
    labels, _ = missing(bar, 0)
    other = view.astype(np.uint16) * 257 if name == "deep" else view[:, :, :1]
    found = []
    for frame in (view, other):
        says(monkeypatch, 0, 0)
        found.append(rims(None, [frame, frame], labels, 0, cpu, tile=512))
    np.testing.assert_array_equal(*found)


def test_a_large_picture_has_the_same_rims(monkeypatch, cpu):
    """1200 rows are judged on copies of 600, 300 and 150."""
    view, bar = scene(3 * HEIGHT, 3 * WIDTH, 3)
    labels, lost = missing(bar, 0, 3 * RIM)
    says(monkeypatch, 0, 0)
    found = rims(None, [view, view], labels, 0, cpu, tile=512)
    assert (found != lost).sum() <= 3 * HEIGHT * 2 * 4  # a pixel of the copy on each side


def test_rims_do_not_depend_on_the_tiles(cpu):
    view, bar = scene()
    frames = [view, cv2.GaussianBlur(view, (0, 0), 4)]
    model, found = tiny_model(1), []
    for near in (0, 1):  # the tiny network knows no focus, but says one thing or the other
        labels, _ = missing(bar, near)
        whole = rims(model, frames, labels, near, cpu, tile=512)
        np.testing.assert_array_equal(rims(model, frames, labels, near, cpu, tile=64), whole)
        found.append(whole.any())
    assert any(found)


def test_fusing_takes_the_rim_from_the_photo_in_front(monkeypatch, cpu):
    """Where the network was overruled nobody is sure."""
    view, bar = scene()
    soft = cv2.GaussianBlur(view, (0, 0), 8)
    back = np.where(bar[:, :, None], soft, 255 - view)
    front = np.where(bar[:, :, None], view, cv2.GaussianBlur(255 - view, (0, 0), 8))
    photos = [Photo(pixels=front), Photo(pixels=back)]
    for near in (0, 1):  # in the direction of work, which is not known here, either may be the first
        labels, lost = missing(bar, near)
        sure = FocusMap(labels, np.full(labels.shape, 255, np.uint8), 0.0, 1, 1)
        monkeypatch.setattr("mffsr.engine.decide_focus", lambda *_, own=sure, **__: own)
        monkeypatch.setattr("mffsr.engine.direction", lambda *_, own=near: -1 if own else 1)
        says(monkeypatch, near, near)
        fusion = fuse_bracket(photos, tiny_model(1), cpu, align=False)
        taken = fusion.confidence == 0
        assert (taken != lost).sum() <= 4 * HEIGHT
        given = 1 - fusion.labels if (fusion.labels[bar & ~lost] == 1).all() else fusion.labels
        assert not given[taken].any()
