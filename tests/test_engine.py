"""The engine: tiles equal the whole, order does not matter, nothing is silently changed."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from conftest import bracket, textured, tiny_model, undecided
from hypothesis import given, settings
from hypothesis import strategies as st

from mffsr.checkpoint import assemble
from mffsr.device import Runtime
from mffsr.engine import fuse, fuse_bracket
from mffsr.errors import BracketError, DeviceError, MffsrError, UsageError
from mffsr.events import Events
from mffsr.focus_map import decide_focus, preview
from mffsr.model import FAPN, FapnConfig, FocusMaps
from mffsr.model.blocks import box_mean, gradient_map
from mffsr.photo import Photo
from mffsr.plan import SOURCES, Plan, memory_of, plan_tiles, rough_seconds
from mffsr.regions import fill_holes, settle_undecided, undecided_regions
from mffsr.render import _to_pixels, render


def photos(*arrays):
    return [Photo(pixels=np.ascontiguousarray(a if a.ndim == 3 else a[:, :, None])) for a in arrays]


def difference(a, b):
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(97, 131), (160, 64)])
def test_tiled_equals_whole(scale, size, cpu, monkeypatch):
    monkeypatch.setattr("mffsr.engine.fill_holes", lambda labels: labels)
    model = tiny_model(scale)
    near, far, _, _ = bracket(*size)
    whole = fuse_bracket(photos(near, far), model, cpu, tile=512, align=False, depth=16)
    for tile in (64, 80):
        tiled = fuse_bracket(photos(near, far), model, cpu, tile=tile, align=False, depth=16)
        np.testing.assert_array_equal(tiled.labels, whole.labels)
        assert difference(tiled.photo.pixels, whole.photo.pixels) <= 1


def test_five_frames_tiled_equal_whole(cpu, monkeypatch):
    monkeypatch.setattr("mffsr.engine.fill_holes", lambda labels: labels)
    model = tiny_model(2)
    frames = photos(*(bracket(120, 100, seed=0, blur=b)[i % 2] for i, b in enumerate((1, 2, 3, 4, 5))))
    whole = fuse_bracket(frames, model, cpu, tile=512, align=False)
    tiled = fuse_bracket(frames, model, cpu, tile=64, align=False)
    np.testing.assert_array_equal(tiled.labels, whole.labels)
    assert difference(tiled.photo.pixels, whole.photo.pixels) <= 1


@pytest.mark.parametrize("align", [True, False])
def test_swapping_the_photos_changes_nothing(align, cpu):
    model = tiny_model(2)
    near, far, _, _ = bracket(120, 150)
    one = fuse_bracket(photos(near, far), model, cpu, align=align)
    two = fuse_bracket(photos(far, near), model, cpu, align=align)
    np.testing.assert_array_equal(one.photo.pixels, two.photo.pixels)
    np.testing.assert_array_equal(one.labels, 1 - two.labels)
    assert one.shares == two.shares[::-1]


def test_gating_is_exact(cpu):
    model = tiny_model(2)
    near, far, _, mask = bracket(150, 210)
    frames = [near, far]
    labels = (1 - mask).astype(np.uint16)
    labels[:, :80] = 0
    gated = render(model, frames, labels, cpu, tile=64, depth=16)
    full = render(model, frames, labels, cpu, tile=64, depth=16, gate=False)
    assert gated.sources_run < full.sources_run == full.sources_all
    assert difference(gated.pixels, full.pixels) <= 1


def same_tiled_and_ungated(model, frames, labels, cpu):
    """Check that neither small tiles nor gating change the 16-bit picture; return it."""
    whole, tiled, ungated = (
        render(model, frames, labels, cpu, tile=tile, depth=16, gate=gate).pixels
        for tile, gate in ((512, True), (64, True), (64, False))
    )
    assert difference(tiled, whole) <= 2
    assert difference(ungated, whole) <= 2
    return whole


@pytest.mark.parametrize("scale", [1, 2])
def test_wide_transitions_are_tiled_and_gated_exactly(scale, cpu):
    model = tiny_model(scale)
    y, x = np.mgrid[:150, :210]
    slope = (60 + x / 4 + y / 9)[:, :, None].repeat(3, 2)
    frames = [(slope + 9 * i).astype(np.uint8) for i in range(3)]
    frames[2][:, :60] = textured(150, 60)
    labels = ((x + y // 3 > 118) + 2 * (x < 64)).clip(0, 2).astype(np.uint16)
    whole = same_tiled_and_ungated(model, frames, labels, cpu)
    if scale == 1:
        middle = whole[75, 75:115, 0] / 257 - slope[75, 75:115, 0]  # from frame 0 to frame 1
        assert (np.abs(np.diff(middle)) < 2).all(), "no line where both are plain"
        assert middle.max() - middle.min() > 8


@pytest.mark.parametrize(("scale", "small"), [(1, 1024), (1, 50), (3, 1024)])
def test_bands_are_tiled_and_gated_exactly(scale, small, cpu, monkeypatch):
    monkeypatch.setattr("mffsr.model.transition.SMALL", small)
    model = tiny_model(scale)
    dark = textured(150, 210) // 4
    frames = [dark, dark + 60, cv2.GaussianBlur(dark, (0, 0), 3) + 25]
    y, x = np.mgrid[:150, :210]
    labels = ((x + y // 3 > 118) + 2 * (x < 64)).clip(0, 2).astype(np.uint16)
    same_tiled_and_ungated(model, frames, labels, cpu)


def test_fusion_alone_takes_every_pixel_from_its_frame(cpu):
    near, far, sharp, mask = bracket(90, 120)
    out = render(tiny_model(1), [near, far], (1 - mask).astype(np.uint16), cpu, tile=64, depth=8).pixels
    border = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((17, 17), np.uint8)) > 0
    assert difference(out[~border], sharp[~border]) == 0
    assert difference(out, near) > 0


@pytest.mark.parametrize(("depth", "dtype"), [(8, np.uint8), (16, np.uint16)])
def test_every_value_comes_through_fusion_alone(cpu, depth, dtype):
    values = np.arange(1 << depth, dtype=dtype).reshape(-1, 64, 1)
    frame = np.concatenate((values, values[::-1], values // 2), 2)
    out = render(tiny_model(1), [frame], np.zeros(frame.shape[:2], np.uint16), cpu, tile=512, depth=depth)
    np.testing.assert_array_equal(out.pixels, frame)


@pytest.mark.parametrize(
    ("dtype", "raised", "expected"),
    [(np.uint8, 0, [0, 0, 1, 128, 255, 255]), (np.uint16, 4, [0, 8, 16, 2048, 4095, 4095])],
)
def test_what_overshoots_is_clipped_and_the_rest_rounded(dtype, raised, expected):
    values = torch.tensor([-0.3, 0.49 / 255, 1 / 255, 0.5001, 1, 1.3])
    image = values.expand(1, 3, 1, 6)
    assert _to_pixels(image, dtype, 3, raised)[0, :, 1].tolist() == expected
    colours = torch.tensor([0.1, 0.2, 0.6])[None, :, None, None]
    assert _to_pixels(colours, np.uint8, 1, 0).item() == round(0.3 * 255), "gray is the mean"
    with pytest.raises(MffsrError, match="not finite"):
        _to_pixels(image * torch.inf, dtype, 3, raised)


def test_progress_is_told_of_every_tile(cpu):
    told = []
    frame, labels = textured(64, 150), np.zeros((64, 150), np.uint16)
    render(tiny_model(1), [frame], labels, cpu, tile=64, depth=8, progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_identical_photos_are_their_own_enlargement(cpu):
    image = textured(70, 90)
    model = tiny_model(2)
    fused = fuse_bracket(photos(image, image), model, cpu)
    alone = render(model, [image], np.zeros((70, 90), np.uint16), cpu, tile=512, depth=8).pixels
    np.testing.assert_array_equal(fused.photo.pixels, alone)


@pytest.mark.parametrize("value", [0, 255])
def test_constant_photos_stay_finite(value, cpu):
    image = np.full((64, 64, 3), value, np.uint8)
    assert fuse_bracket(photos(image, image), tiny_model(2), cpu).photo.pixels.shape == (128, 128, 3)


def test_gray_16_bit_and_alpha_are_kept(cpu):
    near, far, _, _ = bracket(64, 80)
    gray = [p[:, :, :1].astype(np.uint16) * 257 for p in (near, far)]
    alpha = np.full((64, 80), 65535, np.uint16)
    alpha[:20] = 0
    given_photos = [Photo(pixels=np.ascontiguousarray(g), alpha=alpha) for g in gray]
    out = fuse_bracket(given_photos, tiny_model(2), cpu, align=False).photo
    assert out.pixels.shape == (128, 160, 1)
    assert out.pixels.dtype == np.uint16
    assert out.alpha is not None
    assert out.alpha.shape == (128, 160)
    assert out.alpha[:30].max() == 0
    assert out.alpha[60:].min() == 65535


def test_mixed_depths_are_promoted_with_a_word(cpu):
    near, far, _, _ = bracket(64, 64)
    told = []
    fused = fuse_bracket(
        photos(near, far.astype(np.uint16) * 257),
        tiny_model(1),
        cpu,
        align=False,
        events=Events(warning=told.append),
    )
    assert fused.photo.bit_depth == 16
    assert any("16-bit" in text for text in told)


def test_photos_of_two_sizes_are_refused(cpu):
    with pytest.raises(BracketError, match=r"photo 2: 80×64, but photo 1 is 64×64"):
        fuse_bracket(photos(textured(64, 64), textured(64, 80)), tiny_model(1), cpu)


def test_one_photo_is_refused(cpu):
    with pytest.raises(UsageError, match="at least 2"):
        fuse_bracket(photos(textured(64, 64)), tiny_model(1), cpu)


def test_weights_that_are_not_finite_make_no_photo(cpu):
    model = tiny_model(2)
    model.fn.d2.layers[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(MffsrError, match="not finite"):
        fuse_bracket(photos(*bracket(64, 64)[:2]), model, cpu)
    model = tiny_model(2)
    model.fapn.fpm.conv3[0].bias.data[0] = float("inf")
    with pytest.raises(MffsrError, match="not finite"):
        fuse_bracket(photos(*bracket(64, 64)[:2]), model, cpu)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_tile(cpu, monkeypatch, error):
    model = tiny_model(2)
    near, far, _, _ = bracket(200, 200)
    expected = fuse_bracket(photos(near, far), model, cpu, tile=256, align=False)
    features = type(model.fn.srn).features

    def greedy(self, image, region=None):
        if max(image.shape[2:]) > 150:
            raise error
        return features(self, image, region)

    monkeypatch.setattr(type(model.fn.srn), "features", greedy)
    told = []
    events = Events(warning=told.append)
    out = fuse_bracket(photos(near, far), model, cpu, tile=256, align=False, events=events)
    assert difference(out.photo.pixels, expected.photo.pixels) <= 1
    assert (
        told
        == [
            "out of memory: going on with tiles of 128 pixels to enlarge",
            "out of memory: going on with tiles of 64 pixels to enlarge",
        ][: len(told)]
    )
    assert told


def test_out_of_memory_ends_at_the_smallest_tile(cpu, monkeypatch):
    model = tiny_model(2)

    def greedy(self, image, region=None):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(type(model.fn.srn), "features", greedy)
    with pytest.raises(DeviceError, match="not enough memory"):
        fuse_bracket(photos(*bracket(64, 64)[:2]), model, cpu, tile=128, align=False)


def test_out_of_memory_halves_the_tiles_of_what_ran_out(cpu, monkeypatch):
    model = tiny_model(2)
    near, far, _, _ = bracket(200, 200)
    expected = fuse_bracket(photos(near, far), model, cpu, tile=256, align=False)
    focus = model.focus

    def greedy(image1, image2, wanted):
        if max(wanted[0].stop - wanted[0].start, wanted[1].stop - wanted[1].start) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return focus(image1, image2, wanted)

    monkeypatch.setattr(model, "focus", greedy)
    monkeypatch.setattr("mffsr.engine.plan_tiles", lambda *_: Plan(focus=128, render=64))
    told = []
    events = Events(warning=told.append)
    out = fuse_bracket(photos(near, far), model, cpu, align=False, events=events)
    assert told == ["out of memory: going on with tiles of 64 pixels to find focus"]
    np.testing.assert_array_equal(out.labels, expected.labels)


def test_the_time_to_expect_is_that_of_tiles_with_their_halos(cpu, monkeypatch):
    """With networks that take a second a pixel."""
    model, clock = tiny_model(2), [0.0]

    def work(image):
        clock[0] += image.shape[2] * image.shape[3]

    monkeypatch.setattr(model, "focus", lambda image, _: work(image))
    monkeypatch.setattr(model, "render", lambda images, _: work(images[0]))
    monkeypatch.setattr("mffsr.plan.time.perf_counter", lambda: clock[0])
    found = rough_seconds(model, cpu, Plan(focus=64, render=64), (64, 64, 3), 3)
    assert found == pytest.approx(64**2 * (2 + SOURCES)), "of a photo of one tile all is within the halo"
    wide = rough_seconds(model, cpu, Plan(focus=64, render=64), (640, 64, 3), 3)
    assert 10 * found < wide
    once = rough_seconds(model, cpu, Plan(focus=640, render=640), (640, 64, 3), 3)
    assert once == pytest.approx(10 * found)


def test_fp32_is_not_tf32(cpu):
    """Ampere cards and later round the inputs of convolutions unless they are told not to."""
    assert torch.backends.cudnn.allow_tf32
    with cpu.autocast():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_another_depth_is_refused(cpu):
    with pytest.raises(UsageError, match="depth 12: expected 8 or 16"):
        fuse_bracket(photos(*bracket(64, 64)[:2]), tiny_model(1), cpu, depth=12)


def test_no_frame_of_a_stack_is_taken_where_it_has_no_pixels(cpu, monkeypatch):
    """Not even by what settles undecided regions and fills holes, which know of labels alone."""
    model = tiny_model(1)
    monkeypatch.setattr(model, "focus", undecided)
    frames = [textured(120, 140, seed) for seed in range(3)]
    view = np.ones((3, 120, 140), np.bool_)
    view[1, :, 100:] = view[2, :, :40] = False

    def all_of(index):
        return lambda labels, *_: np.full_like(labels, index)

    for index in (1, 2):
        monkeypatch.setattr("mffsr.focus_map.settle_undecided", all_of(index))
        monkeypatch.setattr("mffsr.focus_map.fill_holes", lambda labels: labels)
        found = decide_focus(model, frames, cpu, tile=64, seen=lambda i: view[i])
        assert np.take_along_axis(view, found.labels[None].astype(int), 0).all()


def test_metadata_are_those_of_the_first_frame_that_is_used(cpu):
    near, far, _, _ = bracket(128, 160)
    pixels = [textured(128, 160, seed=9), near, far]
    given = [Photo(pixels=p, dpi=(d, d)) for p, d in zip(pixels, (72, 300, 200), strict=True)]
    fused = fuse_bracket(given, tiny_model(1), cpu, on_bad_frame="drop")
    assert list(fused.dropped) == [0]
    assert fused.photo.dpi == (300, 300)


def test_tiles_are_chosen_from_the_memory(cpu):
    model = tiny_model(2)
    plenty = plan_tiles(cpu, model, (4000, 6000, 3), None, 16)
    assert plenty == Plan(focus=768, render=512)
    little = plan_tiles(replace(cpu, memory=1800 << 20), model, (4000, 6000, 3), None, 16)
    assert little.render < plenty.render
    with pytest.raises(DeviceError, match="do not suffice"):
        plan_tiles(replace(cpu, memory=1 << 20), model, (4000, 6000, 3), None, 16)
    with pytest.raises(UsageError, match="at least 64"):
        plan_tiles(cpu, model, (400, 600, 3), 32, 8)


def test_a_graphics_card_gets_large_tiles(cpu):
    card = replace(cpu, device=torch.device("cuda"), dtype=torch.bfloat16, memory=64 << 30, limit=64 << 30)
    assert plan_tiles(card, tiny_model(2), (4000, 6000, 3), None, 8) == Plan(focus=2048, render=2048)


def test_what_a_plan_takes_is_of_the_pixels_that_tiles_hold(cpu):
    def memory(tile, shape=(4000, 6000, 3), runtime=cpu, depth=8):
        return memory_of(Plan(focus=tile, render=tile), runtime, tiny_model(2), shape, depth)

    assert memory(512, runtime=replace(cpu, dtype=torch.bfloat16)) < memory(512), "half as many bytes a value"
    assert memory(512, depth=16) - memory(512) == 4000 * 6000 * 2 * 2 * 3
    assert memory(512, shape=(64, 6000, 3)) > memory(64, shape=(64, 6000, 3)), "a strip is long"
    assert memory(2048, shape=(300, 400, 3)) == memory(400, shape=(300, 400, 3))


def test_memory_that_the_program_is_still_to_take_is_not_given_to_tiles(cpu):
    sides = []
    for resident in (0, 1 << 30):
        with mock.patch("mffsr.plan.resident_memory", return_value=resident):
            sides.append(
                plan_tiles(replace(cpu, memory=2 << 30), tiny_model(2), (4000, 6000, 3), None, 8).focus
            )
    assert sides[0] < sides[1]


def test_no_tile_chosen_from_the_memory_is_below_the_smallest(cpu):
    model, sides = assemble(FAPN(FapnConfig()), None), set()  # of the true reach
    for memory in range(40, 2000):  # MB
        with contextlib.suppress(DeviceError):
            plan = plan_tiles(replace(cpu, memory=memory << 20), model, (1000, 1000, 3), None, 8)
            sides |= {plan.focus, plan.render}
    assert min(sides) == 64
    assert 96 in sides  # which halved would be 48


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 9000),
    width=st.integers(1, 9000),
    megabytes=st.integers(500, 4000),
    tile=st.none() | st.integers(64, 5000),
    held=st.integers(0, 4 << 30),
)
def test_what_a_plan_needs_is_within_the_limit(height, width, megabytes, tile, held):
    model, limit, shape = tiny_model(2), megabytes << 20, (height, width, 3)
    runtime = Runtime(
        device=torch.device("cpu"), dtype=torch.float32, memory=64 << 30, limit=limit, reason=""
    )
    with mock.patch("mffsr.plan.resident_memory", return_value=held):
        try:
            plan = plan_tiles(runtime, model, shape, tile, 8)
        except DeviceError:
            assert memory_of(Plan(focus=64, render=64), runtime, model, shape, 8) > limit
            return
    assert memory_of(plan, runtime, model, shape, 8) <= limit


def test_the_least_memory_that_is_named_suffices(cpu):
    model, shape = tiny_model(2), (4000, 6000, 3)
    with pytest.raises(DeviceError) as refused:
        plan_tiles(replace(cpu, limit=700 << 20), model, shape, None, 8)
    least = int(re.search(r"^700 MB .* about (\d+) MB are needed", str(refused.value))[1])
    assert plan_tiles(replace(cpu, limit=least << 20), model, shape, None, 8) == Plan(focus=64, render=64)
    with pytest.raises(DeviceError, match="do not suffice"):
        plan_tiles(replace(cpu, limit=least - 2 << 20), model, shape, None, 8)


def test_a_tile_too_large_for_the_memory_is_halved_with_a_word(cpu):
    told, model, shape = [], tiny_model(2), (8000, 12000, 3)
    short = replace(cpu, limit=6 << 30, memory=6 << 30)
    plan = plan_tiles(short, model, shape, 4096, 8, told.append)
    assert plan.focus < 4096
    assert memory_of(plan, short, model, shape, 8) < 6 << 30
    assert told == [
        "tiles of 4096 pixels take more memory than may be used: going on with tiles of "
        f"{plan.focus} pixels to find focus, {plan.render} to enlarge"
    ]
    assert plan_tiles(cpu, model, (300, 400, 3), 4096, 8, told.append) == Plan(focus=4096, render=4096)
    assert len(told) == 1, "a photo smaller than the tile takes no more than its own size"


def test_a_picture_too_large_for_the_memory_is_no_matter_of_tiles(cpu):
    vast = SimpleNamespace(shape=(1 << 21, 1 << 21, 3))
    with pytest.raises(DeviceError, match="not enough memory for a picture of 4194304×4194304 pixels"):
        render(tiny_model(2), [vast], np.zeros((1, 1), np.uint16), cpu, tile=64, depth=8)


@pytest.mark.parametrize(
    ("given_photos", "options", "words"),
    [
        ([np.zeros((64, 64, 3))] * 2, {}, "the array is no photo: pixels must be uint8 or uint16"),
        ([np.zeros((64, 64, 4), np.uint8)] * 2, {}, "the array is no photo: .* not (64, 64, 4)"),
        ([np.zeros((0, 0, 3), np.uint8)] * 2, {}, "the array is no photo"),
        ([[[1, 2]], [[3, 4]]], {}, "list given as a photo"),
        ("ab", {}, "str given, expected a list of at least 2 photos"),
        ({"a.jpg", "b.jpg"}, {}, "set given, expected a list"),  # which has no order
        (Photo(pixels=np.zeros((4, 4, 3), np.uint8)), {}, "Photo given, expected a list"),
        ([np.zeros((64, 64, 3), np.uint8)] * 2, {"tile": 100.0}, "tile is 100.0, expected .* at least 64"),
        ([np.zeros((64, 64, 3), np.uint8)] * 2, {"max_memory": 0}, "max_memory 0: expected bytes"),
        ([np.zeros((64, 64, 3), np.uint8)] * 2, {"max_memory": "4G"}, "max_memory 4G: expected bytes"),
        ([np.zeros((64, 64, 3), np.uint8)] * 2, {"max_memory": np.inf}, "max_memory inf: expected bytes"),
        ({"near": "a.jpg", "far": "b.jpg"}, {}, "dict given, expected a list"),
        ([np.zeros((64, 64, 3), np.uint8)] * 2, {"weights": None}, "weights are NoneType, expected"),
    ],
)
def test_whatever_else_is_given_is_refused_with_a_word(given_photos, options, words, tiny_weights):
    with pytest.raises(UsageError, match=words.replace("(", r"\(").replace(")", r"\)")):
        fuse(given_photos, **{"weights": tiny_weights, "device": "cpu", "align": False} | options)


@pytest.mark.filterwarnings("ignore:.* of the picture is plain")
def test_numbers_and_arrays_of_other_types_that_mean_the_same(tiny_weights):
    near, far = (frame.astype(np.uint16) * 257 for frame in bracket(64, 80)[:2])
    swapped = [frame.astype(frame.dtype.newbyteorder()) for frame in (near, far)]
    options = {"weights": str(tiny_weights), "device": "cpu", "align": False}
    expected = fuse([near, far], scale=2, max_memory=4 << 30, **options)
    options["device"] = torch.device("cpu")
    out = fuse(swapped, scale=2.0, max_memory=float(4 << 30), **options)
    np.testing.assert_array_equal(out.pixels, expected.pixels)


def test_holes_and_islands_are_filled():
    labels = np.zeros((100, 100), np.uint16)
    labels[:, 50:] = 1
    clean = labels.copy()
    labels[20:23, 20:23] = 1  # an island in 0
    labels[70:72, 80:83] = 0  # a hole in 1
    np.testing.assert_array_equal(fill_holes(labels), clean)


@given(st.integers(0, 10**6), st.integers(1, 6))
@settings(deadline=None, max_examples=30)
def test_filling_holes_leaves_only_large_regions_and_is_stable(seed, count):
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.standard_normal((count, 60, 80)).transpose(1, 2, 0), (0, 0), 3)
    labels = np.atleast_3d(smooth).argmax(2).astype(np.uint16)
    filled = fill_holes(labels, share=0.01)
    assert set(np.unique(filled)) <= set(np.unique(labels))
    for label in np.unique(filled):
        _, _, stats, _ = cv2.connectedComponentsWithStats((filled == label).astype(np.uint8), connectivity=4)
        assert stats[1:, cv2.CC_STAT_AREA].max() >= 0.01 * labels.size * 2 / len(np.unique(labels))


def test_noise_without_any_large_region_becomes_one_frame():
    labels = np.indices((40, 40)).sum(0).astype(np.uint16) % 2
    assert len(np.unique(fill_holes(labels, share=0.1))) == 1


@given(seed=st.integers(0, 999), share=st.sampled_from([0.002, 0.01, 0.05]))
@settings(max_examples=30, deadline=None)
def test_holes_are_filled_by_a_few_rows_as_in_one_go(seed, share):
    rng = np.random.default_rng(seed)
    noise = cv2.resize(rng.normal(size=(24, 20)).astype(np.float32), (100, 120))
    labels = (np.digitize(noise + rng.normal(0, 0.2, noise.shape), [-0.5, 0.7])).astype(np.uint16)
    whole = fill_holes(labels, share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mffsr.frames.BLOCK", 1)
        np.testing.assert_array_equal(fill_holes(labels, share), whole)


def test_focus_of_a_network_that_knows(cpu, monkeypatch):
    """With a FAPN that measures sharpness the fold finds the sharpest of many frames."""
    from mffsr.model import FocusMaps
    from mffsr.model.blocks import gradient_map

    model = tiny_model(1)

    def measure(image1, image2, wanted):
        s1, s2 = (torch.nn.functional.avg_pool2d(gradient_map(i).abs(), 9, 1, 4) for i in (image1, image2))
        maps = (
            s[:, :, wanted[0], wanted[1]] / (s1 + s2 + 1e-6)[:, :, wanted[0], wanted[1]] for s in (s1, s2)
        )
        return FocusMaps(*maps)

    monkeypatch.setattr(model, "focus", measure)
    sharp = textured(90, 120)
    soft = cv2.GaussianBlur(sharp, (0, 0), 2.5)
    truth = (np.arange(120) // 30)[None].repeat(90, 0)
    frames = [np.where((truth == i)[:, :, None], sharp, soft) for i in range(4)]
    found = decide_focus(model, frames, cpu, tile=64)
    assert (found.labels == truth).mean() > 0.93
    assert preview(found.labels, 4).shape == (90, 120, 3)


def test_a_region_sharp_in_no_frame_comes_whole_from_what_surrounds_it():
    rng = np.random.default_rng(0)
    labels = np.zeros((240, 320), np.uint16)
    labels[:, 160:] = 1
    expected = labels.copy()
    contrast = np.full(labels.shape, 0.8, np.float16)
    region = (slice(60, 180), slice(200, 300))
    labels[region] = rng.integers(0, 3, (120, 100))
    contrast[region] = 0.02
    contrast[:, 158:162] = 0.02  # a border between two labels is no region
    settled = settle_undecided(labels, contrast, nowhere(labels))
    assert (settled != expected).mean() < 1e-3, "the corners of the region"
    np.testing.assert_array_equal(settled[66:174, 206:294], expected[66:174, 206:294])
    assert 0.95 * 12000 < undecided_regions(contrast).sum() <= 12000


def nowhere(labels):
    return np.zeros(labels.shape, np.bool_)


def test_the_rim_of_an_undecided_region_comes_from_the_frames_beside_it():
    labels = np.zeros((300, 300), np.uint16)
    labels[:, :100] = 1
    contrast = np.full(labels.shape, 0.8, np.float16)
    contrast[:, 60:260] = 0.02
    settled = settle_undecided(labels, contrast, nowhere(labels))
    assert (settled[:, 54:62] == 1).all(), "near what frame 1 shows sharply"
    assert len(np.unique(settled[:, 68:252])) == 1, "one frame for all that is farther from any detail"
    assert (settled[:, 258:266] == 0).all()
    assert (settled[:, :40] == 1).all(), "what is decided stays"


def test_what_is_sharp_nowhere_is_one_frame():
    labels = np.indices((64, 64)).sum(0).astype(np.uint16) % 3
    settled = settle_undecided(labels, np.zeros((64, 64), np.float16), nowhere(labels))
    assert len(np.unique(settled)) == 1


@pytest.mark.parametrize(("prefer", "expected"), [("near", 0), ("far", 3)])
def test_of_frames_that_are_all_sharp_the_preferred_one_is_taken(cpu, prefer, expected):
    sharp = textured(120, 140)
    rng = np.random.default_rng(1)
    frames = [np.clip(sharp + rng.integers(-2, 3, sharp.shape), 0, 255).astype(np.uint8) for _ in range(4)]
    found = fuse_bracket(photos(*frames), tiny_model(1), cpu, align=False, prefer=prefer)
    assert (found.labels == expected).mean() > 0.99


@pytest.mark.parametrize("tie", ["first", "last"])
def test_a_preferred_frame_is_nearly_as_sharp_as_the_sharpest(cpu, monkeypatch, tie):
    """Each frame has 0.9 of the detail of the one before: neighbours tie, but not the ends."""
    model = tiny_model(1)
    monkeypatch.setattr(model, "focus", undecided)
    sharp = textured(120, 140).astype(np.float64)
    frames = [(128 + (sharp - 128) * 0.9**i).round().astype(np.uint8) for i in range(8)]
    found = decide_focus(model, frames, cpu, tile=512, tie=tie)
    assert found.labels.max() <= 1
    found = decide_focus(model, frames[::-1], cpu, tile=512, tie=tie)
    assert found.labels.min() >= 6


def slopes(image1, image2, wanted):
    """Stand in for `JointModel.focus`: a network that takes every slope for sharpness."""
    steep = [box_mean(gradient_map(image), 9)[:, :, wanted[0], wanted[1]] for image in (image1, image2)]
    first = (steep[0] > steep[1]).to(image1.dtype)
    return FocusMaps(first, 1 - first)


@pytest.mark.parametrize("network", [undecided, slopes])
def test_the_glow_of_a_blurred_edge_is_no_detail(cpu, monkeypatch, network):
    """Beside what shines in the dark, every frame has some detail, but for the one that shows it sharply."""
    model = tiny_model(1)
    monkeypatch.setattr(model, "focus", network)
    y, x = np.mgrid[:300, :400]
    away = np.hypot(y - 150, x - 200) - 60  # pixels from the thing
    sharp = np.where(away[:, :, None] < 0, textured(300, 400) // 2 + 120, 18).astype(np.float32)
    noise = np.random.default_rng(2).normal(0, 0.7, (5, *sharp.shape))
    blurred = [sharp if blur == 0 else cv2.GaussianBlur(sharp, (0, 0), blur) for blur in (9, 5, 0, 5, 9)]
    frames = list((noise + blurred).round().clip(0, 255).astype(np.uint8))
    labels = decide_focus(model, frames, cpu, tile=400).labels
    shown = np.take_along_axis(np.stack(frames), labels[None, :, :, None].astype(int), 0)[0]
    glow = np.abs(shown - sharp).mean(2)[(away > 12) & (away < 60)]
    assert np.quantile(glow, 0.999) < 4, "of 255: no rim of light around the thing"
    assert (labels[away < -6] == 2).mean() > 0.95


def test_a_stack_takes_every_depth_from_its_frame(cpu, monkeypatch):
    """The network that sees no difference leaves what the detail says, in any order of the frames."""
    model = tiny_model(1)
    monkeypatch.setattr(model, "focus", undecided)
    sharp = textured(160, 240)
    soft = cv2.GaussianBlur(sharp, (0, 0), 3)
    truth = (np.arange(240) // 60)[None].repeat(160, 0)
    frames = [np.where((truth == i)[:, :, None], sharp, soft) for i in range(4)]
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        found = decide_focus(model, [frames[i] for i in order], cpu, tile=64)
        chosen = np.array(order)[found.labels]
        assert (chosen == truth).mean() > 0.9
        assert found.tiles_run < found.tiles_all


def test_no_frame_is_looked_for_far_from_what_it_shows_sharply(cpu, monkeypatch):
    """A network that always wants the new frame has its way only near what that frame won by detail."""
    model = tiny_model(1)

    def new_one(image1, _, wanted):
        tie = torch.ones_like(image1[:, :1, wanted[0], wanted[1]])
        return FocusMaps(0 * tie, tie)

    monkeypatch.setattr(model, "focus", new_one)
    sharp = textured(100, 900)
    soft = (sharp * 0.5 + cv2.GaussianBlur(sharp, (0, 0), 5) * 0.5).astype(np.uint8)  # plausible
    truth = (np.arange(900) // 300)[None].repeat(100, 0)
    frames = [np.where((truth == i)[:, :, None], sharp, soft) for i in range(3)]
    labels = decide_focus(model, frames, cpu, tile=128).labels
    windows = 4 * 15 + 8  # pixels: four windows of detail, and half of one more that tells the frames apart
    assert (labels[:, : 300 - windows] == 0).all()
    assert (labels[:, 270:300] == 1).mean() > 0.9, "there frame 1 is looked for"
    assert (labels[:, 600 + windows :] == 2).all()
