"""Publish a trained weight file: under its name, with its origin in its header and in manifest.json.

    python weights/publish.py runs/one/x2.safetensors photo-x2 \\
        --command "mffsr train srn --scale 2 …" --data "288 photographs, see weights/README.md" \\
        --note "5000 steps of 8 patches, one hour on two CPU cores"
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from mffsr.checkpoint import load, save_network

FOLDER = Path(__file__).resolve().parent
LICENCE = "CC BY-SA 4.0"
KEPT = ("stage", "steps", "batch", "degradation")


def publish(source: Path, name: str, command: str, data: str, note: str) -> None:
    """Write weights/NAME.safetensors and its entry in the manifest."""
    found = load(source)
    header = {key: found.header[key] for key in KEPT if key in found.header}
    header.setdefault("degradation", found.header.get("data", ""))
    header |= {"licence": LICENCE, "command": command, "photographs": data, "note": note}
    path = FOLDER / f"{name}.safetensors"
    save_network(found.network, path, header)
    manifest = FOLDER / "manifest.json"
    entries = json.loads(manifest.read_text()) if manifest.exists() else {}
    published = load(path)
    entries[path.name] = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "bytes": path.stat().st_size,
        "kind": published.kind,
        "config": json.loads(published.header["config"]),
        **{key: published.header[key] for key in header},
    }
    manifest.write_text(json.dumps(dict(sorted(entries.items())), indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Publish a trained weight file.")
    parser.add_argument("source", type=Path)
    parser.add_argument("name", help="fapn, or SET-x2, SET-x3, SET-x4")
    parser.add_argument("--command", required=True, help="the training command")
    parser.add_argument("--data", required=True, help="what it was trained on")
    parser.add_argument("--note", default="", help="steps, time, device")
    given = parser.parse_args()
    publish(given.source, given.name, given.command, given.data, given.note)
