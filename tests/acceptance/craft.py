"""Weight files with one thing wrong each, and right otherwise: craft.py SCALE FOLDER.

Checksums are made anew, so that it is not the checksum that finds the fault. Each is a bundled weight file
with its name for the fault: FAULT.safetensors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from mffsr.checkpoint import digest, find

Tensors = dict[str, Tensor]
Header = dict[str, str]


def first_weight(tensors: Tensors) -> str:
    """Return the name of the first floating-point tensor."""
    return next(name for name in sorted(tensors) if tensors[name].is_floating_point())


def nan(tensors: Tensors, header: Header) -> None:
    """One value is not a number."""
    tensors[first_weight(tensors)].view(-1)[0] = float("nan")


def overflow(tensors: Tensors, header: Header) -> None:
    """Finite weights whose activations are not."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = torch.full_like(tensor, 60000.0)


def extra(tensors: Tensors, header: Header) -> None:
    """A tensor too many."""
    tensors["superfluous"] = torch.zeros(3)


def missing(tensors: Tensors, header: Header) -> None:
    """A tensor too few."""
    del tensors[first_weight(tensors)]


def dtype(tensors: Tensors, header: Header) -> None:
    """A tensor of integers where numbers with a point belong."""
    tensors[first_weight(tensors)] = tensors[first_weight(tensors)].to(torch.int32)


def shape(tensors: Tensors, header: Header) -> None:
    """A tensor of another shape."""
    name = first_weight(tensors)
    tensors[name] = torch.zeros(*tensors[name].shape, 2)


def architecture(tensors: Tensors, header: Header) -> None:
    """The configuration of a larger network."""
    config = json.loads(header["config"])
    header["config"] = json.dumps(config | {"features": 2 * config["features"]})


def enormous(tensors: Tensors, header: Header) -> None:
    """The configuration of a network that no memory holds."""
    header["config"] = json.dumps(json.loads(header["config"]) | {"features": 1 << 20, "growth": 1 << 20})


def newer(tensors: Tensors, header: Header) -> None:
    """A later layout."""
    header["version"] = "99"


def path(tensors: Tensors, header: Header) -> None:
    """A configuration with paths, and paths in the description."""
    header["config"] = json.dumps(json.loads(header["config"]) | {"file": "../secret.txt"})
    header["data"] = "/etc/passwd"


def described(tensors: Tensors, header: Header) -> None:
    """Nothing wrong: paths in the description alone."""
    header["data"] = header["command"] = "../secret.txt"


FAULTS: tuple[Callable[[Tensors, Header], None], ...] = (
    nan, overflow, extra, missing, dtype, shape, architecture, enormous, newer, path, described,
)  # fmt: skip


def main() -> None:
    """Write all files."""
    _, source = find("photo", int(sys.argv[1]))
    if source is None:
        raise SystemExit("scale 1 has no such weights")
    for fault in FAULTS:
        with safetensors.safe_open(source, framework="pt") as file:
            header = dict(file.metadata())
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        fault(tensors, header)
        header["sha256"] = digest(tensors)
        save_file(tensors, Path(sys.argv[2]) / f"{fault.__name__}.safetensors", metadata=header)


if __name__ == "__main__":
    main()
