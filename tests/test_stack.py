"""Frames of a bracket on their way: read once, kept outside memory, registered, dropped, cropped, saved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import cv2
import imagecodecs
import numpy as np
import pytest
from conftest import bracket, textured, tiny_model, undecided
from photo_samples import camera_exif
from PIL import ImageCms

from mffsr import frames as frames_module
from mffsr.engine import fuse_bracket
from mffsr.errors import BracketError, PhotoError, UsageError
from mffsr.events import Events
from mffsr.frames import FrameStore, disk_needed, row_blocks
from mffsr.photo import Photo, is_result, read_photo, write_photo
from mffsr.photo._ifd import parse_exif
from mffsr.photo.align import Registration
from mffsr.photo.tone import LINEAR, SRGB
from mffsr.plan import Plan, memory_of, plan_tiles
from mffsr.render import enlarge_plane
from mffsr.stack import breathing, covered, field_of_view, read_stack, register, resample

ENV = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"}


def photo(pixels, **more):
    return Photo(pixels=np.ascontiguousarray(pixels), **more)


def moved(pixels, dx, dy, scale=1.0):
    """Return a frame whose content lies (dx, dy) pixels farther, as of another position of the camera."""
    height, width = pixels.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 0, scale) + np.array([[0, 0, dx], [0, 0, dy]])
    return cv2.warpAffine(
        pixels, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )


@pytest.fixture
def on_disk(monkeypatch, tmp_path):
    """Let even the smallest bracket go to a file, and say where."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(frames_module, "IN_MEMORY", 0)
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


class Loading(Sequence):
    """Photos made on access; counts how often, and how many are alive at once."""

    def __init__(self, arrays):
        self.arrays, self.loaded = arrays, []

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        self.loaded.append(index)
        return photo(self.arrays[index].copy())


@pytest.mark.parametrize("in_memory", [0, 1 << 30])
def test_a_stored_frame_is_the_array(tmp_path, monkeypatch, in_memory):
    monkeypatch.setattr("mffsr.frames.IN_MEMORY", in_memory)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 65536, (50, 37, 3)).astype(np.uint16) for _ in range(3)]
    with FrameStore(3, folders=[tmp_path]) as store:
        for index, array in enumerate(arrays):
            store.put(index, array)
        smaller, larger = arrays[1][3:40, 5:30].copy(), np.concatenate((arrays[2], arrays[2]))
        store.put(1, smaller)
        store.put(2, larger)
        for index, array in enumerate((arrays[0], smaller, larger)):
            frame = store[index]
            assert (frame.shape, frame.dtype) == (array.shape, array.dtype)
            np.testing.assert_array_equal(store.whole(index), array)
            for part in (
                (slice(0, 7), slice(2, 9)),
                (slice(20, 99), slice(None)),
                (slice(5, 5), slice(0, 4)),
            ):
                np.testing.assert_array_equal(frame[part], array[part])
        assert list(tmp_path.iterdir()) == [], "the file has no name"


def test_frames_stay_in_memory_as_long_as_all_of_them_may(monkeypatch, tmp_path):
    pixels = textured(20, 30)
    monkeypatch.setattr(frames_module, "IN_MEMORY", 3 * pixels.nbytes)
    for count, kept in ((3, True), (4, False)):
        with FrameStore(count, folders=[tmp_path]) as store:
            store.put(0, pixels)
            assert isinstance(store[0], np.ndarray) == kept
        assert (disk_needed(count, 20 * 30, 3, alpha=False) == 0) == kept
    assert disk_needed(4, 20 * 30, 3, alpha=True) == 4 * pixels.nbytes, "alpha alone is small enough"
    monkeypatch.setattr(frames_module, "IN_MEMORY", pixels.nbytes)
    assert disk_needed(4, 20 * 30, 3, alpha=True) == 4 * 4 * 20 * 30


def test_a_disk_that_fills_up_is_told(monkeypatch, on_disk):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(frames_module, "_write", full)
    words = r"kept on disk: No space left on device\n.*TMPDIR"
    with FrameStore(2) as store, pytest.raises(PhotoError, match=words):
        store.put(0, textured(64, 80))


def test_row_blocks_cover_a_frame():
    blocks = list(row_blocks((5000, 6000, 3), 2))
    assert blocks[0].start == 0
    assert blocks[-1].stop == 5000
    assert all(a.stop == b.start for a, b in pairwise(blocks))


def test_no_room_is_said_before_anything_is_computed(monkeypatch, on_disk, cpu):
    monkeypatch.setattr(frames_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=5 << 10))
    with pytest.raises(PhotoError, match=r"the frames cannot be kept on disk: .* has 0 MB free"):
        fuse_bracket(Loading([textured(64, 80, s) for s in (0, 1)]), tiny_model(1), cpu, align=False)


def test_room_for_alpha_is_sought_beside_that_of_the_frames_to_come(monkeypatch, on_disk):
    pixels = textured(64, 80)
    room = SimpleNamespace(free=3 * pixels.nbytes)
    monkeypatch.setattr(frames_module.shutil, "disk_usage", lambda folder: room)
    with FrameStore(3) as frames, FrameStore(3, beside=frames) as alphas:
        frames.put(0, pixels)
        room.free -= pixels.nbytes
        with pytest.raises(PhotoError, match="cannot be kept on disk"):
            alphas.put(0, pixels[:, :, :1])
        room.free = 3 * pixels.nbytes
        alphas.put(0, pixels[:, :, :1])


def test_why_no_folder_can_keep_the_frames_is_said_of_each(monkeypatch, on_disk, tmp_path):
    def refuse(**options):
        raise PermissionError(13, "Permission denied", str(options["dir"]))

    monkeypatch.setattr(frames_module.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(frames_module.tempfile, "gettempdir", lambda: str(tmp_path / "none"))
    with FrameStore(2, folders=[on_disk]) as store, pytest.raises(PhotoError) as error:
        store.put(0, textured(64, 80))
    assert str(error.value).count(f"{on_disk}: Permission denied") == 1
    assert f"{tmp_path / 'none'}: No such file or directory" in str(error.value)


def test_a_system_without_a_temporary_folder_needs_none_where_another_has_room(monkeypatch, on_disk):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(frames_module.tempfile, "gettempdir", none)
    with FrameStore(2, folders=[on_disk]) as store:
        store.put(0, textured(64, 80))
    monkeypatch.delenv("TMPDIR")
    with FrameStore(2) as store, pytest.raises(PhotoError, match="but the system: No usable temporary"):
        store.put(0, textured(64, 80))


def test_a_frame_that_was_not_moved_covers_even_what_opencv_cannot_warp():
    size = (40000, 2)
    still, moved_by_one = Registration(index=0), Registration(index=1, matrix=np.eye(3) + np.eye(3, k=2))
    assert covered(still, size, (0, 0, *size)).all()
    assert covered(still, size, (7, 0, 30, 2)).shape == (2, 30)
    assert not covered(moved_by_one, (50, 2), (0, 0, 50, 2)).all()
    assert not covered(still, (50, 2), (10, 0, 50, 2)).all()


def read(*photos):
    """Return the stack of photos, its frames and alpha planes as arrays, and the warnings."""
    told = []
    with FrameStore(len(photos)) as frames, FrameStore(len(photos)) as alphas:
        stack = read_stack(list(photos), frames, alphas, Events(warning=told.append))
        every = [[store.whole(i) for i in range(len(store))] for store in (frames, alphas)]
        return stack, *every, told


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"icc": b"another"}, "photo 2: another colour profile than photo 1"),
        ({"alpha": np.zeros((20, 30), np.uint8)}, "some photos have transparency, others have none"),
    ],
)
def test_photos_that_are_no_bracket_are_refused_in_any_order(other, words):
    one, two = photo(textured(20, 30)), photo(textured(20, 30), **other)
    for pair in ((one, two), (two, one)):
        with pytest.raises(BracketError, match=words):
            read(*pair)
    read(two, two)


def test_photos_of_two_kinds_become_one_kind():
    gray, deep = textured(20, 30)[:, :, :1] // 2, textured(20, 30, 1).astype(np.uint16)
    gray[0, 0] = 255
    alpha = np.full((20, 30), 100, np.uint8)
    stack, frames, alphas, told = read(photo(gray, alpha=alpha), photo(deep, alpha=alpha.astype(np.uint16)))
    assert stack.raised == 0, "white of 8 bits is white"
    np.testing.assert_array_equal(frames[0], gray.astype(np.uint16).repeat(3, 2) * 257)
    np.testing.assert_array_equal(frames[1], deep)
    assert [int(plane.max()) for plane in alphas] == [100 * 257, 100]
    assert [text.partition(" photos mixed")[0] for text in told] == ["8-bit and 16-bit", "gray and colour"]
    dark = [photo(gray // 20), photo((gray // 20).astype(np.uint16) * 257)]
    stack, frames, _, _ = read(*dark)
    assert stack.raised == 4
    np.testing.assert_array_equal(frames[0], frames[1])
    assert len(set(stack.digests)) == 1, "the same picture in two depths"
    assert stack.lowered(np.array([0, 7, 8, 23, 24], np.uint16)).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (-1, 0), (0, 1), (0, -1)])
def test_a_photo_keeps_its_size_where_no_more_than_three_pixels_are_missing(dx, dy):
    def view(pixels, **options):
        matrix = np.array([[1, 0, dx * pixels], [0, 1, dy * pixels], [0, 0, 1]], float)
        return field_of_view([Registration(), Registration(index=1, matrix=matrix)], (100, 80), **options)

    assert view(3) == (0, 0, 100, 80)
    assert view(4) == (4 * (dx < 0), 4 * (dy < 0), 100 - 4 * abs(dx), 80 - 4 * abs(dy))
    assert view(4, crop=False) == (0, 0, 100, 80)


def test_a_registered_frame_has_its_own_alpha_and_is_no_result():
    given = photo(textured(20, 40), alpha=np.full((20, 40), 100, np.uint8), xmp=b"<x/>", dpi=(300, 300))
    moved = np.array([[1, 0, 0.5], [0, 1, 0], [0, 0, 1]])
    lie = [Registration(), Registration(index=1, matrix=moved, gain=(1.5, 1.5, 1.5))]
    got = {}
    with FrameStore(2) as frames, FrameStore(2) as alphas:
        stack = read_stack([given, given], frames, alphas, Events())
        resample(stack, lie, Events(), crop=False, save=got.__setitem__)
    assert got[1].pixels.mean() > 1.1 * got[0].pixels.mean()
    for frame in got.values():
        assert (frame.alpha == 100).all(), "alpha is no light"
        assert frame.xmp is None
        assert frame.dpi == (300, 300)


def test_profiles_may_differ_in_their_date():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    dated = [
        profile[:24] + bytes([7, 234, 0, day]) + profile[28:84] + bytes([day] * 16) + profile[100:]
        for day in (1, 2)
    ]
    stack, *_ = read(*(photo(textured(20, 40), icc=icc) for icc in dated))
    assert [head.icc for head in stack.heads] == dated


def test_a_picture_of_which_little_is_left_is_told():
    told, pixels = [], textured(60, 80)
    with FrameStore(2) as frames, FrameStore(2) as alphas:
        stack = read_stack([photo(pixels), photo(pixels[:, ::-1])], frames, alphas, Events())
        for dx in (8, 32):
            shift = np.array([[1, 0, dx], [0, 1, 0], [0, 0, 1]])
            lie = [Registration(), Registration(index=1, matrix=shift)]
            for crop in (False, True):
                resample(stack, lie, Events(warning=told.append), crop=crop)
    assert told == ["cut to 60% of the picture, the field that all photos show; --no-crop keeps the rest"]


def test_every_pixel_has_the_alpha_of_its_own_frame():
    planes = [np.full((20, 30, 1), value, np.uint16) for value in (0, 40_000, 65_535)]
    labels = (np.arange(30) // 10)[None].repeat(20, 0).astype(np.uint16)
    np.testing.assert_array_equal(enlarge_plane(planes, labels, 1)[7, ::10], [0, 40_000, 65_535])
    np.testing.assert_array_equal(enlarge_plane(planes, labels, 2)[7, 5::20], [0, 40_000, 65_535])


def test_alpha_has_no_rings_at_its_edges():
    pixels, alpha = textured(20, 40), np.zeros((20, 40), np.uint8)
    alpha[:, 20:] = 255
    shift = np.array([[1, 0, 0.5], [0, 1, 0], [0, 0, 1]])
    with FrameStore(2) as frames, FrameStore(2) as alphas:
        stack = read_stack([photo(pixels, alpha=alpha)] * 2, frames, alphas, Events())
        resample(stack, [Registration(index=0), Registration(index=1, matrix=shift)], Events(), crop=False)
        planes = [alphas.whole(0), alphas.whole(1)]
    assert 100 < planes[1][10, 19, 0] < 155
    for index in (0, 1):
        enlarged = enlarge_plane(planes, np.full((20, 40), index, np.uint16), 3)
        steps = np.diff(enlarged.astype(int), axis=1)
        assert steps.min() == 0, "rises once, and never falls"
        assert (enlarged[0, 0], enlarged[0, -1]) == (0, 255)


def test_loading_on_access_reads_every_photo_once_and_changes_no_pixel(on_disk, cpu):
    near, far, _, _ = bracket(96, 120)
    third = moved(far, 1.3, -0.8)
    listed = fuse_bracket([photo(p) for p in (near, far, third)], tiny_model(2), cpu, tile=64)
    lazy = Loading([near, far, third])
    loaded = fuse_bracket(lazy, tiny_model(2), cpu, tile=64)
    assert lazy.loaded == [0, 1, 2]
    np.testing.assert_array_equal(loaded.photo.pixels, listed.photo.pixels)
    np.testing.assert_array_equal(loaded.labels, listed.labels)
    assert list(on_disk.iterdir()) == []


def test_paths_are_read_by_the_engine_itself(tmp_path, cpu):
    near, far, _, _ = bracket(64, 80)
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, pixels in zip(paths, (near, far), strict=True):
        write_photo(photo(pixels), path)
    expected = fuse_bracket([photo(near), photo(far)], tiny_model(1), cpu, align=False)
    fused = fuse_bracket(paths, tiny_model(1), cpu, align=False)
    np.testing.assert_array_equal(fused.photo.pixels, expected.photo.pixels)


MEASURE = """
import resource, sys
import numpy as np, torch
sys.path.insert(0, {tests!r})
from conftest import Runtime, tiny_model
import mffsr.stack
from mffsr.engine import fuse_bracket
from mffsr.model import FocusMaps
from mffsr.photo import Photo
from mffsr.photo.align import Registration
model = tiny_model(1)
def focus(a, b, wanted):
    d = (a - b).mean(1, keepdim=True)[:, :, wanted[0], wanted[1]]
    return FocusMaps(0.5 + d / 2, 0.5 - d / 2)
model.focus = focus
base = np.random.default_rng(0).integers(0, 256, (1200, 1700, 3)).astype(np.uint8)
# measuring how frames lie is tested elsewhere and keeps three reduced frames; here each is merely warped
def lie(load, count, **options):
    for i in range(count):
        load(i)
    shifts = [np.array([[1, 0, i % 3 / 4], [0, 1, 0], [0, 0, 1.0]]) for i in range(count)]
    return [Registration(index=i, matrix=shift) for i, shift in enumerate(shifts)]
mffsr.stack.register_bracket = lie
class Frames:
    def __len__(self): return {count}
    def __getitem__(self, i):
        if i >= {count}: raise IndexError
        return Photo(pixels=np.ascontiguousarray(np.roll(base, i % 2, 1)))
cpu = Runtime(device=torch.device("cpu"), dtype=torch.float32, memory=4 << 30, reason="test")
fused = fuse_bracket(Frames(), model, cpu, tile=512, align=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_frames():
    pytest.importorskip("resource")
    peaks = []
    for count in (4, 16):
        code = MEASURE.format(tests=os.path.dirname(__file__), count=count)
        run = subprocess.run(
            [sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        peaks.append(int(run.stdout))
    assert peaks[1] <= 1.1 * peaks[0], peaks


def test_a_bad_frame_is_refused_by_name_or_dropped_with_a_word(cpu):
    near, far, _, _ = bracket(128, 160)
    frames = [photo(near), photo(textured(128, 160, seed=9)), photo(far)]
    with pytest.raises(BracketError, match="photo 2 shows another scene"):
        fuse_bracket(frames, tiny_model(1), cpu)
    told = []
    fused = fuse_bracket(frames, tiny_model(1), cpu, on_bad_frame="drop", events=Events(warning=told.append))
    assert list(fused.dropped) == [1]
    assert [r.index for r in fused.registrations] == [0, 2]
    assert fused.shares[1] == 0
    assert set(np.unique(fused.labels)) <= {0, 2}
    assert any(text.startswith("photo 2") and "left out" in text for text in told)
    alone = fuse_bracket([frames[0], frames[2]], tiny_model(1), cpu)
    np.testing.assert_array_equal(fused.photo.pixels, alone.photo.pixels)


def test_exposure_is_left_alone_if_the_user_says_so(cpu):
    near, far, _, _ = bracket(128, 160)
    frames = [photo(near), photo((far * 0.8).astype(np.uint8))]
    first, second = fuse_bracket(frames, tiny_model(1), cpu).registrations
    assert abs(first.exposure - second.exposure) > 0.3
    kept = fuse_bracket(frames, tiny_model(1), cpu, exposure=False)
    assert [r.exposure for r in kept.registrations] == [0, 0]
    alone = fuse_bracket(frames, tiny_model(1), cpu, align=False)
    np.testing.assert_array_equal(kept.photo.pixels, alone.photo.pixels)


def test_crop_cuts_to_the_common_field_and_no_crop_keeps_the_size(cpu, monkeypatch):
    monkeypatch.setattr("mffsr.engine.fill_holes", lambda labels: labels)
    near, far, _, _ = bracket(140, 180)
    frames = [photo(near), photo(moved(far, 9, -6))]
    cut = fuse_bracket(frames, tiny_model(1), cpu)
    assert cut.photo.size == (171, 134)
    whole = fuse_bracket(frames, tiny_model(1), cpu, crop=False)
    assert whole.photo.size == (180, 140)
    reference = whole.registrations[0].reference
    other = whole.registrations[1 - reference]
    outside = ~covered(other, (180, 140), (0, 0, 180, 140))
    assert outside.sum() > 1000
    assert (whole.labels[outside] == reference).all(), "no frame is taken where it has no pixels"


def test_registered_frames_are_handed_out_at_their_depth(cpu):
    near, far, _, _ = bracket(140, 180)
    deep = [p.astype(np.uint16) * 257 for p in (near, moved(far, 9, -6))]
    got = {}
    fused = fuse_bracket([photo(p) for p in deep], tiny_model(1), cpu, save_aligned=got.__setitem__)
    assert sorted(got) == [0, 1]
    assert all(p.bit_depth == 16 and p.size == fused.photo.size for p in got.values())
    fixed = fused.registrations[0].reference
    kept = cv2.matchTemplate(
        (deep[fixed] >> 8).astype(np.uint8), (got[fixed].pixels >> 8).astype(np.uint8), 0
    )
    assert kept.min() < 1e4, "the reference is cut out, not resampled"


@pytest.mark.parametrize("bits", [9, 12])
@pytest.mark.parametrize("scale", [1, 2])
def test_a_camera_of_fewer_bits_is_as_good_as_one_of_sixteen(bits, scale, cpu):
    near, far, _, _ = bracket(120, 150)
    deep = [p.astype(np.uint16) << 1 for p in (near, moved(far, 3, -2))]
    raised = [p << 7 for p in deep]
    dim = [p << (bits - 9) for p in deep]
    got = {}
    model = tiny_model(scale)
    fused = fuse_bracket([photo(p) for p in dim], model, cpu, save_aligned=got.__setitem__)
    full = fuse_bracket([photo(p) for p in raised], model, cpu)
    np.testing.assert_array_equal(fused.labels, full.labels)
    lowered = np.rint(full.photo.pixels / (1 << (16 - bits)))
    np.testing.assert_allclose(fused.photo.pixels, lowered, atol=1)
    assert fused.photo.pixels.max() < 1 << bits, "no level that the camera does not have"
    assert all(p.pixels.max() < 1 << bits for p in got.values())
    if scale == 1:
        reference = fused.registrations[0].reference
        assert got[reference].pixels.max() == dim[reference].max(), "not a level is lost"
    inspected = {}
    fuse_bracket([photo(p) for p in dim], model, cpu, inspect=lambda frames, _: inspected.update(frames))
    assert max(frame.max() for frame in inspected.values()) < 1 << bits


def test_a_dark_bracket_of_8_bits_is_judged_as_a_bright_one(cpu):
    near, far, _, _ = bracket(140, 180)
    dark = [p // 8 for p in (near, moved(far, 4, -2))]
    model = tiny_model(1)
    got, expected = (
        fuse_bracket([photo(p) for p in pair], model, cpu) for pair in (dark, [p * 8 for p in dark])
    )
    for one, other in zip(got.registrations, expected.registrations, strict=True):
        np.testing.assert_array_equal(one.matrix, other.matrix)
    assert (got.labels == expected.labels).mean() > 0.99
    assert got.photo.pixels.max() <= 31


def test_a_defect_of_the_sensor_leaves_no_frame_too_dark_to_judge(cpu):
    near, far, _, _ = bracket(140, 180)
    near, far = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.uint16)[:, :, None] for p in (near, far))
    dim = [near * 4 + 100, moved(far * 3 + 100, 4, -2).reshape(far.shape)]
    spoilt = [p.copy() for p in dim]
    for frame in spoilt:
        frame[20, 30] = 65535
    model = tiny_model(1)
    whole = fuse_bracket([photo(p) for p in dim], model, cpu, crop=False)
    fused = fuse_bracket([photo(p) for p in spoilt], model, cpu, crop=False)
    for one, other in zip(whole.registrations, fused.registrations, strict=True):
        np.testing.assert_allclose(one.matrix, other.matrix, atol=0.02)
        np.testing.assert_allclose(one.gain, other.gain, rtol=0.03)
    assert (whole.labels == fused.labels).mean() > 0.98
    apart = np.abs(whole.photo.pixels.astype(float) - fused.photo.pixels)
    assert np.median(apart) < 3, "of some 600"
    assert fused.photo.pixels.max() > 40000, "it is judged as if it were white, but kept"


def test_a_frame_that_stays_where_it_was_is_not_stored_again(on_disk):
    pixels, alpha = textured(64, 64), np.full((64, 64), 9, np.uint8)
    frames = [photo(pixels, alpha=alpha), photo(pixels, alpha=alpha)]
    with FrameStore(2) as store, FrameStore(2) as alphas:
        stack = read_stack(frames, store, alphas, Events())
        resample(stack, [Registration(index=0), Registration(index=1)], Events())
        assert stack.frames[1] is frames[1].pixels, "it is borrowed still"
        assert list(on_disk.iterdir()) == []


@pytest.mark.parametrize("erased", [0, 255])
def test_no_rim_of_what_was_erased_around_a_cut_out(erased, cpu):
    alpha = np.zeros((64, 64), np.uint8)
    alpha[16:48, 16:48] = 255
    frames = []
    for seed in (0, 1):
        pixels = textured(64, 64, seed) // 4 + 120
        pixels[alpha == 0] = erased
        frames.append(photo(pixels, alpha=alpha))
    with FrameStore(2) as store, FrameStore(2) as alphas:
        stack = read_stack(frames, store, alphas, Events())
        for number, frame in enumerate(frames):
            kept = stack.frames.whole(number)
            assert 120 <= kept.min() <= kept.max() < 190
            np.testing.assert_array_equal(kept[alpha > 0], frame.pixels[alpha > 0])
            np.testing.assert_array_equal(kept[:16, 16:48], frame.pixels[16:17, 16:48].repeat(16, 0))
    hidden = photo(textured(64, 64), alpha=alpha)
    with FrameStore(2) as store, FrameStore(2) as alphas:
        stack = read_stack([hidden, hidden], store, alphas, Events())
        np.testing.assert_array_equal(stack.frames.whole(0), hidden.pixels)


def test_which_is_named_first_does_not_matter_where_only_alpha_differs(cpu):
    pixels = textured(64, 64)
    faint, solid = (photo(pixels, alpha=np.full((64, 64), value, np.uint8)) for value in (0, 255))
    found = [fuse_bracket(pair, tiny_model(1), cpu) for pair in ([faint, solid], [solid, faint])]
    np.testing.assert_array_equal(*(fusion.photo.alpha for fusion in found))


def test_near_and_far():
    def bracket_of(*scales):
        return [Registration(index=i, scale=s) for i, s in enumerate(scales)]

    assert breathing(None) == 0
    assert breathing(bracket_of(1.0, 1.0)) == 0
    assert breathing(bracket_of(1.03, 1.0)) == 1
    assert breathing(bracket_of(0.97, 1.0)) == -1
    assert breathing(bracket_of(0.999, 1.0)) == 0, "as much as registration may err"


@pytest.mark.parametrize("swap", [False, True])
def test_prefer_decides_ties_whatever_the_direction(swap, cpu, monkeypatch):
    model = tiny_model(1)
    monkeypatch.setattr(model, "focus", undecided)
    arrays = [textured(64, 64, s) for s in ((1, 0) if swap else (0, 1))]
    for prefer, winner in (("near", 0), ("far", 1)):
        fused = fuse_bracket([photo(a) for a in arrays], model, cpu, align=False, prefer=prefer)
        assert (fused.labels == winner).all()
    with pytest.raises(UsageError, match="prefer"):
        fuse_bracket([photo(a) for a in arrays], model, cpu, align=False, prefer="left")


def test_the_plan_says_what_it_takes(cpu):
    model = tiny_model(2)
    shape = (3000, 4000, 3)
    plan = plan_tiles(cpu, model, shape, None, 8)
    assert memory_of(Plan(focus=64, render=64), cpu, model, shape, 8) < memory_of(plan, cpu, model, shape, 8)
    assert memory_of(plan, cpu, model, shape, 8) < 3 << 30, "20 frames of 12 megapixels on a CPU"


@pytest.fixture
def fuse(tmp_path, tiny_weights):
    near, far, _, _ = bracket(128, 160)
    frames = {"a": near, "b": moved(far, 7, 4), "c": textured(128, 160, seed=9)}
    for name, pixels in frames.items():
        deep = replace(photo(pixels.astype(np.uint16) * 257), exif=camera_exif())
        write_photo(deep, tmp_path / f"{name}.tif")

    def run(*arguments):
        command = [
            sys.executable,
            "-m",
            "mffsr",
            "fuse",
            "--weights",
            str(tiny_weights),
            "-s",
            "1",
            *arguments,
        ]
        return subprocess.run(command, cwd=tmp_path, env=ENV, capture_output=True, text=True, check=False)

    return run


def test_the_command_line_of_real_brackets(fuse, tmp_path):
    done = fuse("a.tif", "b.tif", "-o", "out.tif", "--save-aligned", "aligned", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert abs(data["frames"][1]["shift"][0] - data["frames"][0]["shift"][0]) == pytest.approx(7, abs=0.3)
    names = sorted(path.name for path in (tmp_path / "aligned").iterdir())
    assert names == ["001-a.tif", "002-b.tif"]
    saved = [read_photo(tmp_path / "aligned" / name) for name in names]
    assert {p.size for p in saved} == {read_photo(tmp_path / "out.tif").size}
    assert {p.bit_depth for p in saved} == {16}
    first = saved[0]
    assert parse_exif(first.exif).main[0x010F].data == b"Maker\0", "the camera's name stays"
    assert b"2024:05:06" in first.exif
    assert not any(is_result(tmp_path / "aligned" / name) for name in names), "they may be fused again"
    again = fuse("a.tif", "b.tif", "-o", "new.tif", "--save-aligned", "aligned")
    assert again.returncode == 1
    assert "001-a.tif" in again.stderr
    assert not (tmp_path / "new.tif").exists()


@pytest.mark.parametrize(
    ("dtype", "channels", "profile", "linear"),
    [
        (np.uint16, 1, False, True),
        (np.uint16, 1, True, False),
        (np.uint16, 3, False, False),
        (np.uint8, 1, False, False),
    ],
)
def test_gray_of_16_bits_without_a_profile_counts_light(dtype, channels, profile, linear):
    icc = bytes(imagecodecs.cms_profile("gray", whitepoint=[0.3127, 0.329, 1], gamma=2.2))
    pixels = np.full((20, 20, channels), np.iinfo(dtype).max, dtype)
    with FrameStore(2) as frames, FrameStore(2) as alphas:
        both = [photo(pixels, icc=icc if profile else None)] * 2
        assert (read_stack(both, frames, alphas, Events()).curve is LINEAR) == linear


@pytest.mark.parametrize(("gamma", "coded"), [(1.0, True), (2.2, False), (None, True)])
def test_linear_frames_are_judged_as_cameras_would_show_them(gamma, coded):
    """FAPN has learned from such; gray of 16 bits without a profile is linear."""
    icc = gamma and bytes(imagecodecs.cms_profile("gray", whitepoint=[0.3127, 0.329, 1], gamma=gamma))
    lightness = np.linspace(0, 1, 64 * 64).reshape(64, 64, 1)
    linear = np.rint(np.interp(lightness, np.linspace(0, 1, 65536), SRGB.light) * 65535).astype(np.uint16)
    with FrameStore(2) as frames, FrameStore(2) as alphas:
        stack = read_stack([photo(linear, icc=icc)] * 2, frames, alphas, Events())
        seen = stack.to_judge[0][slice(0, 64), slice(None)]
    if coded:
        np.testing.assert_allclose(seen / 65535, lightness, atol=2e-4)
    else:
        assert np.array_equal(seen, linear)


@pytest.mark.parametrize(("factor", "exposure", "told"), [(0.9, True, 0), (0.6, True, 1), (0.6, False, 0)])
def test_exposures_that_differ_much_are_told(factor, exposure, told):
    pixels = textured(120, 160) // 2 + 40
    darker = (pixels * factor).astype(np.uint8)  # by 0.3 and 1.6 EV
    warnings = []
    with FrameStore(2) as frames, FrameStore(2) as alphas:
        events = Events(warning=warnings.append)
        stack = read_stack([photo(pixels), photo(darker)], frames, alphas, events)
        register(stack, events, exposure=exposure)
    assert len(warnings) == told
    assert all("EV apart, and are matched; --no-exposure" in text for text in warnings)


@pytest.mark.parametrize(("motion", "told"), [("similarity", 1), ("homography", 0)])
def test_a_frame_that_hardly_fits_is_told(motion, told):
    pixels = textured(240, 320)
    corners = np.array([[0, 0], [320, 0], [320, 240], [0, 240]], np.float32)
    tilt = cv2.getPerspectiveTransform(corners, corners + np.float32([[9, 0], [-9, 0], [9, 0], [-9, 0]]))
    tilted = cv2.warpPerspective(pixels, tilt, (320, 240), borderMode=cv2.BORDER_REFLECT)
    warnings = []
    with FrameStore(2) as frames, FrameStore(2) as alphas:
        events = Events(warning=warnings.append)
        register(read_stack([photo(pixels), photo(tilted)], frames, alphas, events), events, motion=motion)
    assert len(warnings) == told
    assert all("pixels off; --motion homography" in text for text in warnings)


def test_another_scene_is_refused_and_dropped_on_the_command_line(fuse, tmp_path):
    refused = fuse("a.tif", "c.tif", "b.tif", "-o", "out.tif")
    assert refused.returncode == 1
    assert "c.tif shows another scene" in refused.stderr
    assert "--on-bad-frame drop" in refused.stderr
    assert not (tmp_path / "out.tif").exists()
    dropped = fuse("a.tif", "c.tif", "b.tif", "-o", "out.tif", "--on-bad-frame", "drop", "--json")
    assert dropped.returncode == 0, dropped.stderr
    data = json.loads(dropped.stdout)
    assert "another scene" in data["frames"][1]["dropped"]
    assert data["frames"][1]["share"] == 0
    assert any("c.tif" in text for text in data["warnings"])


def test_dry_run_prints_the_registration_and_what_it_takes(fuse, tmp_path):
    result = fuse("a.tif", "b.tif", "-o", "out.tif", "-n")
    assert result.returncode == 0, result.stderr
    for word in ("shift", "rotation", "scale", "EV", "(reference)", "memory", "disk", "about"):
        assert word in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif", "c.tif"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_leaves_no_temporary_frames(tmp_path, tiny_weights, number):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    near, far, _, _ = bracket(400, 500)
    for name, pixels in (("a", near), ("b", far)):
        write_photo(photo(pixels), tmp_path / f"{name}.png")
    code = "import mffsr.frames; mffsr.frames.IN_MEMORY = 0; from mffsr.cli.app import app; app()"
    command = [
        sys.executable,
        "-c",
        code,
        "fuse",
        "a.png",
        "b.png",
        "-o",
        "out.png",
        "--weights",
        str(tiny_weights),
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=ENV | {"TMPDIR": str(scratch)}, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("Reading"):
            break
    time.sleep(0.2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (128 + number, 0), errors
    assert not [p for p in scratch.iterdir() if p.name.startswith(".mffsr")]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
