"""Weight files: safetensors that describe themselves. Find, verify, load, save.

The header of a weight file holds, beside the tensors' names and shapes:

    format    "mffsr", and `version`, the version of this layout
    kind      "fapn" (focus affinity perception network) or "fn" (super-resolution and fusion network)
    config    the network's configuration, as JSON: it rebuilds the network
    stage, steps, batch   of the training, and `data`, the degradation of the photos that it learnt from
    degradation, licence, command, photographs, note   in place of `data` where the file is published
    sha256    digest of all tensors (names, types, shapes, values): a flipped bit is found

Nothing in a weight file is ever executed; pickles are refused whatever their name is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor, nn

from mffsr.errors import CheckpointError, MffsrError, PhotoError, UsageError
from mffsr.limits import SCALES
from mffsr.model import FAPN, FN, FapnConfig, JointModel, SrnConfig
from mffsr.photo import atomic_output

__all__ = [
    "Checkpoint",
    "assemble",
    "digest",
    "find",
    "load",
    "load_model",
    "provenance",
    "read_design",
    "read_header",
    "save_network",
    "weights_folder",
    "write_file",
]

VERSION = 1
LONGEST_VERSION = 9  # digits
Network = FAPN | FN
_BUILD: dict[str, tuple[Callable[..., Any], Callable[..., Network]]] = {
    "fapn": (FapnConfig, FAPN),
    "fn": (SrnConfig, FN),
}


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A weight file, read and verified."""

    path: Path
    kind: str
    network: Network
    sha256: str
    header: Mapping[str, str]


def weights_folder() -> Path:
    """Return the folder of the bundled weights: beside the package in a checkout, else inside it."""
    package = Path(__file__).resolve().parent
    inside = package / "weights"
    return inside if inside.is_dir() else package.parent / "weights"


def find(weights: str | os.PathLike[str], scale: int) -> tuple[Path, Path | None]:
    """Return the FAPN file and the FN file (None at scale 1) that `weights` stands for.

    `weights` is the name of a bundled set ("photo", "clean", "paper"), a folder with `fapn.safetensors` and
    `x2.safetensors` … as training writes it, or one file, which replaces the bundled one of its kind. A
    folder without a FAPN, as of a run that trained SRN alone, goes with the bundled one, but not at scale 1,
    where it would give nothing. Raises CheckpointError where a file is missing, UsageError for no name.
    """
    if not isinstance(weights, str | os.PathLike):
        raise UsageError(f"weights are {type(weights).__name__}, expected the name of a set, file or folder")
    weights = os.fspath(weights)
    bundled = weights_folder()
    fapn, fn = bundled / "fapn.safetensors", bundled / f"photo-x{scale}.safetensors"
    names = sorted(
        {
            path.name.rsplit("-x", 1)[0]
            for path in bundled.glob(f"*-x[{''.join(map(str, SCALES))}].safetensors")
        }
    )
    given = Path(weights)
    try:
        is_folder = given.is_dir()
    except OSError as error:  # too long for a name, or in a folder that is closed
        raise CheckpointError(f"{weights}: {error.strerror or error}") from None
    if weights == "photo" or weights in names:  # even where a folder of that name stands around
        fn = bundled / f"{weights}-x{scale}.safetensors"
    elif is_folder:
        fapn = own if (own := given / "fapn.safetensors").exists() or scale == 1 else fapn
        fn = given / f"x{scale}.safetensors"
    elif given.suffix or given.exists() or os.sep in weights:
        if not given.exists():
            raise CheckpointError(f"{weights}: no such weight file")
        if read_header(given)["kind"] == "fapn":
            fapn = given
        elif scale == 1:
            raise CheckpointError(f"{weights}: enlarges, but scale 1 needs weights that find the focus")
        else:
            fn = given
    else:
        raise _missing(weights, names)
    needed = [fapn] if scale == 1 else [fapn, fn]
    for path in needed:
        if not path.exists():
            raise _missing(path, names)
    return fapn, fn if scale > 1 else None


def _missing(weights: str | Path, names: Sequence[str]) -> CheckpointError:
    return CheckpointError(
        f"{weights}: no such weight file\n"
        f"bundled sets: {', '.join(names) or 'none'}; mffsr doctor lists what is there"
    )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and values of all tensors, in the order of their names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def read_header(path: Path) -> dict[str, str]:
    """Return a weight file's own description; raises CheckpointError where it is none of ours."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
    except FileNotFoundError:  # of the Rust library: it names the file itself, and has no strerror
        raise CheckpointError(f"{path}: no such weight file") from None
    except OSError as error:  # of a folder the library says "No such device"
        if path.is_dir():
            raise CheckpointError(f"{path}: is a folder\nexpected one of the weight files in it") from None
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except Exception as error:  # noqa: BLE001 - the Rust library raises its own types, documented nowhere
        raise CheckpointError(
            f"{path}: damaged, or not a safetensors file ({error})\n"
            "expected a weight file that mffsr train wrote"
        ) from None
    if header.get("format") != "mffsr":
        raise CheckpointError(f"{path}: not a weight file of mffsr (no format in its header)")
    version = header.get("version", "")
    if not version.isdecimal() or len(version) > LONGEST_VERSION:
        raise CheckpointError(f"{path}: not a weight file of mffsr (no version of its layout in its header)")
    if int(version) > VERSION:
        raise CheckpointError(
            f"{path}: made by a newer mffsr (layout {version}, this one reads {VERSION})\n"
            "update mffsr, or use older weights"
        )
    if header.get("kind") not in _BUILD:
        raise CheckpointError(f"{path}: kind {header.get('kind')!r}, expected fapn or fn")
    return header


def read_design(
    path: Path, *, kind: str | None = None, scale: int | None = None
) -> tuple[dict[str, str], Network]:
    """Return a weight file's header and the network that it describes, without its tensors (on "meta").

    Raises CheckpointError for a file that is none of ours, or of another kind or scale.
    """
    header = read_header(path)
    if kind is not None and header["kind"] != kind:
        raise CheckpointError(f"{path}: holds {header['kind']} weights, expected {kind}")
    config_type, network_type = _BUILD[header["kind"]]
    try:
        config = config_type(**json.loads(header["config"]))
        with torch.device("meta"):
            network = network_type(config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its configuration is not understood ({error})") from None
    if scale is not None and header["kind"] == "fn" and config.scale != scale:
        raise CheckpointError(f"{path}: weights for scale {config.scale}, but scale {scale} is asked for")
    return header, network


def load(path: Path, *, kind: str | None = None, scale: int | None = None) -> Checkpoint:
    """Read, verify and rebuild one network, float32, on the CPU, in evaluation mode.

    Names, shapes and types are compared before anything is allocated, then the digest, then that every
    value is finite. Raises CheckpointError, which says what was expected and what was found.
    """
    header, network = read_design(path, kind=kind, scale=scale)
    tensors = _read_tensors(path, network.state_dict())
    if digest(tensors) != header.get("sha256"):
        raise CheckpointError(f"{path}: damaged (its checksum does not match its contents)")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{path}: {name} holds values that are not finite")
    full = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    network.load_state_dict(full, strict=True, assign=True)
    network.eval().requires_grad_(False)
    return Checkpoint(path=path, kind=header["kind"], network=network, sha256=header["sha256"], header=header)


def _read_tensors(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with safetensors.safe_open(path, framework="pt") as file:
        names = set(file.keys())
        missing, extra = set(expected) - names, names - set(expected)
        if missing or extra:
            raise CheckpointError(
                f"{path}: other tensors than its configuration asks for: "
                f"{len(missing)} missing ({', '.join(sorted(missing)[:2])}), "
                f"{len(extra)} superfluous ({', '.join(sorted(extra)[:2])})"
            )
        for name in names:
            part = file.get_slice(name)
            found = tuple(part.get_shape())
            if found != tuple(expected[name].shape):
                raise CheckpointError(f"{path}: {name} is {found}, expected {tuple(expected[name].shape)}")
            floating = expected[name].is_floating_point()
            if part.get_dtype() not in ({"F32", "F16", "BF16"} if floating else {"I64"}):
                raise CheckpointError(f"{path}: {name} is of type {part.get_dtype()}")
        return {name: file.get_tensor(name) for name in sorted(names)}


def load_model(scale: int, weights: str | os.PathLike[str] = "photo") -> tuple[JointModel, list[Checkpoint]]:
    """Return the joint model for `scale`, on the CPU, and the files it was made from, the FAPN's first.

    `weights`: see `find`. Raises UsageError for another scale than 1, 2, 3 or 4, and CheckpointError for
    weights that are missing, damaged, or of another kind or scale.
    """
    if scale not in (1, *SCALES):
        raise UsageError(f"scale is {scale}, expected one of {(1, *SCALES)}")
    scale = int(scale)  # 2.0 is 2, but names no file
    fapn_path, fn_path = find(weights, scale)
    # The FN first: it is the one whose scale may be wrong.
    parts = [load(fn_path, kind="fn", scale=scale)] if fn_path is not None else []
    parts.insert(0, load(fapn_path, kind="fapn"))
    return assemble(*(part.network for part in parts)), parts


def provenance(parts: Sequence[Checkpoint]) -> dict[str, str]:
    """Return what a photo's metadata say of its weights: each file's name and 16 digits of its digest."""
    return {"Weights": " ".join(f"{part.path.name}:{part.sha256[:16]}" for part in parts)}


def assemble(fapn: Network, fn: Network | None = None) -> JointModel:
    """Put a FAPN and an FN together."""
    if not isinstance(fapn, FAPN) or not (fn is None or isinstance(fn, FN)):
        raise TypeError(f"expected a FAPN and an FN, found {type(fapn).__name__} and {type(fn).__name__}")
    return JointModel(fapn, fn).eval()


def save_network(
    network: nn.Module, path: Path, description: Mapping[str, str] | None = None, *, half: bool = True
) -> str:
    """Write a FAPN or an FN as a weight file, atomically, and return its sha256.

    `half` stores float16, which halves the file; `description` goes into the header (stage, steps …).
    Raises CheckpointError where a value is not finite, MffsrError where the file cannot be written.
    """
    kind = "fapn" if isinstance(network, FAPN) else "fn"
    tensors = {
        name: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in network.state_dict().items()
    }
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: {name} is not finite, the weights were not written")
    sha256 = digest(tensors)
    header = {
        "format": "mffsr",
        "version": str(VERSION),
        "kind": kind,
        "config": json.dumps(asdict(network.config)),  # type: ignore[call-overload]
        "sha256": sha256,
        **(description or {}),
    }
    write_file(path, save(tensors, metadata=header))
    return sha256


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file, of any kind, so that at any moment the old one or the new one is there.

    Raises MffsrError where it cannot be written; the old one, if any, is then still there.
    """
    try:
        with atomic_output(path, overwrite=True) as file:
            file.write(data)
    except PhotoError as error:  # it is no photo
        raise MffsrError(str(error)) from None
