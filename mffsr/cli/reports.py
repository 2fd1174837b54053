"""`--report`: the page of a bracket and the index page of a batch, written after the photos.

A fault of a report is told and costs the exit code, never a photo.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mffsr.cli.console import Console, failure_text
from mffsr.cli.fuse_job import Job, OnExists
from mffsr.cli.outputs import check_outputs, free_name
from mffsr.errors import PhotoError, UsageError

if TYPE_CHECKING:
    from mffsr.batch import Outcome
    from mffsr.checkpoint import Checkpoint
    from mffsr.device import Runtime
    from mffsr.engine import Fusion
    from mffsr.frames import Frame
    from mffsr.report import Making, Pictures

__all__ = [
    "BatchReport",
    "Report",
    "command_line",
    "making_of",
    "settle_index",
    "settle_report",
    "write_index",
]


def command_line() -> str:
    """Return the command that runs, as a shell takes it."""
    return shlex.join(["mffsr", *sys.argv[1:]])


def making_of(command: str, runtime: Runtime, parts: Sequence[Checkpoint]) -> Making:
    """Return how a result comes to be."""
    import torch

    from mffsr import __version__
    from mffsr.report import Making

    return Making(
        command=command,
        device=runtime.reason,
        weights=[(part.path.name, part.sha256) for part in parts],
        versions={
            "mffsr": __version__,
            "torch": str(torch.__version__),
            "Python": platform.python_version(),
            "system": platform.platform(terse=True),
        },
    )


def settle_report(path: Path, job: Job, on_exists: OnExists) -> Path:
    """Return where the report goes; raises UsageError or PhotoError where it cannot be written."""
    from mffsr.photo import resolve_target

    _check_name(path)
    if on_exists is OnExists.rename:
        path = free_name(path)
    check_outputs([*job.outputs, path], job.photos)
    resolve_target(path, overwrite=on_exists is OnExists.overwrite)
    return path


def _check_name(path: Path) -> None:
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: the report is an HTML file; expected a name such as report.html")


class Report:
    """The report of one bracket: pictures are taken while it is fused, the page is written afterwards."""

    def __init__(self, path: Path, scale: int, making: Making, *, overwrite: bool) -> None:
        self.path, self._scale, self._making, self._overwrite = path, scale, making, overwrite
        self._pictures: Pictures | None = None
        self._fault: str | None = None

    def inspect(self, frames: Mapping[int, Frame], fusion: Fusion) -> None:
        """Take pictures of the frames; what goes wrong is told by `write`."""
        from mffsr.report import take_pictures

        try:
            self._pictures = take_pictures(frames, fusion, self._scale)
        except Exception as fault:  # noqa: BLE001 - the photo is to be finished whatever happens here
            self._fault = failure_text(fault)

    def write(self, told: dict[str, Any], console: Console) -> bool:
        """Write the page of a bracket, of which `told` is what --json tells; add to `told` where it is.

        Returns whether it could be done; if not, the user is warned and `told` has None.
        """
        from mffsr.photo import atomic_output
        from mffsr.report import bracket_page

        told["report"] = None
        try:
            if self._pictures is not None:
                page = bracket_page(told, self._pictures, self._making).encode()
                with atomic_output(self.path, overwrite=self._overwrite) as stream:
                    stream.write(page)
                told["report"] = str(self.path)
                console.message(f"report: {self.path}")
                return True
        except Exception as fault:  # noqa: BLE001 - the photo is there; this must not undo it
            self._fault = failure_text(fault)
        cause = (self._fault or "nothing was fused").splitlines()[0].removeprefix(f"{self.path}: ")
        console.warning(f"the photo is complete, but not its report {self.path}: {cause}", always=True)
        return False


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """The index page of a batch, and where the pages of its brackets go: a folder of the same name."""

    index: Path
    command: str
    overwrite: bool
    update: bool  # bring pages of an earlier run up to date

    def may_replace(self, page: Path) -> bool:
        """Whether a page may be written where a file is."""
        from mffsr.report import is_ours

        return self.overwrite or (self.update and is_ours(page))

    def page(self, output: Path, out: Path) -> Path:
        """Return where the page of a bracket goes, whose photo is `output` in the folder `out`."""
        relative = os.path.relpath(output, out)
        return self.index.with_suffix("") / f"{relative}.html"


def settle_index(path: Path, out: Path, on_exists: OnExists, *, resume: bool) -> BatchReport:
    """Check where the index page of a batch goes; raises UsageError or PhotoError.

    It may lie in the output folder `out`, which need not exist yet. With `resume`, or where existing photos
    are skipped, pages that mffsr wrote are brought up to date.
    """
    from mffsr.photo import resolve_target
    from mffsr.report import is_ours

    _check_name(path)
    if on_exists is OnExists.rename:  # to go on, the pages of the earlier run are needed
        path = free_name(path, lambda page: () if resume and is_ours(page) else (page,))
    report = BatchReport(
        index=path,
        command=command_line(),
        overwrite=on_exists is OnExists.overwrite,
        update=resume or on_exists is OnExists.skip,
    )
    home = report.index.parent
    if home.exists() or out.absolute() not in (home.absolute(), *home.absolute().parents):
        resolve_target(report.index, overwrite=report.may_replace(report.index))
    folder = report.index.with_suffix("")
    if os.path.lexists(folder) and not folder.is_dir():
        raise PhotoError(f"{folder}: is in the way: the pages of the brackets go into a folder of that name")
    return report


def write_index(report: BatchReport, out: Path, outcomes: Sequence[Outcome], console: Console) -> bool:
    """Write the index page; return whether it and all pages that it leads to could be written.

    If not, the user is warned.
    """
    from mffsr.photo import atomic_output
    from mffsr.report import Entry, index_page, read_card

    entries = []
    for outcome in outcomes:
        page = report.page(Path(outcome.details["output"]), out) if "output" in outcome.details else None
        card = read_card(page) if page is not None and outcome.event != "failed" else None
        link = "" if page is None or card is None else os.path.relpath(page, report.index.parent)
        reason = failure_text(outcome.error) if outcome.error is not None else outcome.reason
        entries.append(
            Entry(
                bracket=outcome.bracket.name,
                event=outcome.event,
                link=quote(os.fsencode(link.replace(os.sep, "/"))),
                reason=reason,
                card=card,
            )
        )
    try:
        page_text = index_page(out.resolve().name, entries, report.command)
        report.index.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(report.index, overwrite=True) as stream:
            stream.write(page_text.encode())
    except Exception as fault:  # noqa: BLE001 - the photos are there; their exit code tells of them
        cause = failure_text(fault).splitlines()[0].removeprefix(f"{report.index}: ")
        console.warning(f"the index {report.index} could not be written: {cause}", always=True)
        return False
    console.message(f"report: {report.index}")
    lacking = sum(outcome.details.get("report", "") is None for outcome in outcomes)
    if lacking:
        console.message(f"{lacking} of the brackets' reports could not be written", always=True)
    return not lacking
