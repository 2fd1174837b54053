"""Stacks in one TIFF, as microscopes and ImageJ write them: their planes are the photos of a bracket."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from conftest import bracket

import mffsr
from mffsr.batch_plan import read_plan
from mffsr.cli.outputs import aligned_names, default_output
from mffsr.errors import PhotoError
from mffsr.photo import planes_of, read_header, read_photo
from mffsr.photo.brackets import find_brackets

ENV = os.environ | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "100"}
GRAY = np.random.default_rng(0).integers(0, 65536, (3, 40, 60), dtype=np.uint16)
COLOUR = np.random.default_rng(1).integers(0, 256, (3, 40, 60, 3), dtype=np.uint8)
KINDS = {
    "plain": (GRAY, {"photometric": "minisblack"}),
    "separate": (GRAY, {"photometric": "minisblack", "metadata": None, "compression": "lzw"}),
    "big-endian": (GRAY, {"photometric": "minisblack", "byteorder": ">", "bigtiff": True}),
    "imagej": (GRAY, {"imagej": True, "metadata": {"axes": "ZYX"}}),
    "imagej, one page": (GRAY, {"imagej": True, "metadata": {"axes": "ZYX"}, "truncate": True}),
    "imagej, colour": (COLOUR, {"imagej": True, "metadata": {"axes": "ZYXS"}}),
    "times": (GRAY, {"imagej": True, "metadata": {"axes": "TYX"}}),
    "ome": (GRAY, {"ome": True, "photometric": "minisblack", "metadata": {"axes": "ZYX"}}),
    "colour": (COLOUR, {"photometric": "rgb", "compression": "zlib"}),
    "page by page": (GRAY, {"photometric": "minisblack", "append": True}),
    "page by page, colour": (COLOUR, {"photometric": "rgb", "append": True, "compression": "zlib"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_planes_of_a_stack(kind, tmp_path):
    pixels, how = KINDS[kind]
    path = tmp_path / "stack.tif"
    for part in pixels if "append" in how else [pixels]:
        tifffile.imwrite(path, part, **how)
    planes = planes_of(path)
    assert [plane.name for plane in planes] == ["stack.tif[0]", "stack.tif[1]", "stack.tif[2]"]
    told = []
    for plane, expected in zip(planes, pixels, strict=True):
        found = read_photo(plane, warn=told.append)
        assert np.array_equal(found.pixels, expected.reshape(found.pixels.shape))
        assert read_header(plane).size == (60, 40)
        assert planes_of(plane) == [plane]
    assert not told
    with pytest.raises(PhotoError, match=r"stack\.tif\[3\]: is not there: the file has 3, counted from 0"):
        read_photo(tmp_path / "stack.tif[3]")


@pytest.mark.parametrize("name", ["cell.lsm", "cell", "cell.tif[1]"])
def test_a_stack_of_any_name(name, tmp_path):
    tifffile.imwrite(tmp_path / name, GRAY, photometric="minisblack")
    planes = planes_of(tmp_path / name)
    assert [plane.name for plane in planes] == [f"{name}[{number}]" for number in range(3)]
    for plane, expected in zip(planes, GRAY, strict=True):
        assert np.array_equal(read_photo(plane).pixels[:, :, 0], expected)
    assert default_output(planes[0], 2, 16).name == f"{(tmp_path / name).stem}-fused-x2.tif"
    assert aligned_names(planes, tmp_path)[2].name == f"003-{(tmp_path / name).stem}.tif"


@pytest.mark.parametrize(
    ("axes", "words"),
    [("CYX", "3 channels"), ("ZCYX", "3 planes and 2 channels"), ("TZYX", "3 times and 2 planes")],
)
def test_what_is_no_stack_of_planes_alone_is_refused(axes, words, tmp_path):
    pixels = GRAY if len(axes) == 3 else np.stack([GRAY, GRAY], 1)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": axes})
    with pytest.raises(PhotoError, match=f"is a stack of {words}; save one that has planes of focus alone"):
        planes_of(tmp_path / "a.tif")
    read_photo(tmp_path / "a.tif")


def test_a_photo_and_its_thumbnail_are_no_stack(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(GRAY[0], photometric="minisblack", metadata=None)
        file.write(GRAY[0][::4, ::4], photometric="minisblack", metadata=None, subfiletype=1)
    assert planes_of(path) == [path]


def test_pages_in_circles_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GRAY, photometric="minisblack")
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (fields,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * fields, first)
    path.write_bytes(data)
    with pytest.raises(PhotoError, match="in circles"):
        planes_of(path)
    assert np.array_equal(read_photo(path).pixels[:, :, 0], GRAY[0])


def test_a_plane_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GRAY, photometric="minisblack", byteorder=">")
    with tifffile.TiffFile(path) as tiff:
        (place,) = tiff.pages[2].dataoffsets
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack(">I", place), struct.pack(">I", len(data) - 9)))
    read_photo(tmp_path / "a.tif[1]")
    with pytest.raises(PhotoError, match=r"a\.tif\[2\]: .*cut short"):
        read_photo(tmp_path / "a.tif[2]")


def test_a_large_stack_of_imagej_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GRAY, imagej=True, metadata={"axes": "ZYX"}, truncate=True)
    path.write_bytes(path.read_bytes()[: -GRAY[0].nbytes - 1])
    with pytest.raises(PhotoError, match=r"a\.tif: .*cut short: planes that it tells of"):
        planes_of(path)


def test_names_that_look_like_planes(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GRAY, photometric="minisblack")
    tifffile.imwrite(tmp_path / "a.tif[1]", GRAY[2], photometric="minisblack")
    assert np.array_equal(read_photo(tmp_path / "a.tif[1]").pixels[:, :, 0], GRAY[2]), "a file of that name"
    mffsr.write_photo(mffsr.Photo(pixels=COLOUR[0]), tmp_path / "b.png")
    (tmp_path / "b.png").rename(tmp_path / "b.tif")
    assert planes_of(tmp_path / "b.tif") == [tmp_path / "b.tif"]
    with pytest.raises(PhotoError, match=r"b\.tif\[0\]: is not there: no TIFF"):
        read_photo(tmp_path / "b.tif[0]")
    with pytest.raises(PhotoError, match="No such file"):
        read_photo(tmp_path / "c.tif[0]")


@pytest.fixture
def stack(tmp_path):
    """A folder with a stack of two planes."""
    near, far, _, _ = bracket(96, 128)
    path = tmp_path / "in" / "cell.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, np.stack([near, far]), photometric="rgb", metadata={"axes": "ZYXS"})
    return path


def run(folder, *arguments):
    command = [sys.executable, "-m", "mffsr", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True, check=False)


def test_fuse_takes_a_stack(stack, tiny_weights):
    options = ("-s", "1", "--weights", tiny_weights, "--no-align")
    done = run(stack.parent, "fuse", "cell.tif", *options, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["output"] == "cell-fused-x1.tif"
    assert [frame["path"] for frame in told["frames"]] == ["cell.tif[0]", "cell.tif[1]"]
    assert not any("page" in text for text in told["warnings"])
    named = run(stack.parent, "fuse", "cell.tif[0]", "cell.tif[1]", *options, "-o", "named.tif")
    assert named.returncode == 0, named.stderr
    fused = read_photo(stack.with_name("cell-fused-x1.tif")).pixels
    assert np.array_equal(fused, read_photo(stack.with_name("named.tif")).pixels)
    with pytest.warns(UserWarning, match="of the picture is plain") as warned:
        here = mffsr.fuse([stack], scale=1, weights=str(tiny_weights), align=False)
    assert warned[0].filename == __file__, "it names the line that asked for it"
    assert np.array_equal(fused, here.pixels)
    for arguments, words in (
        (("cell.tif", "-o", "cell.tif", "-f"), "is one of the inputs"),
        (("cell.tif[0]", "cell.tif[0]"), "given twice"),
        (("cell.tif[0]",), "1 photo given"),
    ):
        refused = run(stack.parent, "fuse", *arguments)
        assert refused.returncode == 2
        assert words in refused.stderr
    refused = run(stack.parent, "fuse", "cell.tif[0]", "cell.tif[2]")
    assert refused.returncode == 1
    assert "cell.tif[2]: is not there: the file has 2, counted from 0" in refused.stderr
    assert "device" not in refused.stderr, "nothing was loaded for it"


def test_every_stack_is_a_bracket_of_a_batch(stack, tmp_path, tiny_weights):
    deeper = stack.parent / "more" / "other.tif"
    deeper.parent.mkdir()
    deeper.write_bytes(stack.read_bytes())
    tifffile.imwrite(stack.parent / "channels.tif", GRAY, imagej=True)
    for group in ("auto", "folder", "time"):
        found = find_brackets(stack.parent, group=group)
        assert [(one.name, len(one.photos)) for one in found.brackets] == [("cell", 2), ("more/other", 2)]
        assert [path.name for path, _ in found.left_out] == ["channels.tif"]
    options = ("-s", "1", "--weights", tiny_weights, "--no-align", "--resume")
    done = run(tmp_path, "batch", "in", "-o", "out", *options)
    assert done.returncode == 0, done.stderr
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.tif"))
    assert made == ["cell_x1.tif", "more/other_x1.tif"]
    again = run(tmp_path, "batch", "in", "-o", "out", *options)
    assert "2 skipped" in again.stderr, again.stderr
    run(tmp_path, "batch", "in", "-n", "--plan", "plan.toml")
    planned = run(tmp_path, "batch", "--plan", "plan.toml", "-o", "out", *options)
    assert "2 skipped" in planned.stderr, planned.stderr


def test_a_plan_may_name_a_stack(stack):
    plan = stack.with_name("plan.toml")
    tables = [f'[[bracket]]\nname = "{name}"\nphotos = ["{name}.tif"]\n' for name in ("cell", "missing")]
    plan.write_text("".join(tables))
    found = [[photo.name for photo in one.photos] for one in read_plan(plan)]
    assert found == [["cell.tif[0]", "cell.tif[1]"], ["missing.tif"]]
