"""Every example runs, with the bundled weights, and the README's command lines do what they say."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import data_folder, textured

from mffsr.checkpoint import load, weights_folder
from mffsr.errors import PhotoError
from mffsr.photo import Photo, read_photo, with_depth, write_photo
from mffsr.photo._colour import srgb_profile

ROOT = Path(__file__).parents[1]
COFFEE = ROOT / "examples" / "coffee"
ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def run(*arguments, cwd):
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(
        command, cwd=cwd, env=ENV, capture_output=True, text=True, timeout=280, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_fuse_pair(tmp_path):
    near, far = (cv2.imread(str(COFFEE / f"{name}.jpg"))[100:260, 60:260] for name in ("near", "far"))
    for name, part in (("near", near), ("far", far)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), part)
    out = run(ROOT / "examples" / "fuse_pair.py", "near.png", "far.png", "out.tif", cwd=tmp_path)
    assert "400×320, 8 bits" in out
    assert read_photo(tmp_path / "out.tif").size == (400, 320)


def test_fuse_pair_replaces_no_photo_where_the_output_was_forgotten(tmp_path, tiny_weights, monkeypatch):
    names = [str(tmp_path / f"{name}.png") for name in "abc"]
    for name in names:
        cv2.imwrite(name, textured(70, 80))
    before = Path(names[2]).read_bytes()
    monkeypatch.setattr(sys, "argv", ["fuse_pair.py", *names])
    monkeypatch.setattr("mffsr.fuse", lambda photos, scale: read_photo(photos[0]))
    with pytest.raises(PhotoError, match="exists already"):
        runpy.run_path(str(ROOT / "examples" / "fuse_pair.py"), run_name="__main__")
    assert Path(names[2]).read_bytes() == before


def test_fuse_arrays(tmp_path):
    assert "(192, 288, 1) uint16" in run(ROOT / "examples" / "fuse_arrays.py", cwd=tmp_path)


def test_make_bracket(tmp_path):
    sharp = textured(120, 160)
    write_photo(with_depth(Photo(pixels=sharp, icc=srgb_profile()), 16), tmp_path / "sharp.png")
    script = ROOT / "examples" / "make_bracket.py"
    run(script, "sharp.png", "out", "--ellipse", 80, 60, 40, 30, cwd=tmp_path)
    near, far = (read_photo(tmp_path / "out" / f"{name}.jpg").pixels.astype(int) for name in ("near", "far"))
    assert read_photo(tmp_path / "out" / "near.jpg").icc == srgb_profile()
    middle, corner = (slice(45, 75), slice(60, 100)), (slice(0, 20), slice(0, 30))
    for sharper, softer, where in ((near, far, middle), (far, near, corner)):
        assert np.abs(sharper - sharp)[where].mean() < np.abs(softer - sharp)[where].mean() / 2


def test_the_main_job_on_the_example(tmp_path):
    """End to end with the shipped weights: sharper than either photo, everywhere the sharper one."""
    run(
        "-m",
        "mffsr",
        "fuse",
        COFFEE / "near.jpg",
        COFFEE / "far.jpg",
        "--scale",
        "3",
        "-o",
        "out.png",
        "--focus-map",
        "map.png",
        cwd=tmp_path,
    )
    fused = read_photo(tmp_path / "out.png").pixels
    assert fused.shape == (1200, 1800, 3)
    labels = read_photo(tmp_path / "map.png").pixels[:, :, 0]
    assert (labels[130:300, 180:420] == 0).mean() > 0.95, "the cup is in focus in near.jpg"
    assert (labels[:, 520:] == 1).mean() > 0.95, "the table is in focus in far.jpg"
    small = cv2.resize(fused, (600, 400), interpolation=cv2.INTER_AREA)
    near, far = (read_photo(COFFEE / f"{name}.jpg").pixels for name in ("near", "far"))

    def detail(image, where):
        gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        return np.abs(cv2.Laplacian(gray, cv2.CV_32F))[where].mean()

    cup, table = (slice(130, 300), slice(180, 420)), (slice(0, 400), slice(520, 600))
    assert detail(small, cup) > 1.3 * detail(far, cup)
    assert detail(small, table) > 1.3 * detail(near, table)
    for channel in range(3):  # no colour shift
        assert abs(small[cup][..., channel].mean() - near[cup][..., channel].mean()) < 1
        assert abs(small[table][..., channel].mean() - far[table][..., channel].mean()) < 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shipped_weights_enlarge_better_than_bicubic(scale):
    import torch
    from PIL import Image

    from mffsr.metrics import psnr
    from mffsr.model import FN

    folder = data_folder("kodak24")
    network = load(weights_folder() / f"photo-x{scale}.safetensors", kind="fn", scale=scale).network
    assert isinstance(network, FN)
    gains = []
    for name in ("5.png", "19.png"):
        high = np.asarray(Image.open(folder / name).convert("RGB"))[96:384, 96:384]
        low = Image.fromarray(high).resize((288 // scale, 288 // scale), Image.Resampling.BICUBIC)
        bicubic = np.asarray(low.resize((288, 288), Image.Resampling.BICUBIC))
        with torch.inference_mode():
            image = torch.from_numpy(np.asarray(low).astype(np.float32) / 255).permute(2, 0, 1)[None]
            ours = (network.srn(image)[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        gains.append(psnr(ours, high, luma=True, border=scale) - psnr(bicubic, high, luma=True, border=scale))
    assert np.mean(gains) > 0.5, gains


def test_readme_lines_are_the_ones_of_the_tests():
    text = (ROOT / "README.md").read_text()
    assert re.search(
        r"^python3 -m venv .venv && .*mffsr fuse examples/coffee/near.jpg .*--scale 3", text, re.M
    )
    assert re.search(r"^python3 -m venv .venv && .*pytest", text, re.M)
    for path in re.findall(r"^(?:[├└│ ]|─)*([\w./-]+\.(?:py|toml|md|txt))\s", text, re.M):
        assert list(ROOT.rglob(Path(path).name)), f"README names {path}"
