"""Registration: known transforms are found, foreign frames refused, pixels kept where nothing moved."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mffsr.errors import BracketError
from mffsr.photo._colour import srgb_profile
from mffsr.photo._registration_exposure import exposure_gain
from mffsr.photo._registration_proxy import make_proxy
from mffsr.photo._registration_solve import Fit, Motion, _by_phase, _corner_error, correlation, fit
from mffsr.photo.align import (
    ForeignFrameError,
    Registration,
    _place,
    _place_all,
    _Placed,
    _rebase,
    _registration,
    _smallest_field,
    _Trail,
    common_field,
    register_bracket,
    warp,
)
from mffsr.photo.tone import SRGB, ToneCurve, tone_curve

WIDTH, HEIGHT = 320, 240
MARGIN = 40


def to_linear(values: np.ndarray) -> np.ndarray:
    return np.interp(values, np.linspace(0, 1, 65536), SRGB.light).astype(np.float32)


def from_linear(light: np.ndarray) -> np.ndarray:
    return SRGB.value(light).astype(np.float32)


def match_exposure(frame: np.ndarray, reference: np.ndarray, curve: ToneCurve = SRGB) -> tuple[float, ...]:
    return exposure_gain(make_proxy(frame, curve), make_proxy(reference, curve), np.eye(3))


def estimate(
    frame: np.ndarray,
    reference: np.ndarray,
    *,
    motion: Motion = "similarity",
    names: tuple[str, str] = ("the reference", "the frame"),
) -> Registration:
    """Register as `register_bracket` does, but to `reference`, whichever of the two sees less."""
    proxies = make_proxy(reference), make_proxy(frame)
    placed, refused, size = _place_all(proxies.__getitem__, 2, 0, motion=motion, name=names[0], progress=None)
    for index, reason in refused.items():
        raise ForeignFrameError(index, names[index], reason)
    return _registration(placed[1], size, index=1, reference=0)


def scene(seed: int, *, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Linear light, H×W×3, with structure at many scales and a margin all around."""
    rng = np.random.default_rng(seed)
    shape = (height + 2 * MARGIN, width + 2 * MARGIN, 3)
    light = np.zeros(shape, np.float32)
    for sigma in (1.5, 3, 6, 12, 24, 48):
        layer = cv2.GaussianBlur(rng.standard_normal(shape).astype(np.float32), (0, 0), sigma)
        light += layer / layer.std()
    for _ in range(40):
        x, y = rng.integers(0, shape[1]), rng.integers(0, shape[0])
        w, h = rng.integers(5, 60, 2)
        light[y : y + h, x : x + w] += rng.normal(0, 1.5, 3)
    low, high = np.percentile(light, (0.5, 99.5))
    return from_linear(np.clip((light - low) / (high - low), 0, 1)) * 0.55 + 0.05


def transform(dx: float, dy: float, degrees: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """A similarity about the centre of the frame, reference pixels to frame pixels."""
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    angle = np.deg2rad(degrees)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2] = turn
    matrix[:2, 2] = centre + np.array([dx, dy]) - turn @ centre
    return matrix


def shoot(
    light: np.ndarray,
    matrix: np.ndarray | None = None,
    *,
    gain: float | tuple[float, ...] = 1.0,
    near: bool | None = None,
    noise: float = 0.0,
    dtype: type = np.uint8,
) -> np.ndarray:
    """Photograph the scene: focused on the left (`near`), on the right, or everywhere (None)."""
    if near is not None:
        blurred = cv2.GaussianBlur(light, (0, 0), 2.5)
        left = (np.arange(light.shape[1]) < light.shape[1] / 2)[None, :, None]
        light = np.where(left == near, light, blurred)
    place = np.array([[1, 0, MARGIN], [0, 1, MARGIN], [0, 0, 1]], float) @ np.linalg.inv(
        np.eye(3) if matrix is None else matrix
    )
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    seen = cv2.warpPerspective(light, place, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REFLECT)
    values = from_linear(np.clip(seen * np.float32(gain), 0, 1))
    values = values + np.random.default_rng(1).normal(0, noise, values.shape)
    top = np.iinfo(dtype).max
    return np.clip(np.rint(values * top), 0, top).astype(dtype)


def off_by(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean displacement between two matrices over the frame, pixels."""
    x, y = np.meshgrid(np.linspace(0, WIDTH - 1, 15), np.linspace(0, HEIGHT - 1, 15))
    points = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    a, b = found @ points, truth @ points
    return float(np.hypot(*(a[:2] / a[2] - b[:2] / b[2])).mean())


LIGHT = scene(0)


@pytest.mark.parametrize(
    ("dx", "dy", "degrees", "scale"),
    [(0.4, -0.3, 0.0, 1.0), (12.0, -15.0, 0.0, 1.0), (5.0, 3.0, 1.0, 1.04), (-8.5, 14.2, -1.0, 0.96)],
)
def test_a_known_misregistration_is_recovered(dx: float, dy: float, degrees: float, scale: float) -> None:
    truth = transform(dx, dy, degrees, scale)
    reference = shoot(LIGHT, near=True, noise=0.008)
    frame = shoot(LIGHT, truth, near=False, noise=0.008, gain=1.2)
    found = estimate(frame, reference)
    assert off_by(found.matrix, truth) < 0.3
    assert found.scale == pytest.approx(scale, abs=0.002)
    assert found.rotation == pytest.approx(degrees, abs=0.1)
    assert found.shift == pytest.approx((dx, dy), abs=0.3)
    assert found.ecc > 0.9
    assert found.residual < 0.5
    assert np.array_equal(found.matrix[2], [0, 0, 1])
    assert found.gain == pytest.approx((1 / 1.2,) * 3, rel=0.03)


@settings(deadline=None, max_examples=8, derandomize=True)
@given(
    st.floats(-18, 18),
    st.floats(-18, 18),
    st.floats(-1, 1),
    st.floats(0.96, 1.04),
    st.integers(0, 3),
    st.booleans(),
)
def test_any_misregistration_within_the_promise_is_recovered(
    dx: float, dy: float, degrees: float, scale: float, seed: int, near: bool
) -> None:
    light = scene(seed)
    truth = transform(dx, dy, degrees, scale)
    found = estimate(shoot(light, truth, near=not near), shoot(light, near=near))
    assert off_by(found.matrix, truth) < 0.4


def test_affine_and_homography_follow_what_a_similarity_cannot() -> None:
    sheared = transform(3, -2, 0.3, 1.01) @ np.array([[1.01, 0.006, 0], [0.0, 0.995, 0], [0, 0, 1]])
    tilted = sheared @ np.array([[1, 0, 0], [0, 1, 0], [3e-5, -2e-5, 1]])
    reference = shoot(LIGHT)
    assert off_by(estimate(shoot(LIGHT, sheared), reference, motion="affine").matrix, sheared) < 0.1
    tilt = estimate(shoot(LIGHT, tilted), reference, motion="homography")
    assert off_by(tilt.matrix, tilted) < 0.15
    out = warp(shoot(LIGHT, tilted), tilt, (WIDTH, HEIGHT))
    inner = np.s_[20:-20, 20:-20]
    assert np.abs(out[inner].astype(int) - reference[inner]).mean() < 1.5


def test_a_tilt_is_neither_zoom_nor_rotation() -> None:
    middle = np.array([[1, 0, (WIDTH - 1) / 2], [0, 1, (HEIGHT - 1) / 2], [0, 0, 1]])
    tilted = middle @ np.array([[1, 0, 0], [0, 1, 0], [3e-5, 0, 1]]) @ np.linalg.inv(middle)
    found = estimate(shoot(LIGHT, tilted), shoot(LIGHT), motion="homography")
    assert found.scale == pytest.approx(1, abs=5e-4)
    assert found.rotation == pytest.approx(0, abs=0.02)


def test_a_first_guess_reaches_further_than_features_of_a_smooth_scene() -> None:
    smooth = cv2.GaussianBlur(LIGHT, (0, 0), 8)
    truth = transform(30, 20)
    frame, reference = make_proxy(shoot(smooth, truth)), make_proxy(shoot(smooth))
    found = fit(frame, reference, "similarity", [transform(28, 22)])
    assert off_by(found.matrix, truth) < 0.3


@pytest.mark.parametrize(("dx", "dy"), [(24, -9), (-13, 20)])
def test_a_shift_is_found_without_features(dx: float, dy: float) -> None:
    truth = transform(dx, dy)
    frame, reference = make_proxy(shoot(LIGHT, truth)), make_proxy(shoot(LIGHT))
    assert off_by(_by_phase(frame, reference), truth) < 1
    assert off_by(fit(frame, reference, "similarity", [], features=False).matrix, truth) < 0.2


def test_frames_that_hardly_overlap_do_not_agree() -> None:
    proxy = make_proxy(shoot(LIGHT))
    level = len(proxy.levels) - 1
    assert correlation(proxy, proxy, np.eye(3), level) == pytest.approx(1)
    assert correlation(proxy, proxy, transform(0.75 * WIDTH, 0), level) == -1


@pytest.mark.parametrize(
    ("parameter", "pixels"), [(0, 250), (1, 250), (2, 250), (3, 250), (6, 150), (7, 200)]
)
def test_the_error_of_a_parameter_is_that_of_the_corners(parameter: int, pixels: float) -> None:
    """Half of the diagonal is the unit: a shift by it, a turn by one radian, a tilt along a side."""
    covariance = np.zeros((8, 8))
    covariance[parameter, parameter] = 1e-3**2
    assert _corner_error(covariance, "homography", (300, 400)) == pytest.approx(1e-3 * pixels)


def test_frames_that_did_not_move_come_back_bit_for_bit() -> None:
    reference, frame = shoot(LIGHT, near=True, noise=0.005), shoot(LIGHT, near=False, noise=0.005)
    found = estimate(frame, reference)
    assert found.is_identity
    assert found.gain == (1.0, 1.0, 1.0)
    assert warp(frame, found, (WIDTH, HEIGHT)) is frame
    assert np.array_equal(warp(frame, found, (WIDTH, HEIGHT), crop=(7, 9, 50, 40)), frame[9:49, 7:57])


def test_white_balance_is_matched_in_linear_light() -> None:
    gain = (0.8, 1.0, 1.25)
    reference, frame = shoot(LIGHT, near=True), shoot(LIGHT, near=False, gain=gain)
    found = match_exposure(frame, reference)
    assert found == pytest.approx([1 / g for g in gain], rel=0.03)
    matched = warp(frame, Registration(gain=found), (WIDTH, HEIGHT))
    low = [to_linear(cv2.GaussianBlur(i.astype(np.float32) / 255, (0, 0), 15)) for i in (matched, reference)]
    assert float(np.abs(low[0] / low[1] - 1).mean()) < 0.03


def profile(gamma: float, *, gray: bool = False) -> bytes:
    given = {} if gray else {"primaries": [0.64, 0.33, 0.3, 0.6, 0.15, 0.06]}
    kind = "gray" if gray else "rgb"
    return bytes(imagecodecs.cms_profile(kind, whitepoint=[0.3127, 0.329, 1], gamma=gamma, **given))


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.4])
def test_the_profile_says_what_linear_light_is(gamma: float, gray: bool) -> None:
    curve = tone_curve(profile(gamma, gray=gray))
    expected = np.linspace(0, 1, 256) ** gamma
    np.testing.assert_allclose(curve.table(np.dtype(np.uint8)), expected, atol=2e-4)
    np.testing.assert_allclose(curve.value(expected), np.linspace(0, 1, 256), atol=0.005)
    values = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(np.rint(curve.value(curve.table(values.dtype)) * 65535)[3000:], values[3000:])


def test_without_a_profile_or_with_one_of_srgb_the_curve_is_srgb() -> None:
    assert tone_curve(None) is tone_curve(srgb_profile()) is tone_curve(b"no profile" * 20) is SRGB


@pytest.mark.parametrize("channels", [1, 3])
def test_exposure_is_matched_in_the_light_of_the_profile(channels: int) -> None:
    """Frames of linear values: by the curve of sRGB blur alone would look like a change of exposure."""
    curve = tone_curve(profile(1.0, gray=channels == 1))
    light = LIGHT[..., :channels] ** 2  # mostly dark, with highlights
    blurred = cv2.GaussianBlur(light, (0, 0), 4).reshape(light.shape)
    for gain in (1.0, 0.6):
        frame = np.rint(np.where(np.arange(light.shape[1])[:, None] < 140, light, blurred) * gain * 65535)
        reference = np.rint(blurred * 65535)
        found = match_exposure(frame.astype(np.uint16), reference.astype(np.uint16), curve)
        assert found == pytest.approx((1 / gain,) * channels, rel=0.01)
    even = np.full((40, 50, channels), 20_000, np.uint16)
    brighter = warp(even, Registration(gain=(1.5,) * channels), (50, 40), curve=curve)
    assert (brighter == 30_000).all()


@pytest.mark.parametrize("gain", [1.0, 0.7])
def test_spots_on_black_are_not_brighter_for_being_sharp(gain: float) -> None:
    """As of fluorescence: what blur spreads lies where the sharp frame is black."""
    spots = np.zeros((480, 640, 1), np.float32)
    for x, y, radius in np.random.default_rng(0).integers((8, 8, 1), (632, 472, 5), (120, 3)).tolist():
        cv2.circle(spots, (x, y), radius, 0.8, -1, cv2.LINE_AA)
    blurred = cv2.GaussianBlur(spots, (0, 0), 5).reshape(spots.shape)
    left = np.arange(640)[:, None] < 320
    frames = np.where(left, spots, blurred), np.where(left, blurred, spots) * np.float32(gain)
    reference, frame = (np.rint(from_linear(light) * 65535).astype(np.uint16) for light in frames)
    assert match_exposure(frame, reference) == pytest.approx((1 / gain,), rel=0.03)


def test_clipped_pixels_do_not_count_as_exposure() -> None:
    reference = shoot(LIGHT * 1.4)
    frame = shoot(LIGHT * 1.4, gain=1.5)
    assert (frame == 255).mean() > 0.03
    assert match_exposure(frame, reference) == pytest.approx((1 / 1.5,) * 3, rel=0.03)
    white = np.full_like(frame, 255)
    assert match_exposure(white, reference) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_warp_keeps_dtype_and_shape_and_clips(dtype: type, channels: int) -> None:
    top = np.iinfo(dtype).max
    frame = np.zeros((60, 80, channels), dtype)
    frame[20:40, 20:60] = top  # an edge that Lanczos overshoots on both sides
    moved = Registration(matrix=np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]), gain=(2.0,) * channels)
    out = warp(frame, moved, (80, 60))
    assert out.dtype == dtype
    assert out.shape == frame.shape
    assert out[25:35, 25:55].min() > 0.9 * top
    assert out[:15].max() < 0.1 * top
    assert warp(frame, moved, (80, 60), crop=(10, 5, 30, 20)).shape == (20, 30, channels)
    assert np.array_equal(warp(frame, moved, (80, 60), crop=(10, 5, 30, 20)), out[5:25, 10:40])


def test_gain_and_resampling_of_8_bits_are_rounded_once() -> None:
    frame = np.tile(np.arange(0, 120, dtype=np.uint8)[None, :, None], (20, 1, 3))
    moved = Registration(matrix=transform(0.4, 0), gain=(1.37, 1.1, 0.8))
    deep = warp(frame.astype(np.uint16) * 257, moved, (120, 20))
    assert np.abs(warp(frame, moved, (120, 20)) - deep / 257).max() <= 0.51


def test_sides_beyond_what_can_be_warped() -> None:
    frame = np.arange(33_000 * 20, dtype=np.uint16).reshape(20, 33_000, 1)
    np.testing.assert_array_equal(warp(frame, Registration(), (33_000, 20)), frame)
    with pytest.raises(BracketError, match=r"^a\.png: 33000×20 pixels: .* above 32766 .*\nuse --no-align"):
        register_bracket(lambda _: frame, 2, names=("a.png", "b.png"))


def test_a_16_bit_frame_keeps_its_16_bits() -> None:
    frame = shoot(LIGHT, dtype=np.uint16)
    moved = Registration(matrix=transform(0.5, 0.5), gain=(1.1, 1.0, 0.9))
    assert len(np.unique(warp(frame, moved, (WIDTH, HEIGHT)))) > 5000
    gained = warp(frame, Registration(gain=(1.1, 1.0, 0.9)), (WIDTH, HEIGHT))
    assert np.array_equal(gained[..., 1], frame[..., 1])
    expected = to_linear(frame[..., 0] / 65535.0) * 1.1
    assert np.abs(to_linear(gained[..., 0] / 65535.0) - np.minimum(expected, 1)).max() < 1e-4


def test_alpha_is_moved_but_not_brightened() -> None:
    frame = np.dstack([shoot(LIGHT), np.full((HEIGHT, WIDTH), 200, np.uint8)])
    out = warp(frame, Registration(matrix=transform(3.5, 1.5), gain=(1.3, 1.3, 1.3)), (WIDTH, HEIGHT))
    assert out.shape == frame.shape
    assert (out[..., 3] == 200).all()


def test_exposure_is_matched_where_the_thumbnail_has_one_row() -> None:
    light = np.tile(np.linspace(0.1, 0.4, 4000)[None, :, None], (16, 1, 3))
    frame, reference = (np.rint(from_linear(light * gain) * 255).astype(np.uint8) for gain in (1, 1.5))
    assert match_exposure(frame, reference) == pytest.approx((1.5,) * 3, rel=0.03)


@pytest.mark.parametrize("empty", [np.uint8(0), np.uint8(255)])
def test_an_empty_frame_is_refused_by_name(empty: np.uint8) -> None:
    black = np.full((HEIGHT, WIDTH, 3), empty)
    with pytest.raises(ForeignFrameError, match=r"^dark\.jpg is black or empty") as caught:
        estimate(black, shoot(LIGHT), names=("first.jpg", "dark.jpg"))
    assert caught.value.index == 1
    assert isinstance(caught.value, BracketError)
    noisy = np.random.default_rng(0).integers(0, 6, black.shape).astype(np.uint8)
    with pytest.raises(ForeignFrameError):
        estimate(noisy, shoot(LIGHT))


@pytest.mark.parametrize("seed", [11, 12, 13, 14])
def test_another_scene_is_refused_by_name(seed: int) -> None:
    with pytest.raises(ForeignFrameError, match=r"^b\.jpg shows another scene than a\.jpg"):
        estimate(shoot(scene(seed)), shoot(LIGHT), names=("a.jpg", "b.jpg"))


def test_other_sizes_channels_and_arrays_are_refused() -> None:
    reference = shoot(LIGHT)
    with pytest.raises(ForeignFrameError, match="has 320×200 pixels, the reference 320×240"):
        estimate(reference[:200], reference)
    with pytest.raises(ForeignFrameError, match="gray"):
        estimate(reference[..., :1], reference)
    with pytest.raises(ValueError, match="uint8 or uint16"):
        estimate(reference.astype(np.float32), reference)
    with pytest.raises(
        BracketError, match=r"320×8 pixels are too small .*: at least 16 a side\nuse --no-align"
    ):
        estimate(reference[:8], reference[:8])
    with pytest.raises(ValueError, match="unknown motion"):
        register_bracket(lambda _: reference, 2, motion="rigid")  # type: ignore[arg-type]


def breathing(count: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A hand-held bracket: frames and their matrices in scene coordinates; the last sees least."""
    matrices = [transform(1.5 * i, -0.8 * i, 0.05 * i, 1 + 0.006 * i) for i in range(count)]
    gains = [1.0 + 0.04 * (i % 3) for i in range(count)]
    frames = [
        shoot(LIGHT, m, near=i < count // 2, gain=g)
        for i, (m, g) in enumerate(zip(matrices, gains, strict=True))
    ]
    return frames, matrices


def test_a_bracket_is_registered_to_its_smallest_field_of_view() -> None:
    frames, matrices = breathing(6)
    calls: list[int] = []
    seen: list[tuple[int, int]] = []

    def load(index: int) -> np.ndarray:
        calls.append(index)
        return frames[index]

    found = register_bracket(load, 6, progress=lambda done, count: seen.append((done, count)))
    assert sorted(calls) == list(range(6))  # every frame is read once
    assert seen[-1] == (6, 6)
    assert [r.index for r in found] == list(range(6))
    assert {r.reference for r in found} == {5}
    assert found[5].is_identity
    scales = [r.scale for r in found]
    assert scales == sorted(scales)
    for r, matrix in zip(found, matrices, strict=True):
        assert off_by(r.matrix, matrix @ np.linalg.inv(matrices[5])) < 0.3
    x, y, w, h = common_field(found, (WIDTH, HEIGHT))
    assert w > 0.85 * WIDTH
    assert h > 0.85 * HEIGHT
    aligned = [warp(f, r, (WIDTH, HEIGHT), crop=(x, y, w, h)) for f, r in zip(frames, found, strict=True)]
    assert {a.shape for a in aligned} == {(h, w, 3)}
    low = [cv2.GaussianBlur(a.astype(np.float32), (0, 0), 8) for a in aligned]
    assert max(float(np.abs(a - low[5]).mean()) for a in low) < 1.5


def measured(dx: float, spread: float, *, ecc: float = 1.0, scale: float = 1.0, overlap: float = 1.0) -> Fit:
    return Fit(transform(dx, 0, scale=scale), ecc, 0.0, overlap, spread)


@pytest.mark.parametrize(
    ("direct", "shift", "spread"),
    [
        (measured(10.4, 0.1), 10.36, 0.095),  # nine parts of it, since the squares of the errors are 1 : 9
        (measured(20, 0.1), 10, 0.3),  # farther apart than they can err
        (measured(10.4, 0.1, ecc=0.3), 10, 0.3),  # the ends of a bracket have little in common
        (measured(10.4, 0.1, overlap=0.3), 10, 0.3),
    ],
)
def test_two_measurements_of_a_frame_are_weighted_or_that_of_its_neighbour_is_believed(
    monkeypatch: pytest.MonkeyPatch, direct: Fit, shift: float, spread: float
) -> None:
    anchor, neighbour, frame = (SimpleNamespace(size=(WIDTH, HEIGHT)) for _ in range(3))
    known = {id(neighbour): measured(4, 0.3), id(anchor): direct}
    monkeypatch.setattr("mffsr.photo.align.fit", lambda frame, reference, *_, **__: known[id(reference)])
    found = _place(frame, _Trail(neighbour, measured(6, 0), np.eye(3)), anchor, "similarity")
    assert found.proxy is frame
    assert found.fit.matrix == pytest.approx(transform(shift, 0), abs=1e-6)
    assert found.fit.spread == pytest.approx(spread, abs=1e-3)
    assert found.pace == pytest.approx(transform(4, 0)), "the step from the neighbour"


@pytest.mark.parametrize(("shift", "scale", "overlap"), [(0.3, 1, 0.4), (0, 1.2, 1)])
def test_a_chained_frame_has_the_overlap_with_the_anchor_not_with_its_neighbour(
    monkeypatch: pytest.MonkeyPatch, shift: float, scale: float, overlap: float
) -> None:
    anchor, neighbour, frame = (SimpleNamespace(size=(WIDTH, HEIGHT)) for _ in range(3))
    step = measured(shift * WIDTH, 0.3, scale=scale, overlap=0.7)
    known = {id(neighbour): step, id(anchor): measured(0, 0, ecc=0.1)}
    monkeypatch.setattr("mffsr.photo.align.fit", lambda frame, reference, *_, **__: known[id(reference)])
    found = _place(frame, _Trail(neighbour, step, np.eye(3)), anchor, "similarity")
    assert found.fit.overlap == pytest.approx(overlap, abs=0.03)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            measured(0, 0, ecc=0.5),
            r"shows another scene than the reference \(correlation 0\.50, 0\.6 expected",
        ),
        (
            measured(0, 0, scale=1.7),
            r"a field of view too different from that of the reference \(scale 1\.70",
        ),
        (
            measured(0, 0, scale=0.6),
            r"a field of view too different from that of the reference \(scale 0\.60",
        ),
        (measured(0, 0, overlap=0.4), r"shares only 40% of its field with the reference"),
    ],
)
def test_what_was_measured_of_another_scene_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, found: Fit, words: str
) -> None:
    reference, measures = shoot(LIGHT), [found]
    monkeypatch.setattr("mffsr.photo.align.fit", lambda *_: measures[-1])
    with pytest.raises(ForeignFrameError, match=f"^the frame (has )?{words}"):
        estimate(reference, reference)
    measures.append(measured(0, 0, ecc=0.7, scale=1.5, overlap=0.6))
    assert estimate(reference, reference).scale == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("dx", "spread", "still"),
    [
        (0.04, 0, True),
        (0.06, 0, False),
        (0.15, 0.05, True),  # as much as it may err
        (0.15, 0.03, False),
        (0.3, 1.0, False),  # too much to be left where it is, however much it may err
    ],
)
def test_what_cannot_be_told_from_no_motion_is_none(dx: float, spread: float, still: bool) -> None:
    placed = _Placed(measured(dx, spread), (1.01, 0.99))
    found = _registration(placed, (WIDTH, HEIGHT), index=3, reference=1)
    assert found.is_identity == still
    assert found.shift == pytest.approx((0 if still else dx, 0), abs=1e-9)
    assert found.gain == (1.0, 1.0), "less than one level of white"
    assert (found.index, found.reference, found.spread) == (3, 1, spread)


def test_a_bracket_moves_to_another_reference_as_a_whole() -> None:
    placed = {
        0: _Placed(measured(0, 0), (1.0, 1.0)),
        1: _Placed(measured(5, 0.3, scale=1.02), (2.0, 0.5)),
        2: _Placed(measured(-3, 0.4), (3.0, 1.0)),
    }
    assert _smallest_field(placed, (WIDTH, HEIGHT)) == 1
    moved = _rebase(placed, 1)
    assert [moved[i].gain for i in range(3)] == [(0.5, 2.0), (1.0, 1.0), (1.5, 2.0)]
    for i in range(3):
        assert moved[i].fit.matrix @ placed[1].fit.matrix == pytest.approx(placed[i].fit.matrix)
    assert [moved[i].fit.spread for i in range(3)] == pytest.approx([0.3, 0, 0.5])
    alike = placed | {1: _Placed(measured(5, 0.3, scale=1.001), (1.0, 1.0))}
    assert _smallest_field(alike, (WIDTH, HEIGHT)) == 0, "which was measured against none"


@pytest.mark.parametrize("bad", [0, 2, 4])
def test_a_foreign_frame_of_a_bracket_is_refused_or_left_out(bad: int) -> None:
    frames, _ = breathing(5)
    frames[bad] = shoot(scene(21)) if bad else np.zeros_like(frames[0])
    names = [f"{i}.jpg" for i in range(5)]
    with pytest.raises(ForeignFrameError, match=rf"^{bad}\.jpg .*\nleave it out") as caught:
        register_bracket(frames.__getitem__, 5, names=names)
    assert caught.value.index == bad
    refused: list[ForeignFrameError] = []
    seen: list[tuple[int, int]] = []
    kept = register_bracket(
        frames.__getitem__, 5, names=names, on_bad=refused.append, progress=lambda *told: seen.append(told)
    )
    assert seen[-1] == (5, 5), "a frame that is left out is done too"
    assert [e.index for e in refused] == [bad]
    assert "\n" not in str(refused[0]), "it is left out already"
    assert [r.index for r in kept] == [i for i in range(5) if i != bad]


def test_two_frames_of_different_scenes_are_refused_whatever_is_asked() -> None:
    frames = [shoot(LIGHT), shoot(scene(22))]
    with pytest.raises(ForeignFrameError, match=r"another scene.*\nno two photos belong together"):
        register_bracket(frames.__getitem__, 2, on_bad=lambda error: None)


def test_one_frame_is_its_own_reference() -> None:
    (only,) = register_bracket(lambda index: shoot(LIGHT), 1)
    assert only.is_identity
    assert common_field([only], (WIDTH, HEIGHT)) == (0, 0, WIDTH, HEIGHT)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-30, 30), st.floats(-30, 30), st.floats(-2, 2), st.floats(0.9, 1.1)),
        min_size=1,
        max_size=4,
    )
)
def test_the_common_field_lies_inside_every_frame(moves: list[tuple[float, float, float, float]]) -> None:
    found = [Registration(matrix=transform(*move)) for move in moves]
    x, y, w, h = common_field(found, (WIDTH, HEIGHT))
    assert x >= 0
    assert y >= 0
    assert x + w <= WIDTH
    assert y + h <= HEIGHT
    corners = np.array([[x, y, 1], [x + w - 1, y, 1], [x, y + h - 1, 1], [x + w - 1, y + h - 1, 1]], float)
    for registration in found:
        moved = corners @ registration.matrix.T
        assert (moved[:, :2] >= -1e-4).all()
        assert (moved[:, :2] <= np.array([WIDTH - 1, HEIGHT - 1]) + 1e-4).all()


def test_a_frame_taken_upside_down_shares_its_field() -> None:
    turned = transform(3, -2, 180)
    x, y, w, h = common_field([Registration(), Registration(matrix=turned)], (WIDTH, HEIGHT))
    assert w >= WIDTH - 4
    assert h >= HEIGHT - 3
    for corner in ([x, y, 1], [x + w - 1, y + h - 1, 1]):
        assert (turned @ corner)[:2] == pytest.approx(
            np.clip((turned @ corner)[:2], 0, [WIDTH - 1, HEIGHT - 1])
        )


def test_no_common_field_is_an_error() -> None:
    with pytest.raises(BracketError, match="no field of view in common"):
        common_field([Registration(matrix=transform(WIDTH + 5, 0))], (WIDTH, HEIGHT))


def test_large_photos_are_registered_on_a_small_copy() -> None:
    light = cv2.resize(LIGHT, None, fx=7, fy=7, interpolation=cv2.INTER_CUBIC)
    reference = np.clip(from_linear(light) * 255, 0, 255).astype(np.uint8)
    frame = np.roll(reference, (6, -9), axis=(0, 1))
    assert reference.shape[0] * reference.shape[1] > 4_000_000
    found = estimate(frame, reference)
    assert found.shift == pytest.approx((-9, 6), abs=0.3)
    assert replace(found, gain=(1.0,)).scale == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("number", [1, 7, 15, 22])
def test_photographs_are_registered(number: int) -> None:
    """The bar of the project on real texture: mean displacement at most 0.3 px, with blur, noise and JPEG."""
    root = os.environ.get("MFFSR_DATA")
    if not root:
        pytest.skip("MFFSR_DATA is not set: no photographs")
    photo = cv2.imread(str(Path(root) / "kodak24" / f"{number}.png"))
    if photo is None:
        pytest.skip(f"no kodak24/{number}.png in {root}")
    light = to_linear(
        cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)[: HEIGHT + 2 * MARGIN, : WIDTH + 2 * MARGIN] / 255.0
    )
    truth = transform(9.3, -14.1, 0.7, 0.97)
    reference, frame = (
        shoot(light, near=True, noise=0.006),
        shoot(light, truth, near=False, noise=0.006, gain=1.2),
    )
    packed = cv2.imdecode(cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, 88])[1], cv2.IMREAD_COLOR)
    found = estimate(packed, reference)
    assert off_by(found.matrix, truth) < 0.3
    assert found.gain == pytest.approx((1 / 1.2,) * 3, rel=0.05)
