"""Weight files: every damage is refused, nothing is ever executed."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_fapn, tiny_fn
from safetensors.torch import save

from mffsr import checkpoint
from mffsr.checkpoint import find, load, load_model, provenance, save_network, write_file
from mffsr.errors import CheckpointError, MffsrError, UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x2.safetensors"
    save_network(tiny_fn(2), path, {"stage": "srn", "steps": "7"})
    return path


def rewrite(path: Path, **changes: str) -> None:
    """Change the header and leave the tensors as they are."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


@pytest.mark.parametrize("make", [tiny_fapn, lambda: tiny_fn(3)])
def test_round_trip_rebuilds_the_network(make, tmp_path):
    network = make()
    path = tmp_path / "a.safetensors"
    sha256 = save_network(network, path, {"stage": "joint"}, half=False)
    back = load(path)
    assert back.sha256 == sha256
    assert back.header["stage"] == "joint"
    assert back.network.config == network.config
    assert not back.network.training
    assert not any(parameter.requires_grad for parameter in back.network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(back.network.state_dict()[name], value), name


def test_half_precision_files_are_read_as_float32(file):
    network = load(file).network
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    original = tiny_fn(2).state_dict()["srn.shallow.weight"]
    torch.testing.assert_close(network.state_dict()["srn.shallow.weight"], original, atol=1e-3, rtol=1e-3)


def test_every_truncation_is_refused(file):
    data = file.read_bytes()
    for share in (0, 0.001, 0.01, 0.3, 0.9, 0.999):
        file.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match=r"x2\.safetensors"):
            load(file)


def test_every_flipped_bit_is_refused(file):
    data = bytearray(file.read_bytes())
    start = 8 + struct.unpack("<Q", data[:8])[0]
    for position in np.random.default_rng(0).integers(start, len(data), 50):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(position) % 8
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load(file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "2"}, "made by a newer mffsr"),
        ({"version": ""}, "no version of its layout"),
        ({"format": "other"}, "not a weight file of mffsr"),
        ({"kind": "gan"}, "kind 'gan'"),
        ({"config": '{"scale": 2, "features": 8, "growth": 8, "blocks": 3}'}, "missing"),
        ({"config": '{"scale": 2, "features": 8, "growth": 8, "blocks": 1}'}, "superfluous"),
        ({"config": '{"scale": 2, "features": 16, "growth": 8, "blocks": 2}'}, "expected"),
        ({"config": '{"scale": 2, "path": "../../etc/passwd"}'}, "not understood"),
        ({"config": "{"}, "not understood"),
        ({"config": "[" * 100_000}, "not understood"),
        ({"config": '{"scale": 2, "blocks": 1000000}'}, "blocks is 1000000"),
        ({"config": '{"scale": 2, "features": 1000000000000}'}, "features is 1000000000000"),
        ({"config": '{"scale": 2, "features": 1e400}'}, "features is inf"),
        ({"config": '{"scale": 2, "gradient_embedding": "x"}'}, "gradient_embedding is 'x'"),
        ({"config": '{"scale": 2, "gradient_embedding": 1.5}'}, "gradient_embedding is 1.5"),
        ({"config": '{"scale": 2.0}'}, "scale is 2.0"),
        ({"version": "1" * 5000}, "no version of its layout"),
    ],
)
def test_a_header_that_lies_is_refused(file, changes, words):
    rewrite(file, **changes)
    with pytest.raises(CheckpointError, match=words):
        load(file)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_values_of_another_type_are_refused(file, dtype):
    network = load(file).network
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()}
    description = checkpoint.read_header(file) | {"sha256": checkpoint.digest(tensors)}
    file.write_bytes(save(tensors, metadata=description))
    with pytest.raises(CheckpointError, match=r"x2\.safetensors: .* is of type "):
        load(file)


def test_a_huge_declared_shape_is_refused_before_allocation(file):
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    header["srn.shallow.weight"]["shape"] = [1 << 20, 1 << 20, 3, 3]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    with pytest.raises(CheckpointError, match="damaged"):
        load(file)


def test_values_that_are_not_finite_are_refused(tmp_path):
    network = tiny_fn(2)
    for value in (1e6, float("nan")):  # the first is no number of float16
        network.srn.shallow.weight.data[0, 0, 0, 0] = value
        with pytest.raises(CheckpointError, match="not finite"):
            save_network(network, tmp_path / "a.safetensors")
        assert not list(tmp_path.iterdir())
    tensors = {k: v.contiguous() for k, v in network.state_dict().items()}
    header = {
        "format": "mffsr",
        "version": "1",
        "kind": "fn",
        "config": json.dumps({"scale": 2, "features": 8, "growth": 8, "blocks": 2}),
        "sha256": checkpoint.digest(tensors),
    }
    (tmp_path / "b.safetensors").write_bytes(save(tensors, metadata=header))
    with pytest.raises(CheckpointError, match="not finite"):
        load(tmp_path / "b.safetensors")


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors", ""])
def test_pickles_are_refused_under_every_name(tmp_path, suffix):
    canary = tmp_path / "canary"
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(CheckpointError):
        load(path)
    with pytest.raises(CheckpointError):
        load_model(2, str(path))
    assert not canary.exists()


def test_wrong_scale_and_kind_say_what_was_expected(tiny_weights):
    with pytest.raises(CheckpointError, match="weights for scale 3, but scale 2 is asked for"):
        load(tiny_weights / "x3.safetensors", scale=2)
    with pytest.raises(CheckpointError, match="holds fapn weights, expected fn"):
        load(tiny_weights / "fapn.safetensors", kind="fn")
    with pytest.raises(UsageError, match="scale is 7"):
        load_model(7)


def test_weights_are_found_by_name_folder_and_file(tiny_weights):
    assert find(str(tiny_weights), 3) == (tiny_weights / "fapn.safetensors", tiny_weights / "x3.safetensors")
    assert find(str(tiny_weights / "x2.safetensors"), 2)[1] == tiny_weights / "x2.safetensors"
    assert find(str(tiny_weights / "fapn.safetensors"), 1) == (tiny_weights / "fapn.safetensors", None)
    for scale in (1, 2):
        with pytest.raises(CheckpointError, match=r"nosuch: no such weight file\nbundled sets: .*photo"):
            find("nosuch", scale)
    with pytest.raises(CheckpointError, match="no such weight file"):
        find("nosuch.safetensors", 2)
    with pytest.raises(CheckpointError, match=r"x2\.safetensors: enlarges, but scale 1"):
        find(str(tiny_weights / "x2.safetensors"), 1)
    with pytest.raises(CheckpointError, match="w: File name too long"):
        find("w" * 300, 2)


def test_a_bundled_set_is_meant_even_beside_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photo", "clean"):
        (tmp_path / name).mkdir()
        bundled = checkpoint.weights_folder()
        assert find(name, 2) == (bundled / "fapn.safetensors", bundled / f"{name}-x2.safetensors")


def test_a_folder_without_a_fapn_goes_with_the_bundled_one_unless_that_is_all(tiny_weights, tmp_path):
    (tmp_path / "x2.safetensors").write_bytes((tiny_weights / "x2.safetensors").read_bytes())
    found = find(str(tmp_path), 2)
    assert found == (checkpoint.weights_folder() / "fapn.safetensors", tmp_path / "x2.safetensors")
    with pytest.raises(CheckpointError, match="no such weight file"):
        find(str(tmp_path), 1)


def test_the_weights_of_a_photo_are_named_by_file(tiny_weights):
    _, parts = load_model(2, str(tiny_weights))
    named = " ".join(f"{part.path.name}:{part.sha256[:16]}" for part in parts)
    assert provenance(parts) == {"Weights": named}
    assert named.startswith("fapn.safetensors:")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_file(path, b"old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MffsrError, match="No space left"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_flushed_is_written_to_all_the_same(tmp_path, monkeypatch):
    """As on some network disks, and on Windows."""
    flush = os.fsync

    def no_folders(fd):
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(22, "Invalid argument")
        flush(fd)

    monkeypatch.setattr(os, "fsync", no_folders)
    write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
