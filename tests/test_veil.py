"""The veil of a blurred foreground: found where it is, in every tile alike, and nowhere else."""

import cv2
import numpy as np
import pytest
from conftest import tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st

from mffsr import veil
from mffsr.engine import fuse_bracket
from mffsr.photo import Photo
from mffsr.veil import Veils, direction

HEIGHT, WIDTH, BLUR = 160, 224, 5.0
WHOLE = slice(0, HEIGHT), slice(0, WIDTH)


def blurred(x, radius=BLUR):
    side = 2 * int(np.ceil(radius)) + 1
    y, x_ = np.mgrid[:side, :side] - side // 2
    disc = (np.hypot(y, x_) <= radius).astype(np.float32)
    return cv2.filter2D(x, -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT)


def texture(seed, colour):
    """Detail of some pixels' size around a colour."""
    grain = np.random.default_rng(seed).normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    return np.float32(colour) + 60 * cv2.GaussianBlur(grain, (0, 0), 1.2)


def bracket(front=None, back=None, light=2, radii=(BLUR, BLUR)):
    """A golden bar before a green board: near frame, far frame, the sharp picture, and 1 behind the bar.

    Pixel values are blurred as the `light` that they stand for, a power of them; the board and the bar have
    `radii` of their own.
    """
    bar = np.zeros((HEIGHT, WIDTH, 1), np.float32)
    bar[:, 70:120] = 1
    front = texture(1, (210, 170, 60)) if front is None else front
    back = texture(2, (40, 90, 60)) if back is None else back
    sharp = front * bar + back * (1 - bar)
    front, back = (x.clip(0, 255) ** light for x in (front, back))
    near = (front * bar + blurred(back, radii[0]) * (1 - bar)) ** (1 / light)
    alpha = blurred(bar[:, :, 0], radii[1])[:, :, None]
    far = (blurred(front * bar, radii[1]) + back * (1 - alpha)) ** (1 / light)
    near, far, sharp = (np.rint(x).clip(0, 255).astype(np.uint8) for x in (near, far, sharp))
    return near, far, sharp, (bar[:, :, 0] == 0).astype(np.uint16)


def veils_of(frames, labels, order, region=WHOLE, seen=None, linear=False):
    """The veil of each frame in a region."""
    veils = Veils(frames, labels, order, seen, linear=linear)
    indices = veils.near_to_far(list(range(len(frames))))
    return dict(zip(indices, veils.over(region, indices), strict=True))


def error(picture, sharp, where):
    return float(((picture.astype(np.float32) - sharp) ** 2).mean(2)[where].mean())


def beside(labels, pixels):
    """Background within so many pixels of the bar."""
    return (labels == 1) & (cv2.distanceTransform(labels.astype(np.uint8), cv2.DIST_L2, 5) <= pixels)


def test_sharp_edges_tell_which_frame_is_focused_on_what_is_near():
    near, far, _, labels = bracket()
    assert direction([near, far], labels) == 1
    assert direction([far, near], 1 - labels) == -1


def test_nothing_is_told_by_frames_of_one_focus_or_a_label_map_of_one_frame():
    near, far, _, labels = bracket()
    assert direction([near, near], labels) is None
    assert direction([near, far], np.zeros_like(labels)) is None


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_behind_comes_closer_to_the_sharp_picture(order):
    near, far, sharp, labels = bracket()
    behind = beside(labels, BLUR)
    far_from_it = (labels == 1) & ~beside(labels, veil.BESIDE)
    found = veils_of([near, far][::order], labels if order == 1 else 1 - labels, order)
    of_near, of_far = (found[index] for index in (0, 1)[::order])
    assert of_near is None
    assert error(far - of_far, sharp, behind) < 0.15 * error(far, sharp, behind)
    assert np.abs(of_far[far_from_it]).max() < 0.01


def test_before_the_boundary_the_far_frame_becomes_as_the_near_one():
    near, far, _, labels = bracket()
    of_far = veils_of([near, far], labels, 1)[1]
    inside = cv2.distanceTransform(1 - labels.astype(np.uint8), cv2.DIST_L2, 5)
    rim = (labels == 0) & (inside >= 2) & (inside <= 4)
    assert error(far - of_far, near, rim) < 0.3 * error(far, near, rim)
    assert not of_far[inside > veil.INTO].any()


def test_detail_that_the_near_frame_has_lost_is_no_veil():
    """What lies behind has the colour of what is near, on average: there is nothing to subtract."""
    sharp = texture(3, (120, 120, 120)).clip(0, 255)
    labels = np.ones((HEIGHT, WIDTH), np.uint16)
    labels[:, :100] = 0
    far = np.rint(sharp).astype(np.uint8)
    near = np.where(labels[:, :, None] == 0, far, np.rint(blurred(sharp)).astype(np.uint8))
    spread = veils_of([near, far], labels, 1)[1]
    assert spread is None or np.abs(spread).mean() < 0.1


@pytest.mark.parametrize("front", [40, 210])
def test_bars_along_the_boundary_that_the_near_frame_has_lost_are_kept(front):
    """As sharp and as dark as they are, behind a blurred thing that is darker or brighter."""
    bars = np.full((HEIGHT, WIDTH, 3), 220, np.float32)
    bars[:, np.arange(WIDTH) // 4 % 2 == 0] = 30
    near, far, sharp, labels = bracket(texture(1, (front,) * 3), bars)
    spread = veils_of([near, far], labels, 1)[1]
    behind = beside(labels, 10) & ~beside(labels, 2)
    half = 95  # of the bars' contrast
    assert error(far - spread, sharp, behind) < error(far, sharp, behind) + 0.02 * half**2


@pytest.mark.parametrize("front", [150, 110])
def test_a_dark_bar_beside_the_boundary_stays_dark_and_loses_its_veil(front):
    """The near frame has blurred it to gray, and what is near has a gray of its own."""
    board = np.full((HEIGHT, WIDTH, 3), 215, np.float32)
    board[:, 124:132] = 50
    near, far, sharp, labels = bracket(texture(1, (front,) * 3), board, radii=(14, 10))
    spread = veils_of([near, far], labels, 1)[1]
    behind = beside(labels, veil.BESIDE)
    assert error(far - spread, sharp, behind) < 0.75 * error(far, sharp, behind)
    assert np.abs((far - spread - sharp)[:, 124:132].mean()) < 12  # of 165


def test_detail_that_was_lost_before_another_colour_is_hardly_taken_for_one():
    """A hard boundary: the foreground's blur ends where it ends."""
    near, _, sharp, labels = bracket()
    spread = veils_of([near, sharp], labels, 1)[1]
    mean = 0.0 if spread is None else np.abs(spread[beside(labels, 10)]).mean()
    assert mean < 0.3  # of 10 that detail differs by


def test_what_has_not_the_colour_of_what_is_near_is_no_veil():
    """The background is darker beside something brighter."""
    labels = bracket()[3]
    distance = cv2.distanceTransform(labels.astype(np.uint8), cv2.DIST_L2, 5)
    darker = np.where(labels == 1, 40 * (1 - distance / 9).clip(0), 0)[:, :, None]
    near = np.where(labels[:, :, None] == 1, np.uint8(120), np.uint8(210)).repeat(3, 2)
    spread = veils_of([near, np.rint(near - darker).astype(np.uint8)], labels, 1)[1]
    assert spread is None or spread.min() > -1


def test_what_does_not_end_is_no_veil():
    """A difference in brightness of the whole background, as of another exposure."""
    near, _, _, labels = bracket()
    brighter = np.where(labels[:, :, None] == 1, near + 20, near)
    spread = veils_of([near, brighter], labels, 1)[1]
    assert spread is None or np.abs(spread[~beside(labels, 3) & (labels == 1)]).max() < 1


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("side", [768, 80, 53])  # as it is, and reduced by 2 and 3
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_pixels_veil_does_not_depend_on_the_region(side, count, data):
    near, far, _, labels = bracket()
    frames = [near, far, (far * 0.9).astype(np.uint8)][:count]
    if count == 3:
        labels[80:][labels[80:] == 1] = 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(veil, "SIDE", side)
        whole = veils_of(frames, labels, 1)
        spans = []
        for length in (HEIGHT, WIDTH):
            start = data.draw(st.integers(0, length - 1))
            spans.append(slice(start, data.draw(st.integers(start + 1, length))))
        part = veils_of(frames, labels, 1, (spans[0], spans[1]))
    for index in range(1, count):
        expected = whole[index][spans[0], spans[1]]
        expected = expected * (labels[spans[0], spans[1]] == index).any()  # elsewhere nobody asks
        found = np.zeros_like(expected) if part[index] is None or not expected.any() else part[index]
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("linear", [False, True])
def test_blur_is_a_mean_of_light(linear):
    """Of linear frames that is a mean of their values."""
    near, far, sharp, labels = bracket(light=1 if linear else 2)
    behind = beside(labels, BLUR)
    right, wrong = (veils_of([near, far], labels, 1, linear=one)[1] for one in (linear, not linear))
    assert error(far - right, sharp, behind) < 0.8 * error(far - wrong, sharp, behind)


def test_depth_and_channels_change_nothing():
    near, far, _, labels = bracket()
    frames = [near, far]
    expected = veils_of(frames, labels, 1)[1]
    deep = veils_of([x.astype(np.uint16) * 257 for x in frames], labels, 1)[1]
    np.testing.assert_allclose(deep, expected, atol=1e-3)
    gray = [x[:, :, :1] for x in frames]
    assert direction(gray, labels) == 1
    assert veils_of(gray, labels, 1)[1].shape == (HEIGHT, WIDTH, 1)


def test_in_a_stack_each_frame_behind_loses_what_is_near():
    near, far, sharp, labels = bracket()
    three = labels.copy()
    three[80:][three[80:] == 1] = 2
    frames = [near, far, far.copy()]
    assert direction(frames, three) == 1
    found = veils_of(frames, three, 1)
    for index in (1, 2):
        behind = beside(labels, BLUR) & (three == index)
        assert error(far - found[index], sharp, behind) < 0.5 * error(far, sharp, behind)


def test_where_the_near_frame_has_no_pixels_it_tells_nothing():
    near, far, _, labels = bracket()
    seen = np.ones((HEIGHT, WIDTH), np.bool_)
    seen[:, 118:] = False
    black = near * seen[:, :, None].astype(np.uint8)
    found = veils_of([black, far], labels, 1, seen=lambda i: seen if i == 0 else seen | True)[1]
    expected = veils_of([near, far], labels, 1)[1]
    np.testing.assert_allclose(found[:, :60], expected[:, :60], atol=2)
    assert np.abs(found[:, 121:]).max() < 60  # black would be taken for up to 200 levels of veil


def test_fusing_clears_halos_unless_they_are_to_be_kept(monkeypatch, cpu):
    near, far, sharp, labels = bracket()
    behind = beside(labels, BLUR)
    # Tiny networks see no focus. In the direction of work the far frame may be the first one.
    monkeypatch.setattr("mffsr.engine.fill_holes", lambda _: labels)
    photos = [Photo(pixels=near), Photo(pixels=far)]
    if (fuse_bracket(photos, tiny_model(1), cpu, align=False).labels != labels).any():
        monkeypatch.setattr("mffsr.engine.fill_holes", lambda _: 1 - labels)
    errors = []
    for clear in (True, False):
        fused = fuse_bracket(photos, tiny_model(1), cpu, align=False, clear_halos=clear)
        errors.append(error(fused.photo.pixels, sharp, behind))
    assert errors[0] < 0.6 * errors[1]
    np.testing.assert_array_equal(photos[1].pixels, bracket()[1])  # the caller's own photo is as it was
