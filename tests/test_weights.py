"""The bundled weights: the manifest tells the truth, and they fit the limits of the project."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import mffsr
from mffsr.checkpoint import find, load, weights_folder

MANIFEST = json.loads((weights_folder() / "manifest.json").read_text())


def test_manifest_lists_exactly_the_files():
    assert set(MANIFEST) == {path.name for path in weights_folder().glob("*.safetensors")}


@pytest.mark.parametrize("name", sorted(MANIFEST))
def test_every_entry_is_true(name):
    path, entry = weights_folder() / name, MANIFEST[name]
    data = path.read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    assert len(data) == entry["bytes"] < 10_000_000
    weights = load(path)
    assert weights.kind == entry["kind"]
    assert json.loads(weights.header["config"]) == entry["config"]
    for key in ("licence", "photographs", "command", "steps", "stage"):
        assert weights.header[key] == entry[key] != ""


def test_all_together_stay_small():
    assert sum(entry["bytes"] for entry in MANIFEST.values()) < 40_000_000


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_default_set_is_complete(scale):
    fapn, fn = find("photo", scale)
    assert load(fapn).kind == "fapn"
    assert (fn is None) == (scale == 1)
    if fn is not None:
        assert load(fn, scale=scale).kind == "fn"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_even_picture_stays_even_up_to_its_rim(scale):
    even = np.full((40, 64, 3), (250, 120, 10), np.uint8)
    with pytest.warns(UserWarning, match=r"100.0% of the picture is plain"):
        enlarged = mffsr.fuse([even, even.copy()], scale=scale, align=False).pixels
    assert np.abs(enlarged.astype(int) - even[0, 0]).max() <= 1
