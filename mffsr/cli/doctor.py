"""`mffsr doctor`: is everything there that the other commands need?"""

from __future__ import annotations

import importlib.util
import json
import platform
from typing import Any, NamedTuple

import typer

from mffsr import __version__
from mffsr.cli import options as opt
from mffsr.cli.console import Console, exit_codes
from mffsr.errors import MffsrError

__all__ = ["doctor"]


class Finding(NamedTuple):
    """One thing looked at."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def doctor(as_json: opt.Json = False) -> None:
    """Check the installation and say how to fix what is missing."""
    console = Console(as_json=as_json)
    with exit_codes(console):
        findings = [*_versions(), *_device(), *_weights(), *_codecs()]
        width = max(len(finding.name) for finding in findings)
        lines = []
        for finding in findings:
            lines.append(f"{'ok ' if finding.ok else '!! '} {finding.name:<{width}}  {finding.found}")
            if finding.fix:
                lines.append(f"{'':<{width + 6}}→ {finding.fix}")
        data: dict[str, Any] = {finding.name: finding._asdict() for finding in findings}
        console.result("\n".join(lines), data)
        if not all(finding.ok for finding in findings):
            raise typer.Exit(1)


def _versions() -> list[Finding]:
    import cv2
    import PIL
    import torch

    libraries = f"torch {torch.__version__}, Pillow {PIL.__version__}, OpenCV {cv2.__version__}"
    return [
        Finding("mffsr", True, f"{__version__}, Python {platform.python_version()}, {platform.platform()}"),
        Finding("libraries", True, libraries),
    ]


def _device() -> list[Finding]:
    from mffsr.device import available_devices, choose

    devices = Finding("devices", True, ", ".join(available_devices()))
    try:
        runtime = choose()
    except MffsrError as error:
        fix = "use --device cpu until it answers again"
        return [devices, Finding("chosen", False, str(error).splitlines()[0], fix)]
    return [
        devices,
        Finding("chosen", True, runtime.reason),
        Finding(
            "memory",
            runtime.memory > 1 << 30,
            f"{runtime.memory / 2**30:.1f} GB to use",
            "" if runtime.memory > 1 << 30 else "close other programs: large photos need 1 GB or more",
        ),
    ]


def _weights() -> list[Finding]:
    from mffsr.checkpoint import load, weights_folder

    folder, again = weights_folder(), "install mffsr again"
    manifest = folder / "manifest.json"
    findings = []
    try:
        bundled = set(json.loads(manifest.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        bundled = set()
        findings.append(Finding(manifest.name, False, f"{manifest}: cannot be read ({error})", again))
    for name in sorted(bundled | {path.name for path in folder.glob("*.safetensors")}):
        try:
            part = load(folder / name)
        except MffsrError as error:
            findings.append(Finding(name, False, str(error).splitlines()[0], again))
        else:
            steps = f"{part.header.get('stage', '?')} stage, {part.header.get('steps', '?')} steps"
            findings.append(Finding(name, True, f"{steps}, sha256 {part.sha256[:16]}"))
    return findings


def _codecs() -> list[Finding]:
    from PIL import features

    webp, avif = (bool(features.check(codec)) for codec in ("webp", "avif"))
    raw = importlib.util.find_spec("rawpy") is not None
    heif = importlib.util.find_spec("pillow_heif") is not None
    dask = importlib.util.find_spec("distributed") is not None
    return [
        Finding(
            "WebP", webp, "yes" if webp else "no", "" if webp else "pip install --force-reinstall pillow"
        ),
        Finding("AVIF", avif, "yes" if avif else "no", "" if avif else "pip install -U pillow"),
        Finding("camera RAW", raw, "yes" if raw else "no", "" if raw else "pip install rawpy"),
        Finding("HEIC", True, "yes" if heif else "no (optional: pip install 'mffsr[heic]')"),
        Finding("workers", True, "yes" if dask else "no (optional: pip install 'mffsr[cluster]')"),
    ]
