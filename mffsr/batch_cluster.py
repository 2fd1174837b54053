"""Many brackets, done by the workers of a Dask cluster: each does one at a time, as `run_batch` does it.

    here     which worker is free? · claim the output · send it the bracket · take what it tells
    worker   load the model once · run_batch of this one bracket: photos are read and results written there

A worker that is lost loses its bracket to another one, at most `TRIES` times. Scheduler and workers must see
photos and outputs under the same names.
"""

from __future__ import annotations

import queue
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mffsr.batch import Outcome
from mffsr.batch_workers import TIMED_OUT, first_line, ignore_interrupts, stop
from mffsr.errors import ClusterError, MffsrError
from mffsr.photo.brackets import Bracket

__all__ = ["TRIES", "Task", "Told", "new_run", "run_cluster"]

TRIES = 3  # a bracket that was lost so often with its worker is what kills them
APPEAR, RETURN = 10.0, 60.0  # s for the first worker to appear, and for another one where all are lost
LOOK = 0.5  # s between two looks at which workers there are
FINISH = 60.0  # s for workers to leave off when interrupted: they look between two tiles
LOST_SCHEDULER = "the Dask scheduler was lost ({})\nstart it again, then go on with --resume"
LOST = ("CancelledError", "FutureCancelledError", "KilledWorker", "CommClosedError")


class Task(Protocol):
    """What workers do. It is sent to them, so it is made of plain data."""

    @property
    def run(self) -> str:
        """A name of its own."""

    def prepare(self) -> Mapping[str, str]:
        """Get ready; return what must be alike in all workers. Raises MffsrError where it cannot work."""

    def do(self, bracket: Bracket, *, again: bool) -> Outcome | None:
        """Do a bracket, `again` where a lost worker may have done it already; None where interrupted."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """Whom to tell what; `progress` gets the number of the worker."""

    started: Callable[[Bracket, int], None]
    ended: Callable[[Outcome], None]
    progress: Callable[[int, str, int, int], None]
    message: Callable[[str], None]
    warning: Callable[[str], None]


def run_cluster(
    client: Any,
    brackets: Sequence[Bracket],
    task: Task,
    *,
    claim: Callable[[Bracket], None],
    told: Told,
) -> None:
    """Do all brackets on the workers of `client`, a `distributed.Client`; nothing is raised for a failed one.

    `claim` is called here, in the brackets' order, and raises MffsrError for one that cannot be begun. Raises
    ClusterError where the scheduler or all workers are lost, and before anything is computed where a worker
    cannot do the task or differs from another. Where this is interrupted, workers leave off what they do.
    """
    _Run(client, brackets, task, claim, told).run()


def new_run() -> str:
    """Return a name for a run."""
    return f"mffsr-{secrets.token_hex(8)}"


@dataclass
class _Work:
    """A bracket and how often it was begun."""

    bracket: Bracket
    index: int  # from 1
    tries: int = 0
    clock: float = 0.0


@dataclass
class _Seat:
    """A worker: `future` is what it is at, `work` the bracket; neither while it waits."""

    address: str
    number: int
    future: Any = None
    work: _Work | None = None
    ready: bool = False
    refused: bool = False


class _Run:
    """The state of one run. What is heard comes from other threads, through one queue."""

    def __init__(
        self,
        client: Any,
        brackets: Sequence[Bracket],
        task: Task,
        claim: Callable[[Bracket], None],
        told: Told,
    ) -> None:
        self.client, self.task, self.claim, self.told = client, task, claim, told
        self.waiting = deque(_Work(bracket, index) for index, bracket in enumerate(brackets, 1))
        self.seats: dict[str, _Seat] = {}
        self.alike: tuple[str, Mapping[str, str]] | None = None  # a worker, and what it said of itself
        self.news: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.count = 0  # workers seen
        self.looked = self.alive = time.monotonic()
        self.unready = 0  # workers lost before they were ready
        self.begun = False

    def run(self) -> None:
        self.client.subscribe_topic(self.task.run, lambda event: self.news.put(("told", event[1])))
        try:
            self._look()
            while not self.seats or any(not seat.ready for seat in self.seats.values()):
                self._listen()
            self.begun = True
            while self.waiting or any(seat.work for seat in self.seats.values()):
                self._hand_out()
                self._listen()
        except BaseException:
            self._leave_off()
            raise
        finally:
            with suppress(Exception):
                self.client.unsubscribe_topic(self.task.run)

    # Workers -----------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Find out which workers there are; ask new ones to get ready, give up on lost ones."""
        self.looked = now = time.monotonic()
        self._check_scheduler()
        try:
            there = set(self.client.scheduler_info(n_workers=-1)["workers"])
        except (OSError, *TIMED_OUT) as fault:
            raise ClusterError(LOST_SCHEDULER.format(first_line(fault))) from None
        for seat in [seat for address, seat in self.seats.items() if address not in there]:
            self._lost(seat)
        for address in sorted(there - set(self.seats)):
            self.count += 1
            seat = self.seats[address] = _Seat(address, self.count)
            if self.client.cluster is not None:  # processes of our own
                self.client.run(ignore_interrupts, workers=[address], on_error="ignore")
            self._send(seat, self.task.prepare)
        if any(not seat.refused for seat in self.seats.values()):
            self.alive = now
        elif now - self.alive > (RETURN if self.begun else APPEAR):
            raise ClusterError(
                f"no worker is {'left' if self.begun else 'connected to the scheduler'}\n"
                "start some: dask worker ADDRESS"
            )

    def _check_scheduler(self) -> None:
        if self.client.status != "running":
            raise ClusterError(LOST_SCHEDULER.format("it closed the connection"))

    def _send(self, seat: _Seat, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Have one worker, and no other, do something."""
        seat.future = self.client.submit(
            function,
            *arguments,
            **options,
            key=f"{self.task.run}-{'bracket' if seat.ready else 'prepare'}-{secrets.token_hex(4)}",
            workers=[seat.address],
            allow_other_workers=False,
        )
        seat.future.add_done_callback(lambda future: self.news.put(("ended", (seat, future))))

    def _hand_out(self) -> None:
        """Give each waiting worker a bracket."""
        for seat in self.seats.values():
            while self.waiting and seat.ready and not seat.refused and seat.work is None:
                work = self.waiting.popleft()
                if not work.tries:
                    work.clock = time.perf_counter()
                    self.told.started(work.bracket, work.index)
                    try:
                        self.claim(work.bracket)
                    except Exception as fault:  # noqa: BLE001 - one bracket's fault is not the others'
                        self._failed(work, fault)
                        continue
                work.tries += 1
                seat.work = work
                self._send(seat, self.task.do, work.bracket, again=work.tries > 1)

    def _lost(self, seat: _Seat) -> None:
        """Forget a worker; put its bracket first in the line, if that was not lost too often."""
        self._check_scheduler()  # which would take all workers with it
        del self.seats[seat.address]  # if it is there all the same, `_look` will find it again
        if seat.future is not None:
            seat.future.cancel()
            seat.future = None
        work, seat.work = seat.work, None
        if work is None:
            self.unready += not seat.ready
            if self.unready >= TRIES and not any(other.ready for other in self.seats.values()):
                raise ClusterError("workers are lost while they load the model\nis there enough memory?")
            return
        name = f"{work.bracket.name}: worker {seat.address} was lost"
        if work.tries < TRIES:
            self.told.warning(f"{name}; it is tried again, {work.tries + 1} of {TRIES}")
            self.waiting.appendleft(work)
        else:
            text = f"{name}, as were {TRIES - 1} others with this bracket\nis there enough memory for it?"
            self._failed(work, ClusterError(text))

    # What they tell ----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Take the next that is heard; look at the workers from time to time."""
        with suppress(queue.Empty):
            kind, what = self.news.get(timeout=max(0.0, self.looked + LOOK - time.monotonic()))
            if kind == "told":
                self._heard(*what)
            else:
                seat, future = what
                if seat.future is future:  # else it is of a worker that was given up
                    self._ended(seat, future)
        if time.monotonic() - self.looked >= LOOK:
            self._look()

    def _heard(self, address: str, kind: str, *values: Any) -> None:
        if kind == "warning":
            self.told.warning(values[0])
        elif kind == "progress" and (seat := self.seats.get(address)) is not None:
            self.told.progress(seat.number, *values)

    def _ended(self, seat: _Seat, future: Any) -> None:
        """Take what a worker returns or raises."""
        error: BaseException | None
        result = None
        try:
            error = future.exception(timeout=LOOK)
            result = future.result(timeout=LOOK) if error is None else None
        except TIMED_OUT:  # on its way, or the worker was lost after all, which `_look` finds out
            self.news.put(("ended", (seat, future)))
            return
        except Exception as fault:  # noqa: BLE001 - cancelled or lost, which no common type tells
            error = fault
        if type(error).__name__ in LOST:
            self._lost(seat)
            return
        seat.future = None
        if not seat.ready:
            self._prepared(seat, result, error)
            return
        work, seat.work = seat.work, None
        if work is None:
            return
        if error is not None:
            self._failed(work, error)
        elif result is not None:
            self._done(work, result)

    def _prepared(self, seat: _Seat, result: Mapping[str, str] | None, error: BaseException | None) -> None:
        """Take a worker in; refuse one that cannot do the task, or not as the others do."""
        text = ""
        if error is not None:
            text = str(error) if isinstance(error, MffsrError) else f"{type(error).__name__}: {error}"
        elif result is not None:
            self.alike = self.alike or (seat.address, result)
            other, expected = self.alike
            if result != expected:
                here, there = (", ".join(said.values()) for said in (result, expected))
                text = (
                    f"{here}, but {there} at {other}\nresults would differ: choose --device and --precision"
                )
        if text and not self.begun:
            raise ClusterError(f"worker {seat.address}: {text}")
        seat.ready, seat.refused = True, bool(text)
        if text:
            self.told.warning(f"worker {seat.address} is not used: {text}")
        else:
            said = ", ".join((result or {}).values())
            self.told.message(f"worker {seat.number} at {seat.address}: {said}")

    def _done(self, work: _Work, outcome: Outcome) -> None:
        if work.tries > 1 and outcome.event == "skipped":  # the worker was lost after it had finished
            outcome = replace(outcome, event="done", reason="")
        seconds = time.perf_counter() - work.clock
        self.told.ended(replace(outcome, bracket=work.bracket, index=work.index, seconds=seconds))

    def _failed(self, work: _Work, error: BaseException) -> None:
        seconds = time.perf_counter() - work.clock
        self.told.ended(
            Outcome(event="failed", bracket=work.bracket, index=work.index, seconds=seconds, error=error)
        )

    def _leave_off(self) -> None:
        """Have the workers stop, and wait until none is at work any more."""
        self.waiting.clear()
        busy = [seat.address for seat in self.seats.values() if seat.work is not None]
        until = time.monotonic() + FINISH
        with suppress(Exception):
            if busy:
                self.client.run(stop, self.task.run, workers=busy, on_error="ignore")
            while any(seat.work for seat in self.seats.values()) and time.monotonic() < until:
                self._listen()
                self.waiting.clear()
