"""What several test files share: generated photos, tiny networks, the data that may be there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mffsr.checkpoint import assemble, save_network
from mffsr.device import Runtime
from mffsr.model import FAPN, FN, FapnConfig, FocusMaps, JointModel, SrnConfig
from mffsr.tiles import Region

torch.set_num_threads(1)  # as many test processes as cores do more than one process of many threads
cv2.setNumThreads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process is deaf to it


def data_folder(name: str) -> Path:
    """Return a folder of the test data; skips the test where MFFSR_DATA does not lead to it."""
    root = os.environ.get("MFFSR_DATA")
    if not root:
        pytest.skip("MFFSR_DATA is not set")
    folder = Path(root) / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def textured(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return a generated colour photo with detail everywhere: shapes over noise of several scales."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.float32)
    for scale in (1, 2, 5, 12):
        small = rng.uniform(0, 1, (height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        image += cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) * scale**0.5
    image = cv2.normalize(image, None, 20, 235, cv2.NORM_MINMAX)
    for _ in range(max(4, height * width // 4000)):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        cv2.circle(image, centre, int(rng.integers(2, 14)), colour, -1, cv2.LINE_AA)
    return image.round().clip(0, 255).astype(np.uint8)


def bracket(height: int, width: int, seed: int = 0, blur: float = 2.0) -> tuple[NDArray[np.uint8], ...]:
    """Return (near, far, sharp, mask): a pair of photos, what both show, and where the first is sharp."""
    sharp = textured(height, width, seed)
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 3, height // 2), (width // 3, height // 3), 20, 0, 360, 1, -1)
    soft = cv2.GaussianBlur(sharp, (0, 0), blur)
    where = mask[:, :, None] == 1
    return np.where(where, sharp, soft), np.where(where, soft, sharp), sharp, mask


def undecided(image1: torch.Tensor, _: torch.Tensor, wanted: Region) -> FocusMaps:
    """Stand in for `JointModel.focus`: a network that sees no difference."""
    half = torch.full_like(image1[:, :1, wanted[0], wanted[1]], 0.5)
    return FocusMaps(half, half)


@pytest.fixture(scope="session")
def cpu() -> Runtime:
    return Runtime(device=torch.device("cpu"), dtype=torch.float32, memory=4 << 30, reason="test")


def tiny_fapn(seed: int = 1) -> FAPN:
    torch.manual_seed(seed)
    network = FAPN(FapnConfig(width=8, blocks=2))
    for module in network.modules():  # random normalisation too, as after training
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(0.4, 0.7)
            module.running_var.uniform_(0.5, 2)
    return network.eval().requires_grad_(False)


def tiny_fn(scale: int, seed: int = 2) -> FN:
    torch.manual_seed(seed)
    network = FN(SrnConfig(scale=scale, features=8, growth=8, blocks=2))
    return network.eval().requires_grad_(False)


def tiny_model(scale: int) -> JointModel:
    """Return a joint model of random weights, small enough for tests, with every part of the real one."""
    model = assemble(tiny_fapn(), tiny_fn(scale) if scale > 1 else None)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with weight files of tiny networks, as training writes them."""
    folder = tmp_path_factory.mktemp("weights")
    save_network(tiny_fapn(), folder / "fapn.safetensors")
    for scale in (2, 3, 4):
        save_network(tiny_fn(scale), folder / f"x{scale}.safetensors")
    return folder
