"""What `mffsr batch` tells: a line a bracket, one display of progress for all, events as JSON, a summary."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mffsr.cli.console import Console, failure_text

if TYPE_CHECKING:
    from mffsr.batch import Outcome
    from mffsr.photo.brackets import Bracket

__all__ = ["BracketConsole", "Tally", "named"]


def named(bracket: Bracket) -> dict[str, Any]:
    """Return a bracket as events name it."""
    return {"bracket": bracket.name, "photos": [str(photo) for photo in bracket.photos]}


class BracketConsole(Console):
    """What one bracket of a batch says: its warnings and its progress, by way of the batch's console."""

    def __init__(self, batch: Console, name: str) -> None:
        super().__init__(quiet=batch.quiet)
        self._batch, self._name = batch, name

    def message(self, text: str, *, always: bool = False) -> None:
        """Say nothing: a line a bracket is enough."""

    def warning(self, text: str, *, always: bool = False) -> None:
        """Warn, with the bracket's name."""
        self.warnings.append(text)
        self._batch.warning(f"{self._name}: {text}", always=always)

    def result(self, text: str, data: Any = None) -> None:
        """Say nothing: the batch tells of results."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """Move the batch's bars."""
        if self._batch.drawing:
            self._batch.progress(stage, done, total)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Draw nothing of its own."""
        yield


class Tally:
    """Tells of each bracket as it ends, and sums up."""

    def __init__(self, total: int, console: Console, *, debug: bool) -> None:
        self.total, self.console, self.debug = total, console, debug
        self.counts = {"done": 0, "failed": 0, "skipped": 0}
        self.failures: list[tuple[str, str]] = []
        self.outcomes: list[Outcome] = []
        self.begun = False

    def started(self, bracket: Bracket, index: int) -> None:
        self.begun = True
        if self.console.drawing:
            self.console.progress("brackets", sum(self.counts.values()), self.total)
        self._event({"event": "start", "index": index, "of": self.total, **named(bracket)})

    def ended(self, outcome: Outcome) -> None:
        name, console = outcome.bracket.name, self.console
        self.counts[outcome.event] += 1
        self.outcomes.append(outcome)
        event = {"event": outcome.event, "bracket": name, "index": outcome.index, "of": self.total}
        place = f"[{outcome.index}/{self.total}] {name}"
        if outcome.error is not None:
            if self.debug:
                console.message("".join(traceback.format_exception(outcome.error)))
            cause = failure_text(outcome.error)
            self.failures.append((name, cause.splitlines()[0]))
            console.message(f"{place}: failed: {cause}")
            event |= {"error": type(outcome.error).__name__, "cause": cause}
        else:
            event |= dict(outcome.details)
            output = outcome.details.get("output", "")
            if outcome.reason:
                event["reason"] = outcome.reason
                console.message(f"{place}: skipped: {output}: {outcome.reason}")
            else:
                console.message(f"{place} → {output} ({outcome.seconds:.1f} s)")
                if not console.as_json:
                    console.result(str(output))
        self._event(event)
        if console.drawing:
            console.progress("brackets", sum(self.counts.values()), self.total)

    def summary(self, seconds: float) -> None:
        """Print how the batch went; failures even with --quiet."""
        counts = self.counts
        left = self.total - sum(counts.values())
        parts = [f"{counts['done']} done", f"{counts['failed']} failed"]
        parts += [f"{counts['skipped']} skipped"] if counts["skipped"] else []
        parts += [f"{left} not begun or not finished"] if left else []
        text = ", ".join(parts)
        if len(self.failures) == 1:
            text += f": {self.failures[0][0]}: {self.failures[0][1]}"
        elif self.failures:
            width = max(len(name) for name, _ in self.failures)
            text += ":" + "".join(f"\n  {name:<{min(width, 40)}}  {cause}" for name, cause in self.failures)
        self.console.message(text, always=bool(self.failures))
        failed = [{"bracket": name, "cause": cause} for name, cause in self.failures]
        event = {"event": "summary", **counts, "left": left, "failures": failed, "seconds": round(seconds, 3)}
        self._event(event)

    def _event(self, data: dict[str, Any]) -> None:
        if self.console.as_json:
            self.console.result("", data)
