"""Photographs and broken files of other projects: accepted or refused as their manifest says.

MFFSR_CORPUS names a folder with `manifest.json`, a list of entries with at least `file`, `expect`
(accept, refuse), `firm`, `width` and `height`. The files themselves are no part of this project.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mffsr.errors import PhotoError
from mffsr.photo import Photo, read_header, read_photo, with_depth

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
    assert time.monotonic() - started < 10
    if photo is None:
        assert str(path) in said
        assert said.count("\n") < 3
        assert not (entry["firm"] and entry["expect"] == "accept"), said
        return
    assert not (entry["firm"] and entry["expect"] == "refuse"), "read without a complaint"
    header = read_header(path)
    assert (header.size, header.bit_depth) == (photo.size, photo.bit_depth)
    assert header.channels == photo.pixels.shape[2]
    if "ref" in entry:
        reference = read_photo(Path(CORPUS) / entry["ref"])
        assert photo.size == reference.size
        difference = with_depth(photo, 8).pixels.astype(float) - with_depth(reference, 8).pixels
        assert np.sqrt(np.mean(difference**2)) < 255 * 10 ** (-28 / 20)  # 28 dB
    elif entry["firm"] and entry["width"]:  # the manifest has the size as stored
        assert sorted(photo.size) == sorted((entry["width"], entry["height"]))
