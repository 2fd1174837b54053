"""The folder of foreign test photos: what its manifest says of each, and what the program makes of it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

import cv2
import drivers
import numpy as np
import samples
from bench import LINES, Bench, FailedError, Run, SkippedError, check, mib, snapshot
from numpy.typing import NDArray

OTHER_KINDS = (".icc", ".pkl", ".pt", ".pth", ".ckpt", ".safetensors")
SLOWEST, MOST = 10.0, 1500 << 20  # s and bytes of a refusal
QUICK = 500_000  # pixels of a photo that is fused without --slow
ENOUGH = 28.0  # dB to the reference


class Entry(NamedTuple):
    """A file and what is expected of a good tool."""

    path: Path
    accept: bool
    firm: bool
    size: tuple[int, int] | None  # as stored
    reference: Path | None


def entries(corpus: Path, *, accept: bool) -> list[Entry]:
    """Return the photos that are to be accepted, or refused."""
    listed = json.loads((corpus / "manifest.json").read_text(encoding="utf-8"))
    found = []
    for one in listed:
        path = corpus / one["file"]
        if (one["expect"] == "accept") == accept and path.suffix.lower() not in OTHER_KINDS:
            size = (one["width"], one["height"]) if one["width"] else None
            reference = corpus / one["ref"] if "ref" in one else None
            found.append(Entry(path, accept, one["firm"], size, reference))
    return found


def _limited(bench: Bench, line: list[object]) -> tuple[Run, int]:
    """Run under 2 GB of memory, where that is possible; return the run and its peak."""
    try:
        with drivers.memory_limit(2000 << 20) as memory:
            run = bench.run(*line, before=memory.before, patience=300)
            return run, min(memory.peak, run.peak)
    except SkippedError:
        run = bench.run(*line, patience=300)
        return run, run.peak


def refuse_all(bench: Bench, corpus: Path) -> str:
    """Fuse every file that is to be refused: with its like as the other photo, as first and as second."""
    found, faults, slowest, most = entries(corpus, accept=False), [], 0.0, 0
    soft = 0
    for entry in found:
        copy = bench.folder / f"copy{entry.path.suffix}"
        copy.write_bytes(entry.path.read_bytes())
        for photos in ((entry.path, copy), (copy, entry.path)):
            before = snapshot(bench.folder)
            plan = [] if entry.firm else ["-n"]  # reads and registers: some are only too large
            run, peak = _limited(bench, ["fuse", *photos, "-q", "-s", 1, "-o", "out.png", *plan])
            slowest, most = max(slowest, run.cpu), max(most, peak)
            name = entry.path.relative_to(corpus)
            if run.code not in (0, 1, 2) or "Traceback" in run.err or run.cpu > SLOWEST:
                faults.append(f"{name} {run.cpu:.1f} s {run.told}")
            elif run.code == 0:
                soft += 1
                (bench.folder / "out.png").unlink(missing_ok=True)
                if entry.firm:
                    faults.append(f"{name} became a photograph")
            elif peak > MOST or len(run.err.splitlines()) > LINES:
                faults.append(f"{name} took {mib(peak)} {run.told}")
            elif entry.firm and copy.name not in run.err and entry.path.name not in run.err:
                faults.append(f"{name} is not named {run.told}")
            check(snapshot(bench.folder) == before, name, "left something behind")
        copy.unlink()
    check(not faults, f"{len(faults)} of {2 * len(found)}:", "; ".join(faults))
    return (
        f"{len(found)} files as first and as second photo: all firm ones refused, {soft} soft runs accepted; "
        f"slowest {slowest:.1f} s, peak {mib(most)}"
    )


def accept_all(bench: Bench, corpus: Path) -> str:
    """Fuse every file that is to be accepted with itself, at the scales 1 and, if small, 2."""
    tally = {"fused": 0, "planned": 0, "soft": 0, "compared": 0}
    faults, worst = [], math.inf
    for entry in entries(corpus, accept=True):
        try:
            quality = _accept(bench, entry, tally)
        except FailedError as fault:
            faults.append(f"{entry.path.relative_to(corpus)}: {fault}")
            continue
        if quality is not None:
            tally["compared"] += 1
            worst = min(worst, quality)
    check(not faults, f"{len(faults)} files:", "; ".join(faults))
    return (
        f"{tally['fused']} fused, {tally['planned']} large ones read and planned, {tally['soft']} soft ones "
        f"refused by name; {tally['compared']} compared, the worst {worst:.1f} dB"
    )


def _accept(bench: Bench, entry: Entry, tally: dict[str, int]) -> float | None:
    """Fuse one file with its copy; return the PSNR to its reference."""
    copy, target = bench.folder / f"copy{entry.path.suffix}", bench.folder / "out.png"
    copy.write_bytes(entry.path.read_bytes())
    try:
        pixels = entry.size[0] * entry.size[1] if entry.size else 0
        scale = 2 if pixels < QUICK // 10 else 1
        plan = ["-n"] if pixels > QUICK and not bench.slow else []
        line = ["fuse", entry.path, copy, "-q", "-s", scale, "-o", "out.png", *plan]
        run = bench.run(*line, patience=1800)
        check(run.code in (0, 1, 2) and "Traceback" not in run.err, run.told)
        if run.code != 0:
            check(not entry.firm, run.told)
            tally["soft"] += 1
            return None
        tally["planned" if plan else "fused"] += 1
        if plan:
            size = tuple(int(part) for part in re.findall(r"(\d+)×(\d+),", run.out)[0])
        else:
            size = _pixels(target).shape[1::-1]
        if entry.size and entry.firm:
            check(sorted(size) == sorted(side * scale for side in entry.size), "size", size, entry.size)
        return compare(target, entry.reference) if entry.reference and scale == 1 and not plan else None
    finally:
        copy.unlink()
        target.unlink(missing_ok=True)


def _pixels(path: Path) -> NDArray[np.float64]:
    """Return the upright pixels of a photo as OpenCV reads them, 0…1."""
    found = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if found is None:
        raise FailedError(f"{path} cannot be decoded")
    scaled: NDArray[np.float64] = found.astype(np.float64) / (255 if found.itemsize == 1 else 65535)
    return scaled


def compare(target: Path, reference: Path) -> float:
    """Return how close a result is to a reference photo, in dB; raises FailedError for less than ENOUGH."""
    one, other = _pixels(target), _pixels(reference)
    check(one.shape == other.shape, "size", one.shape, "of the reference", other.shape)
    quality = samples.psnr(one, other)
    check(quality >= ENOUGH, f"{quality:.1f} dB to the reference")
    return quality
