"""Photographs and broken files of other projects: accepted or refused as their manifest says.

MFFSR_CORPUS names a folder with `manifest.json`, a list of entries with at least `file`, `expect`
(accept, refuse), `firm`, `width` and `height`. The files themselves are no part of this project.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mffsr.checkpoint import load_model
from mffsr.cli.app import app
from mffsr.errors import PhotoError
from mffsr.photo import Photo, fill_transparent, read_header, read_photo, with_depth
from mffsr.photo._ifd import Exif, parse_exif
from mffsr.render import render

CORPUS = os.environ.get("MFFSR_CORPUS")
OTHER_KINDS = (".icc", ".pkl", ".pt", ".pth", ".ckpt", ".safetensors")


def entries() -> list[Any]:
    if not CORPUS:
        reason = "MFFSR_CORPUS names no folder of test photos"
        return [pytest.param({}, marks=pytest.mark.skip(reason=reason), id="none")]
    listed = json.loads((Path(CORPUS) / "manifest.json").read_text(encoding="utf-8"))
    images = [entry for entry in listed if not entry["file"].lower().endswith(OTHER_KINDS)]
    return [pytest.param(entry, id=entry["file"]) for entry in images]


def attempt(path: Path) -> tuple[Photo | None, str]:
    try:
        return read_photo(path), ""
    except PhotoError as fault:
        return None, str(fault)


@pytest.mark.parametrize("entry", entries())
def test_entry(entry: dict[str, Any]) -> None:
    assert CORPUS is not None
    path = Path(CORPUS) / entry["file"]
    started = time.monotonic()
    photo, said = attempt(path)
    assert time.monotonic() - started < 60, "no speed: a damaged file must not hang the decoder"
    if photo is None:
        assert str(path) in said
        assert said.count("\n") < 3
        assert not (entry["firm"] and entry["expect"] == "accept"), said
        return
    assert not (entry["firm"] and entry["expect"] == "refuse"), "read without a complaint"
    header = read_header(path)
    assert (header.size, header.bit_depth) == (photo.size, photo.bit_depth)
    assert (header.channels, header.has_alpha) == (photo.pixels.shape[2], photo.alpha is not None)
    if "ref" in entry:
        reference = read_photo(Path(CORPUS) / entry["ref"])
        assert photo.size == reference.size
        difference = with_depth(photo, 8).pixels.astype(float) - with_depth(reference, 8).pixels
        assert np.sqrt(np.mean(difference**2)) < 255 * 10 ** (-28 / 20)  # 28 dB
    elif entry["firm"] and entry["width"]:  # the manifest has the size as stored
        assert sorted(photo.size) == sorted((entry["width"], entry["height"]))


ENLARGED = 400_000  # pixels; larger photos are fused at their own size, which takes a tenth of the time
KEPT = (0x010F, 0x0110, 0x0132, 0x8298)  # make, model, date, copyright
# The exposures of an earlier composite, the subject's place in pixels, the number of that picture alone.
GONE = {0xA462, 0x9214, 0xA214, 0xA420}


def texts(exif: Exif) -> dict[int, str]:
    """What the fields say that a result must keep."""
    found = {
        tag: exif.main[tag].data.split(b"\0")[0].decode("latin-1").strip() for tag in KEPT if tag in exif.main
    }
    return {tag: text for tag, text in found.items() if text}


@pytest.mark.parametrize("entry", entries())
def test_fused_with_itself(entry: dict[str, Any], tmp_path: Path, tiny_weights: Path, cpu: Any) -> None:
    """The result is what enlarging the photo alone gives, in its profile and depth, with its metadata."""
    assert CORPUS is not None
    path = Path(CORPUS) / entry["file"]
    photo, _ = attempt(path)
    if photo is None or entry["expect"] != "accept":
        pytest.skip("not to be read")
    copy = shutil.copyfile(path, tmp_path / f"again-{path.name}")
    height, width, channels = photo.pixels.shape
    scale = 2 if height * width <= ENLARGED else 1
    options = ["-s", scale, "--weights", tiny_weights, "--device", "cpu", "--precision", "fp32"]
    arguments = ["fuse", path, copy, "-o", tmp_path / "out.tif", *options]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    fused = read_photo(tmp_path / "out.tif")
    assert fused.pixels.shape == (height * scale, width * scale, channels)
    assert fused.bit_depth == photo.bit_depth
    assert (fused.alpha is None) == (photo.alpha is None)
    assert fused.icc == photo.icc
    model = cpu.place(load_model(scale, str(tiny_weights))[0])
    nowhere = np.zeros((height, width), np.uint16)
    pixels = photo.pixels if photo.alpha is None else fill_transparent(photo.pixels, photo.alpha)
    raised = 16 - int(pixels.max()).bit_length() if photo.bit_depth == 16 and pixels.any() else 0
    bright, depth = pixels * pixels.dtype.type(1 << raised), photo.bit_depth
    alone = render(model, [bright], nowhere, cpu, tile=512, depth=depth, raised=raised).pixels
    assert np.abs(alone.astype(int) - fused.pixels).max() <= 1  # tiles of another size round otherwise
    if photo.bit_depth == 16 and np.unique(photo.pixels).size > 256:
        assert np.unique(fused.pixels).size > 256
    assert fused.exif is not None
    after = parse_exif(fused.exif)
    assert after.first_integer(after.main, 0x0112) in (None, 1)  # upright
    if photo.exif is not None:
        before = parse_exif(photo.exif)
        assert texts(after).items() >= texts(before).items()
        assert not set(before.exif) - set(after.exif) - GONE
        assert not set(before.gps) - set(after.gps)
