"""What a batch has finished: a small file per output, by which `--resume` knows what need not be done again.

A record is found by the output's name and a key: the digest of the photos' contents and names, of all options
that change the result, and of the weights. It is begun before the output is put in place and completed, with
the output's digest, afterwards. So a batch may be killed at any moment: an output without a complete record
has a begun one, and outputs appear whole or not at all. Where a fault or Ctrl-C comes in between, the begun
record gets the digests of what is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from mffsr.errors import PhotoError
from mffsr.photo import atomic_output
from mffsr.photo.content import Content, content

__all__ = ["FOLDER", "Found", "Records", "State", "key_of"]

FOLDER = ".mffsr-batch"
VERSION = 1
CLOCK = 2 * 10**9  # ns to which a file system may round its times


class State(Enum):
    """What the records know of an output."""

    unknown = "unknown"  # nothing, or it was changed since
    begun = "begun"  # what exists of it was written by us; something is missing
    finished = "finished"


class Found(NamedTuple):
    """A state, and the files of the record that tells it: the output, by the name it got, and its map."""

    state: State
    files: Sequence[Path] = ()


def key_of(photos: Sequence[Path], contents: Sequence[Content], options: Mapping[str, Any]) -> str:
    """Return the digest of everything that decides the result."""
    inputs = [(os.fsencode(p.name).hex(), c.sha256) for p, c in zip(photos, contents, strict=True)]
    text = json.dumps([VERSION, inputs, dict(options)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Records:
    """The records of one output folder. Reading them writes nothing; damaged ones count as missing."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / FOLDER

    def outputs(self) -> set[str]:
        """Return the real paths of everything that batches wrote here."""
        found = set()
        for path in self.folder.glob("*.json"):
            record = self._load(path)
            names = [*record.get("files", {}), *record.get("earlier", {})]
            found |= {os.path.realpath(self.out / name) for name in names}
        return found

    def find(self, target: Path, key: str, *, stop: Callable[[], bool] = lambda: False) -> Found:
        """Compare an output with its record, be it complete or only begun."""
        for begun in (False, True):
            record = self._load(self._path(target, key, begun=begun))
            files: dict[str, Any] = record.get("files", {})
            present = [name for name in files if os.path.lexists(self.out / name)]
            if not present or not all(self._ours(name, record, stop) for name in present):
                continue
            paths = [self.out / name for name in files]
            if len(present) < len(files):
                return Found(State.begun, paths)
            if begun:
                self.finish(target, key, paths)
            return Found(State.finished, paths)
        return Found(State.unknown)

    def _ours(self, name: str, record: Mapping[str, Any], stop: Callable[[], bool]) -> bool:
        """Whether a file is as this record's batch wrote it."""
        path, expected = self.out / name, record["files"][name]
        try:
            written = os.stat(path)
            if expected is None:  # begun: written since, and not what was there before
                replaced = [written.st_size, written.st_mtime_ns] != record["before"].get(name)
                return replaced and written.st_mtime_ns >= record["begun"] - CLOCK
            return (
                written.st_size == expected["size"] and content(path, stop=stop).sha256 == expected["sha256"]
            )
        except InterruptedError:  # asked for by `stop`
            raise
        except (OSError, PhotoError):
            return False

    def begin(self, target: Path, key: str, files: Sequence[Path]) -> None:
        """Note that `files` are about to be written; `target` is the name the output was to have."""
        before = {}
        for path in files:
            with contextlib.suppress(OSError):
                there = os.stat(path)
                before[self._name(path)] = [there.st_size, there.st_mtime_ns]
        names = dict.fromkeys(map(self._name, files))
        self._save(target, key, names, before, begun=True)

    def keep(self, target: Path, key: str) -> None:
        """Note what there is of an output that was begun: from now on it is ours only while it stays so."""
        record = self._load(self._path(target, key, begun=True))
        files: dict[str, Any] = record.get("files", {})
        ours = [name for name in files if self._ours(name, record, lambda: False)]
        if ours:
            with contextlib.suppress(OSError, PhotoError):  # as on a full disk; then it stays as it was
                marks = {name: _mark(self.out / name) for name in ours}
                self._save(target, key, files | marks, record["before"], begun=True)

    def finish(self, target: Path, key: str, files: Sequence[Path]) -> None:
        """Note that `files` are written."""
        self._save(target, key, {self._name(path): _mark(path) for path in files})
        self.forget(target, key)

    def forget(self, target: Path, key: str) -> None:
        """Take back what `begin` noted."""
        with contextlib.suppress(OSError):
            self._path(target, key, begun=True).unlink(missing_ok=True)

    def _name(self, path: Path) -> str:
        return os.fsencode(path.relative_to(self.out)).decode("utf-8", "surrogateescape")

    def _path(self, target: Path, key: str, *, begun: bool = False) -> Path:
        digest = hashlib.sha256(os.fsencode(target.relative_to(self.out)) + b"\0" + key.encode())
        return self.folder / f"{digest.hexdigest()[:32]}{'.begun' * begun}.json"

    def _earlier(self, target: Path, key: str, files: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the records so far know of other files, as renamed ones, that are still there."""
        earlier: dict[str, Any] = {}
        for begun in (False, True):
            record = self._load(self._path(target, key, begun=begun))
            for name, mark in (record.get("earlier", {}) | record.get("files", {})).items():
                if mark is not None and name not in files and os.path.lexists(self.out / name):
                    earlier[name] = mark
        return earlier

    def _save(
        self,
        target: Path,
        key: str,
        files: Mapping[str, Any],
        before: Mapping[str, list[int]] | None = None,
        *,
        begun: bool = False,
    ) -> None:
        record = {"mffsr_batch": VERSION, "key": key, "before": before or {}, "files": files}
        record["earlier"] = self._earlier(target, key, files)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_output(self._path(target, key, begun=begun), overwrite=True) as stream:
            stream.write(json.dumps(record, indent=1).encode())  # lone surrogates are escaped and come back

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            with path.open("rb") as stream:
                record = json.loads(stream.read())
                # By the clock that dates the outputs too: a network folder's may go otherwise than ours.
                record["begun"] = os.fstat(stream.fileno()).st_mtime_ns
            files = record["files"]
            if record["mffsr_batch"] != VERSION or not isinstance(record.setdefault("before", {}), dict):
                return {}
            for name, expected in (*files.items(), *record.setdefault("earlier", {}).items()):
                if expected is not None and not isinstance(
                    expected["size"] + int(expected["sha256"], 16), int
                ):
                    return {}
                if os.path.isabs(name) or ".." in Path(name).parts or b"\0" in os.fsencode(name):
                    return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}
        return dict(record)


def _mark(path: Path) -> dict[str, Any]:
    """Return what a file is known by."""
    found = content(path)
    return {"size": found.size, "sha256": found.sha256}
