"""Many brackets, one after the other, with the model loaded once.

    thread   find output · hash photos · finished before? · decode     of the next bracket
    caller   compute · begin record · write · complete record          of this one

What goes wrong in one bracket is told and counted; the others are done all the same.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from mffsr.batch_record import Found, Records, State, key_of
from mffsr.errors import BracketError, ExistsError, MffsrError, PhotoError, UsageError
from mffsr.photo import Photo, read_header, read_photo
from mffsr.photo.brackets import Bracket
from mffsr.photo.content import Content, content, unchanged
from mffsr.text import file_of

__all__ = ["Claims", "Outcome", "Reader", "Worker", "run_batch"]

PATIENCE = 2.0  # s to wait for another process to complete the record of what it just wrote
R = TypeVar("R")


class Reader(Protocol):
    """Reads a photo as `read_photo` does."""

    def __call__(self, path: Path, *, warn: Callable[[str], None] | None = None) -> Photo: ...


class Worker(Protocol[R]):
    """How one bracket is done. Methods raise MffsrError for what cannot be done."""

    max_pixels: int  # that a photo may have

    def target(self, bracket: Bracket) -> Path:
        """Return where the result goes; called from a second thread."""

    def complete(self, output: Path) -> bool:
        """Return whether what belongs to a finished output beside its files is there, such as a report."""

    def compute(self, bracket: Bracket, target: Path, read: Reader, *, begun: Sequence[Path]) -> R | None:
        """Return the result, not written yet; None where the target exists and is to be left alone.

        `begun` are the files of an earlier run that was not finished, the output first: they, and no
        others, are written anew.
        """

    def files(self, result: R) -> list[Path]:
        """Return the files that `write` will write."""

    def write(self, result: R) -> dict[str, Any]:
        """Write the result and return what is to be told of it."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a bracket: `event` is "done", "failed" or "skipped"."""

    event: str
    bracket: Bracket
    index: int  # from 1
    seconds: float
    error: BaseException | None = None  # of a failed one
    reason: str = ""  # why it was skipped
    details: Mapping[str, Any] = field(default_factory=dict)


def run_batch(
    brackets: Sequence[Bracket],
    worker: Worker[R],
    *,
    out: Path,
    options: Mapping[str, Any],
    resume: bool = False,
    ahead: int = 0,
    started: Callable[[Bracket, int], None] = lambda bracket, index: None,
    ended: Callable[[Outcome], None] = lambda outcome: None,
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Do all brackets. `started` and `ended` are told of each in turn; nothing is raised for a failed one.

    `options` are those that change the results, as JSON has them, with the weights' digests. With `resume`,
    brackets are skipped that were finished with the same contents and options and whose outputs are as they
    were written. Up to `ahead` bytes of pixels of the next bracket are decoded while one is computed.
    """
    _Batch(brackets, worker, out, options, resume, ahead, warn).run(started, ended)


class Claims:
    """Which bracket writes which file: no two write one, and none writes a photo of any bracket."""

    def __init__(self, brackets: Sequence[Bracket]) -> None:
        self._inputs = {_real(file_of(photo)) for bracket in brackets for photo in bracket.photos}
        self._claimed: dict[str, Bracket] = {}
        self._spelled: dict[str, str] = {}  # without capitals → as it was claimed first

    def claim(self, target: Path, bracket: Bracket) -> None:
        """Note an output; raises UsageError for one that is an input, BracketError for another bracket's."""
        real = _real(target)
        if real in self._inputs:
            raise UsageError(
                f"{target}: is one of the inputs, which are never overwritten\nchoose another -o"
            )
        spelled = self._spelled.setdefault(real.casefold(), real)
        if spelled != real and _one_file(spelled, real):
            real = spelled
        other = self._claimed.setdefault(real, bracket)
        if other is not bracket:
            raise BracketError(f"{target}: is the output of bracket {other.name} already\nrename one of them")


def _real(path: Path) -> str:
    """Return the one name of a file, whatever links and, on Windows, capitals lead to it."""
    return os.path.normcase(os.path.realpath(path))


def _one_file(one: str, other: str) -> bool:
    """Whether two names are of one file, as on a disk that takes capitals for small letters."""
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there
        return False


class _Skipped(Exception):  # noqa: N818 - nothing went wrong
    """A bracket need not be done; the text says why."""


@dataclass
class _Batch(Generic[R]):
    """The state of one batch; see `run_batch` for its fields."""

    brackets: Sequence[Bracket]
    worker: Worker[R]
    out: Path
    options: Mapping[str, Any]
    resume: bool
    ahead: int
    warn: Callable[[str], None]

    def __post_init__(self) -> None:
        self.records = Records(self.out)
        self.claims = Claims(self.brackets)

    def run(self, started: Callable[[Bracket, int], None], ended: Callable[[Outcome], None]) -> None:
        coming: _Ahead | None = None
        try:
            for index, bracket in enumerate(self.brackets, 1):
                started(bracket, index)
                clock = time.perf_counter()
                current = coming = coming or _Ahead(self, bracket)
                current.wait()
                coming = _Ahead(self, self.brackets[index]) if index < len(self.brackets) else None
                ended(self._attempt(bracket, index, current, clock))
        finally:
            if coming is not None:
                coming.close()

    def _attempt(self, bracket: Bracket, index: int, ahead: _Ahead, clock: float) -> Outcome:
        """Do one bracket, whatever goes wrong with it."""
        event, reason = "done", ""
        details: dict[str, Any] = {}
        error: Exception | None = None
        try:
            details = self._one(bracket, ahead)
        except _Skipped as skipped:
            output = next(iter(ahead.found.files), ahead.target)  # which may have been renamed
            event, reason, details = "skipped", str(skipped), {"output": str(output)}
        except Exception as fault:  # noqa: BLE001 - one bracket's fault, even ours, is not the others'
            event, error = "failed", fault
        finally:
            ahead.close()
        return Outcome(
            event=event,
            bracket=bracket,
            index=index,
            seconds=time.perf_counter() - clock,
            error=error,
            reason=reason,
            details=details,
        )

    def _one(self, bracket: Bracket, ahead: _Ahead) -> dict[str, Any]:
        """Return what is to be told of a bracket; raises _Skipped for one that need not be done."""
        if ahead.error is not None:
            raise ahead.error
        target, key = ahead.target, ahead.key
        self.claims.claim(target, bracket)
        if ahead.found.state is State.finished:
            raise _Skipped("finished before with the same photos, options and weights")
        self._look_again(ahead)
        try:
            begun = ahead.found.files if ahead.found.state is State.begun else ()
            result = self.worker.compute(bracket, target, ahead.read, begun=begun)
        except MffsrError as fault:
            self._look_again(ahead)
            if self.resume and isinstance(fault, ExistsError) and str(fault).startswith(f"{target}:"):
                raise ExistsError(
                    f"{target}: made before with other options, photos or weights, or changed since\n"
                    "-f makes it anew"
                ) from None
            raise
        if result is None:
            raise _Skipped("the output exists")
        files = self.worker.files(result)
        for file in files:
            self.claims.claim(file, bracket)
        if files[0] == target:
            self._look_again(ahead)
        details = self._write(result, files, ahead)
        changed = [photo for photo, before in ahead.contents.items() if not unchanged(photo, before)]
        if changed:  # of what the result was made is not known
            self.records.forget(target, key)
            self.warn(
                f"{changed[0]}: was changed while it was being read; the result may mix old and new contents"
            )
        else:
            self.records.finish(target, key, files)
        return details

    def _write(self, result: R, files: Sequence[Path], ahead: _Ahead) -> dict[str, Any]:
        """Write the `files` of a result, with a record of it; return what is to be told of it."""
        target, key = ahead.target, ahead.key
        self.records.begin(target, key, files)
        try:
            return self.worker.write(result)
        except Exception as fault:
            # Errors name the file that they are of: unless that is the photo, a photo that is there is ours,
            # and --resume goes on with it.
            of_the_photo = str(fault).startswith(f"{target}:")
            if files[0] != target or of_the_photo or not os.path.lexists(target):
                self.records.forget(target, key)
            else:
                self.records.keep(target, key)
            if files[0] == target and of_the_photo:
                self._look_again(ahead)
            raise
        except BaseException:  # Ctrl-C and the like
            self.records.keep(target, key)
            raise

    def _look_again(self, ahead: _Ahead) -> None:
        """Find out about an output that came to be since the bracket was looked at.

        Raises _Skipped where another process finished the same; PhotoError where its origin is not known.
        """
        if ahead.there or not os.path.lexists(ahead.target):
            return
        until = time.monotonic() + PATIENCE
        while self.records.find(ahead.target, ahead.key).state is not State.finished:
            if time.monotonic() > until:
                raise PhotoError(
                    f"{ahead.target}: appeared while this bracket was at work, and was left as it is\n"
                    "another program, or a batch with other options, writes into this folder"
                )
            time.sleep(0.05)
        raise _Skipped("another process finished it meanwhile")


class _Ahead:
    """One bracket, got ready by a thread of its own: output, digests, record, and as many pixels as allowed.

    Damaged photos do not matter here: they are read again, and reported, where they are needed.
    """

    def __init__(self, batch: _Batch[Any], bracket: Bracket) -> None:
        self.target = Path()
        self.key = ""
        self.there = False  # whether the output existed before the record was looked at
        self.found = Found(State.unknown)
        self.contents: dict[Path, Content] = {}
        self.error: Exception | None = None
        self._batch, self._bracket = batch, bracket
        self._photos: dict[Path, tuple[Photo, list[str]]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go, name=f"read ahead {bracket.name}", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until all is ready."""
        self._thread.join()

    def close(self) -> None:
        """Drop the pixels; a decoder at work is not waited for longer than a second."""
        self._stop.set()
        self._thread.join(1)
        self._photos.clear()

    def read(self, path: Path, *, warn: Callable[[str], None] | None = None) -> Photo:
        """Return a photo, the one read ahead at first, and what its reading warned of."""
        photo, warnings = self._photos.pop(path, (None, []))
        if photo is None:
            return read_photo(path, max_pixels=self._batch.worker.max_pixels, warn=warn)
        for text in warnings:
            if warn is not None:
                warn(text)
        return photo

    def _go(self) -> None:
        batch, bracket = self._batch, self._bracket
        try:
            self.target = batch.worker.target(bracket)
            self.there = os.path.lexists(self.target)
            files = [file_of(photo) for photo in bracket.photos]
            for file in dict.fromkeys(files):
                self.contents[file] = content(file, stop=self._stop.is_set)
            found = [self.contents[file] for file in files]
            self.key = key_of(bracket.photos, found, batch.options)
            if batch.resume:
                self.found = batch.records.find(self.target, self.key, stop=self._stop.is_set)
            state, made = self.found
            if state is State.finished and not batch.worker.complete(made[0]):
                self.found = Found(State.begun, made)
            if self.found.state is not State.finished:
                self._decode()
        except Exception as fault:  # noqa: BLE001 - raised again by the caller's thread
            self.error = fault

    def _decode(self) -> None:
        batch, left = self._batch, self._batch.ahead
        try:
            for path in self._bracket.photos:
                header = read_header(path)
                planes = header.channels + header.has_alpha
                left -= header.width * header.height * planes * header.bit_depth // 8
                if left < 0 or self._stop.is_set():
                    return
                warnings: list[str] = []
                photo = read_photo(path, max_pixels=batch.worker.max_pixels, warn=warnings.append)
                self._photos[path] = photo, warnings
        except Exception:  # noqa: BLE001 - as libraries say that memory is short, while a bracket is computed
            return
