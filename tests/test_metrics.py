"""The metrics: golden values, known values, symmetries, flat images, messages."""

from __future__ import annotations

import json
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mffsr.metrics import fusion_metrics, psnr, q_g, q_mi, q_nice, q_p, q_s, q_y, ssim
from mffsr.metrics._common import norm255

Image = NDArray[Any]

METRICS = {"Q_MI": q_mi, "Q_NICE": q_nice, "Q_G": q_g, "Q_P": q_p, "Q_S": q_s, "Q_Y": q_y}
EACH = pytest.mark.parametrize("key", METRICS)

# How far from the reference toolbox a value may be. Q_S: its weights are round-off where both sources
# are flat (docs/metrics.md).
TOLERANCE = {"Q_MI": 1e-10, "Q_NICE": 1e-10, "Q_G": 1e-10, "Q_P": 1e-10, "Q_S": 1e-7, "Q_Y": 1e-10}


def texture(size: tuple[int, int], phase: int) -> NDArray[np.uint8]:
    """A deterministic pattern of whole numbers, without random generators or transcendental functions."""
    y, x = np.mgrid[: size[0], : size[1]]
    ramps = (x * x * 3 + y * y * 5 + x * y * 7 + phase * (x + 2 * y)) % 97
    steps = 90 * ((x // 7 + y // 5 + phase) % 2)
    return np.asarray(ramps + steps + 20, dtype=np.uint8)


def box_blur(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The rounded-down 3×3 mean, borders repeated."""
    padded = np.pad(image.astype(np.int64), 1, mode="edge")
    h, w = image.shape
    total = sum(padded[i : i + h, j : j + w] for i in range(3) for j in range(3))
    return np.asarray(total // 9, dtype=np.uint8)


@lru_cache(maxsize=8)
def bracket(size: tuple[int, int] = (40, 52)) -> tuple[Image, Image, Image]:
    """Two frames, each sharp in one half, and their fusion by a vertical cut a little off the right place."""
    sharp = texture(size, 0)
    soft, half = box_blur(sharp), size[1] // 2
    near = np.concatenate([sharp[:, :half], soft[:, half:]], axis=1)
    far = np.concatenate([soft[:, :half], sharp[:, half:]], axis=1)
    fused = np.concatenate([near[:, : half - 4], far[:, half - 4 :]], axis=1)
    return near, far, fused


# Golden values --------------------------------------------------------------------------------------------


def reference_folder() -> Path:
    data = os.environ.get("MFFSR_DATA")
    if not data:
        pytest.skip("MFFSR_DATA is not set: no reference values to compare with")
    folder = Path(data).parent / "reference"
    if not (folder / "metrics.json").is_file():
        pytest.skip(f"no metrics.json in {folder}: no reference values to compare with")
    return folder


def read_rgb(path: Path) -> Image:
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert pixels is not None, path
    return pixels[:, :, ::-1]


@pytest.mark.parametrize("scene", ["lytro-01", "lytro-04", "lytro-06", "lytro-10", "lytro-17"])
def test_agrees_with_the_reference_toolbox(scene: str) -> None:
    folder = reference_folder()
    entries = [
        entry
        for entry in json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["values"]
        if entry["F"].startswith(scene)
    ]
    assert entries
    for entry in entries:
        a, b, fused = (read_rgb(folder / entry[name]) for name in "ABF")
        got = fusion_metrics([a, b], fused)
        for key in METRICS:
            assert got["per_channel"][key] == pytest.approx(entry[key], abs=TOLERANCE[key]), (entry["F"], key)
            assert got["mean"][key] == pytest.approx(np.mean(entry[key]), abs=TOLERANCE[key])


# The same without the data: values of this implementation when it agreed with the reference toolbox to
# 1e-8, on a bracket with even sides and on one with odd sides.
SMALL = {
    (40, 52): {
        "Q_MI": 1.462404918705,
        "Q_NICE": 0.871239774407,
        "Q_G": 0.728756232016,
        "Q_P": 0.822710291056,
        "Q_S": 0.890847410932,
        "Q_Y": 0.986292603324,
    },
    (33, 45): {
        "Q_MI": 1.504176359243,
        "Q_NICE": 0.876050999224,
        "Q_G": 0.725915086658,
        "Q_P": 0.842311398044,
        "Q_S": 0.875372198267,
        "Q_Y": 0.982235688073,
    },
}
XYDEAS = 0.770653975423


@pytest.mark.parametrize("size", SMALL)
@EACH
def test_small_golden_values(size: tuple[int, int], key: str) -> None:
    assert METRICS[key](*bracket(size)) == pytest.approx(SMALL[size][key], abs=1e-9)


def test_small_golden_value_of_the_textbook_q_g() -> None:
    assert q_g(*bracket(), variant="xydeas") == pytest.approx(XYDEAS, abs=1e-9)


@pytest.mark.parametrize("variant", ["toolbox", "xydeas"])
def test_q_g_takes_edges_on_either_side_of_the_vertical_for_parallel(variant: Any) -> None:
    y, x = np.mgrid[:40, :52]
    left, right = (np.asarray(100 + 4 * (y - 20) + tilt * x / 10) for tilt in (-1, 1))  # angles near ±π/2
    assert q_g(left, left, right, variant=variant) > 0.9 * q_g(left, left, left, variant=variant)


# Known values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [("Q_MI", 2.0), ("Q_G", (1 + math.exp(-5)) ** -2), ("Q_S", 1.0), ("Q_Y", 1.0)],
)
def test_a_perfect_fusion(key: str, value: float) -> None:
    image = texture((40, 52), 3)
    assert METRICS[key](image, image, image) == pytest.approx(value, abs=1e-12)


def test_q_nice_of_equal_images_with_all_levels_is_one() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert q_nice(image, image, image) == pytest.approx(1.0, abs=1e-12)


def test_q_nice_of_unrelated_images_is_its_minimum() -> None:
    y, x = np.mgrid[:64, :64]
    # three bits that do not depend on each other: every pair is spread evenly over its four combinations
    a, b, fused = (bit.astype(np.uint8) * 255 for bit in (x % 2, y % 2, x // 2 % 2))
    assert q_nice(a, b, fused) == pytest.approx(1 - math.log(3, 256), abs=1e-12)
    assert q_mi(a, b, fused) == pytest.approx(0, abs=1e-12)


def test_q_g_xydeas_of_a_perfect_fusion() -> None:
    image = texture((40, 52), 3)
    best = 0.9994 / (1 + math.exp(-7.5)) * 0.9879 / (1 + math.exp(-4.4))
    assert q_g(image, image, image, variant="xydeas") == pytest.approx(best, abs=1e-12)


@EACH
def test_better_fusion_scores_higher(key: str) -> None:
    near, far, fused = bracket()
    average = ((near.astype(np.uint16) + far) // 2).astype(np.uint8)
    assert METRICS[key](near, far, fused) > METRICS[key](near, far, box_blur(average))


# Symmetries and invariances -------------------------------------------------------------------------------


@EACH
@settings(deadline=None, max_examples=15)
@given(
    height=st.integers(11, 33),
    width=st.integers(11, 33),
    phases=st.tuples(st.integers(0, 96), st.integers(0, 96), st.integers(0, 96)),
)
def test_order_of_the_sources_does_not_matter(
    key: str, height: int, width: int, phases: tuple[int, int, int]
) -> None:
    a, b, fused = (texture((height, width), phase) for phase in phases)
    # Q_G carries the fused image's replaced zeros from the first source to the second.
    tolerance = 1e-4 if key == "Q_G" else 1e-9
    assert METRICS[key](a, b, fused) == pytest.approx(METRICS[key](b, a, fused), abs=tolerance)


def test_textbook_q_g_is_exactly_symmetric() -> None:
    near, far, fused = bracket()
    assert q_g(near, far, fused, variant="xydeas") == pytest.approx(
        q_g(far, near, fused, variant="xydeas"), abs=1e-14
    )


@settings(deadline=None, max_examples=15)
@given(gain=st.integers(1, 2), offset=st.integers(0, 20))
def test_information_metrics_ignore_gain_and_offset(gain: int, offset: int) -> None:
    near, far, fused = (image // 2 for image in bracket())
    for metric in (q_mi, q_nice):
        changed = metric(near, far, (fused * gain + offset).astype(np.uint8))
        assert changed == pytest.approx(metric(near, far, fused), abs=1e-12)


@EACH
def test_sixteen_bits_and_floats_mean_the_same_as_eight(key: str) -> None:
    images = bracket()
    expected = METRICS[key](*images)
    assert METRICS[key](*(image.astype(np.uint16) * 257 for image in images)) == expected
    assert METRICS[key](*(image.astype(np.float32) for image in images)) == expected
    assert METRICS[key](*(image.astype(np.float64) for image in images)) == expected


@EACH
def test_inputs_are_left_alone_and_may_be_views(key: str) -> None:
    images = bracket()
    stacks = [np.repeat(image[:, :, None], 3, axis=2) for image in images]
    for stack in stacks:
        stack.flags.writeable = False
    assert METRICS[key](*(stack[:, :, 1] for stack in stacks)) == METRICS[key](*images)


def test_odd_and_even_sizes_of_one_texture_are_close() -> None:
    near, far, fused = bracket((64, 64))
    even = q_p(near, far, fused)
    odd = q_p(*(np.ascontiguousarray(image[:63, :63]) for image in (near, far, fused)))
    assert even == pytest.approx(odd, abs=0.05)


# Flat images (pyproject.toml turns every warning into an error) -------------------------------------------

FLAT = {"Q_MI": 0.0, "Q_NICE": 1 - math.log(3, 256), "Q_G": (1 + math.exp(-5)) ** -2, "Q_P": 0.0, "Q_S": 1.0}
FLAT["Q_Y"] = 1.0


@EACH
@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_three_equal_flat_images(key: str, value: int) -> None:
    flat = np.full((24, 31), value, dtype=np.uint8)
    assert METRICS[key](flat, flat, flat) == pytest.approx(FLAT[key], abs=1e-9)


@EACH
@pytest.mark.parametrize("flat_ones", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_some_flat_images_give_a_finite_value(key: str, flat_ones: tuple[int, ...], value: int) -> None:
    images = list(bracket())
    for i in flat_ones:
        images[i] = np.full_like(images[i], value)
    assert -1 <= METRICS[key](*images) <= 2


@EACH
def test_flat_regions_give_a_finite_value(key: str) -> None:
    images = [image.copy() for image in bracket((60, 60))]
    for image, value in zip(images, (250, 251, 249), strict=True):
        image[10:50, 10:50] = value
    assert 0 <= METRICS[key](*images) <= 2


def test_black_images_have_no_edges() -> None:
    black = np.zeros((20, 20), dtype=np.uint8)
    assert q_g(black, black, texture((20, 20), 0), variant="xydeas") == 0


def test_a_flat_source_has_no_weight_beside_one_with_contrast() -> None:
    near, flat = bracket()[0], np.full((40, 52), 128, np.uint8)
    for sources in ((flat, near), (near, flat)):
        assert q_s(*sources, near) == pytest.approx(1, abs=1e-12)


def test_levels_are_stretched_and_halves_rounded_up() -> None:
    assert norm255(np.array([[0, 0.49, 0.5, 1.5, 254.4, 255]])).tolist() == [[0, 0, 1, 2, 254, 255]]
    assert norm255(np.array([[7.0, 8.0]])).tolist() == [[0, 255]]


def test_q_s_gives_a_black_window_no_weight_beside_a_flat_one() -> None:
    black, grey = np.zeros((16, 16), np.uint8), np.full((16, 16), 60, np.uint8)
    assert q_s(black, grey, grey) == pytest.approx(1, abs=1e-12)
    assert q_s(grey, black, grey) == pytest.approx(1, abs=1e-12)
    assert q_s(black, grey, black) == pytest.approx(ssim(grey, black), abs=1e-12)


# Messages -------------------------------------------------------------------------------------------------


@EACH
def test_sizes_must_agree(key: str) -> None:
    a, b = np.zeros((20, 30), np.uint8), np.zeros((20, 31), np.uint8)
    name = METRICS[key].__name__
    with pytest.raises(
        ValueError, match=rf"{name}: source b is 20×30 but the fused image is 20×31; they must"
    ):
        METRICS[key](a, a, b)
    with pytest.raises(ValueError, match=rf"{name}: source a is 20×31 but source b is 20×30"):
        METRICS[key](b, a, a)


@EACH
def test_only_one_channel(key: str) -> None:
    colour = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(ValueError, match="source a is 20×30×3; expected one channel, height×width"):
        METRICS[key](colour, colour, colour)


@EACH
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((20, 20), 256.0), r"values from 256 to 256; floats must lie in 0…255"),
        (np.full((20, 20), -1.0), r"values from -1 to -1; floats must lie in 0…255"),
        (np.full((20, 20), np.nan), r"values from nan to nan"),
        (np.zeros((20, 20), np.int32), r"is int32; expected uint8, uint16, or float32/float64"),
        (np.zeros((20, 0), np.uint8), r"20×0; at least"),
        ([[1, 2], [3, 4]], r"is a list; expected a NumPy array"),
    ],
)
def test_values_must_be_pixels(key: str, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METRICS[key](image, image, image)


@pytest.mark.parametrize("metric", [psnr, ssim, *METRICS.values()])
def test_floats_of_0_to_1_are_not_taken_for_0_to_255(metric: Any) -> None:
    images = [image / 255 for image in bracket()]
    given = images[:2] if metric in (psnr, ssim) else images
    with pytest.raises(ValueError, match=r"floats must lie in 0…255: multiply them by 255"):
        metric(*given)
    assert math.isfinite(metric(*(255 * image for image in given)))


def test_a_nearly_black_image_of_16_bits_is_measured() -> None:
    dark = [image.astype(np.uint16) for image in bracket()]  # below one level of 255
    assert all(map(math.isfinite, fusion_metrics(dark[:2], dark[2])["mean"].values()))
    assert q_s(*dark) > 0.99


@pytest.mark.parametrize(("metric", "side"), [(q_p, 11), (q_s, 11), (q_y, 7)])
def test_the_window_must_fit(metric: Any, side: int) -> None:
    small = texture((side - 1, 30), 0)
    with pytest.raises(ValueError, match=rf"{side - 1}×30; at least {side}×{side} is needed"):
        metric(small, small, small)
    enough = texture((side, side), 0)
    assert math.isfinite(metric(enough, enough, enough))


def test_unknown_variant_of_q_g() -> None:
    with pytest.raises(ValueError, match=r"""variant is 'other'; expected "toolbox" or "xydeas\""""):
        q_g(*bracket(), variant="other")  # type: ignore[arg-type]


# All at once ----------------------------------------------------------------------------------------------


def colour_bracket() -> list[Image]:
    """Three brackets as the channels of one: [source, source, fused]."""
    near, far, fused = bracket()
    return [np.stack([image, image.T[::-1].T, 255 - image], axis=2) for image in (near, far, fused)]


def test_fusion_metrics_holds_every_metric_of_every_channel() -> None:
    near, far, fused = colour_bracket()
    result = fusion_metrics([near, far], fused)
    assert list(result) == ["per_channel", "mean"]
    assert list(result["per_channel"]) == list(result["mean"]) == list(METRICS)
    for key, metric in METRICS.items():
        expected = [metric(near[:, :, c], far[:, :, c], fused[:, :, c]) for c in range(3)]
        assert result["per_channel"][key] == expected
        assert result["mean"][key] == pytest.approx(np.mean(expected), abs=1e-15)
    assert json.loads(json.dumps(result)) == result


def test_fusion_metrics_of_grey_and_sixteen_bit_images() -> None:
    near, far, fused = bracket()
    grey = fusion_metrics([near, far], fused)
    assert [len(values) for values in grey["per_channel"].values()] == [1] * len(METRICS)
    assert fusion_metrics([near.astype(np.uint16) * 257, far], fused) == grey


def test_fusion_metrics_of_three_sources_is_the_mean_over_pairs() -> None:
    near, far, fused = bracket()
    sources = [near, far, box_blur(near)]
    pairs = [fusion_metrics([sources[i], sources[j]], fused)["mean"] for i, j in ((0, 1), (0, 2), (1, 2))]
    for key, value in fusion_metrics(sources, fused)["mean"].items():
        assert value == pytest.approx(np.mean([pair[key] for pair in pairs]), abs=1e-12)


def test_gray_pixels_of_photos_are_taken_as_they_are() -> None:
    a, b, fused = (texture((20, 30), seed) for seed in range(3))
    deep = [image[:, :, None] for image in (a, b, fused)]
    assert fusion_metrics(deep[:2], deep[2]) == fusion_metrics([a, b], fused)
    for metric in (psnr, ssim):
        assert metric(deep[0], deep[2]) == metric(a, fused)


def test_fusion_metrics_says_what_does_not_fit() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    with pytest.raises(ValueError, match=r"got 1 source\(s\); at least 2"):
        fusion_metrics([image], image)
    with pytest.raises(ValueError, match="source 2 is 20×30×3 but the fused image is 20×30;"):
        fusion_metrics([image, image], image[:, :, 0])
    with pytest.raises(ValueError, match="source 1 is 20×30×4; expected height×width or height×width×3"):
        fusion_metrics([np.zeros((20, 30, 4), np.uint8), image], image)
    with pytest.raises(ValueError, match="the fused image is float64; expected uint8 or uint16"):
        fusion_metrics([image, image], image.astype(np.float64))
    with pytest.raises(ValueError, match="fusion_metrics: the images are 10×30; at least 11×11"):
        fusion_metrics([image[:10, :, 0]] * 2, image[:10, :, 0])
    with pytest.raises(ValueError, match="source 2 is a list"):
        fusion_metrics([image, [1]], image)  # type: ignore[list-item]


# PSNR and SSIM --------------------------------------------------------------------------------------------


def test_psnr_known_values() -> None:
    black = np.zeros((16, 16, 3), np.uint8)
    assert psnr(black, black) == math.inf
    assert psnr(black, np.full_like(black, 255)) == pytest.approx(0)
    assert psnr(black, np.full_like(black, 1)) == pytest.approx(20 * math.log10(255))
    assert psnr(black.astype(np.uint16), np.full(black.shape, 257, np.uint16)) == pytest.approx(
        20 * math.log10(255)
    )


def test_one_step_of_16_bits_in_one_pixel_is_a_difference() -> None:
    black = np.zeros((100, 100), np.uint16)
    other = black.copy()
    other[50, 50] = 1
    assert psnr(black, other) == pytest.approx(20 * math.log10(65535 * 100))


def test_luma_is_matlabs() -> None:
    black = np.zeros((16, 16, 3), np.uint8)
    # white is 235 and black 16; red, green and blue have luma 65.481, 128.553 and 24.966 above black
    assert psnr(black, np.full_like(black, 255), luma=True) == pytest.approx(20 * math.log10(255 / 219))
    for channel, weight in enumerate((65.481, 128.553, 24.966)):
        pure = black.copy()
        pure[:, :, channel] = 255
        assert psnr(black, pure, luma=True) == pytest.approx(20 * math.log10(255 / weight))


def test_border_is_left_out() -> None:
    clean = np.repeat(texture((30, 33), 0)[:, :, None], 3, axis=2)
    dirty = clean.copy()
    dirty[:4] = dirty[-4:] = dirty[:, :4] = dirty[:, -4:] = 0
    assert psnr(clean, dirty, border=4) == math.inf
    assert math.isfinite(psnr(clean, dirty, border=3))
    assert ssim(clean, dirty, border=4, luma=True) == pytest.approx(1, abs=1e-12)
    assert ssim(clean, dirty, border=3) < 1


def test_ssim_by_its_definition() -> None:
    """Against a direct sum over every window."""
    x, y = texture((14, 17), 0), box_blur(texture((14, 17), 0))
    d = np.arange(11) - 5
    w = np.exp(-(d[:, None] ** 2 + d**2) / 4.5)
    w /= w.sum()
    values = []
    for i in range(4):
        for j in range(7):
            p, q = x[i : i + 11, j : j + 11].astype(float), y[i : i + 11, j : j + 11].astype(float)
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq, c = ((w * u * v).sum() for u, v in ((p - mp, p - mp), (q - mq, q - mq), (p - mp, q - mq)))
            c1, c2 = 6.5025, 58.5225
            values.append((2 * mp * mq + c1) * (2 * c + c2) / ((mp * mp + mq * mq + c1) * (vp + vq + c2)))
    assert ssim(x, y) == pytest.approx(np.mean(values), abs=1e-13)
    assert ssim(y, x) == pytest.approx(ssim(x, y), abs=1e-14)


def test_ssim_of_flat_images() -> None:
    black, white = np.zeros((16, 16), np.uint8), np.full((16, 16), 255, np.uint8)
    assert ssim(white, white) == pytest.approx(1, abs=1e-12)
    assert ssim(black, white) == pytest.approx(0.0001 / 1.0001, abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_reference_metrics_say_what_does_not_fit(metric: Any) -> None:
    name, grey = metric.__name__, np.zeros((20, 30), np.uint8)
    with pytest.raises(ValueError, match=f"{name}: the reference is 20×30 but the image is 20×29"):
        metric(grey, grey[:, :29])
    with pytest.raises(ValueError, match=f"{name}: luma needs RGB, height×width×3; the images are 20×30"):
        metric(grey, grey, luma=True)
    for border in (-1, 10):
        with pytest.raises(ValueError, match=f"a border of {border} leaves nothing of 20×30"):
            metric(grey, grey, border=border)
    with pytest.raises(ValueError, match="the reference is 20×30×2; expected height×width or height×width×3"):
        metric(np.zeros((20, 30, 2), np.uint8), grey)


def test_ssim_needs_its_window_inside_the_border() -> None:
    grey = np.zeros((20, 30), np.uint8)
    with pytest.raises(ValueError, match="10×20×1; at least 11×11"):
        ssim(grey, grey, border=5)
