"""Worker processes of Dask: reach them or start them; what they use to talk to the client."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from typing import Any

from mffsr.errors import ClusterError

__all__ = [
    "TIMED_OUT",
    "Stopped",
    "Teller",
    "cluster",
    "cores",
    "first_line",
    "ignore_interrupts",
    "interrupts_held",
    "stop",
    "threads",
]

REACH, ANSWER = 5.0, 20.0  # s to reach a scheduler, and until it has answered: three steps of the former
TIMED_OUT = (TimeoutError, asyncio.TimeoutError)  # one and the same since Python 3.11
NOT_DASK = (MemoryError, struct.error)  # where Dask takes other words, as of a web server, for sizes
_stopped: set[str] = set()  # in a worker: the runs that were interrupted


class Stopped(BaseException):
    """In a worker: the run was interrupted."""


class Teller:
    """In a worker, while it does a task: tells the client how it goes."""

    def __init__(self, run: str) -> None:
        from distributed import get_worker

        self._run, self._worker = run, get_worker()

    def tell(self, kind: str, *values: str | int) -> None:
        """Send something; raises Stopped where the client was interrupted."""
        if self._run in _stopped:
            raise Stopped
        self._worker.log_event(self._run, [self._worker.address, kind, *values])


def threads() -> int:
    """In a worker, while it does a task: return how many threads it was given."""
    from distributed import get_worker

    return int(get_worker().state.nthreads)


def stop(run: str) -> None:
    """In a worker: have a run leave off."""
    _stopped.add(run)


def ignore_interrupts() -> None:
    """In a worker process: leave what a terminal sends to all, Ctrl-C and its own end, to the client."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while the block runs; threads and processes started there never hear of it.

    A worker that a terminal interrupts while it is still being loaded would write a traceback. Windows has no
    such thing, and does nothing.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else it starts with the first worker, and lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def cluster(address: str | None, workers: int = 1) -> Iterator[Any]:
    """Yield a client of the scheduler at `address`, or of `workers` processes that are started here.

    Raises ClusterError where `distributed` is not installed, or no scheduler answers within seconds.
    """
    try:
        import distributed  # noqa: F401 - is it there?
    except ImportError:
        raise ClusterError(
            "workers need the package distributed, which is not installed\npip install 'mffsr[cluster]'"
        ) from None
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what matters is told by `run_cluster`
    with ExitStack() as stack:
        if address is None:
            yield _processes(workers, stack)
            return
        try:
            client = stack.enter_context(_client(address))
        except (OSError, ValueError, TypeError, ImportError, *TIMED_OUT, *NOT_DASK) as fault:
            why = first_line(fault)
            if isinstance(fault, TIMED_OUT):  # whichever of Dask's waits ended first; some say nothing
                why = "timed out"
            elif isinstance(fault, NOT_DASK):
                why = "something else does"
            raise ClusterError(
                f"{address}: no Dask scheduler answers there ({why})\n"
                "expected something like tcp://10.0.0.1:8786; dask scheduler starts one"
            ) from None
        yield client


def _client(address: str) -> Any:
    """Return a client of the scheduler at `address`; raises whatever Dask does where none answers."""
    import distributed

    class Client(distributed.Client):  # type: ignore[misc]
        """One that ends without a word where it could not begin: it would close what it never opened."""

        def start(self, **options: Any) -> None:
            """Connect."""
            try:
                super().start(callback_timeout=ANSWER, **options)  # Dask waits for a handshake without end
            except BaseException:
                self.status = "closed"
                raise

    return Client(address, timeout=REACH, set_as_default=False)


def _processes(workers: int, stack: ExitStack) -> Any:
    """Start worker processes that end with `stack`; return their client."""
    import dask
    import distributed
    from distributed.utils import LoopRunner

    given = os.environ.get("OMP_NUM_THREADS", "")
    each = int(given) if given.isdecimal() else max(1, cores() // workers)
    scratch = tempfile.TemporaryDirectory(prefix="mffsr-", ignore_cleanup_errors=True)
    try:
        stack.enter_context(dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}))
        runner = LoopRunner()
        stack.callback(runner.stop)
        with interrupts_held():
            runner.start()  # the thread from which all workers are started
        processes = distributed.LocalCluster(
            loop=runner.loop,
            n_workers=workers,
            threads_per_worker=each,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,  # the engine keeps to a budget of its own
            local_directory=stack.enter_context(scratch),
            silence_logs=logging.CRITICAL,
        )
        client = distributed.Client(stack.enter_context(processes), set_as_default=False)
        stack.enter_context(client)
        client.wait_for_workers(workers)
    except (OSError, RuntimeError, *TIMED_OUT) as fault:
        raise ClusterError(f"worker processes cannot be started: {first_line(fault)}") from fault
    return client


def cores() -> int:
    """Return how many cores of this machine the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def first_line(fault: BaseException) -> str:
    """Return what to say of an error in one line."""
    return next(iter(str(fault).splitlines()), "") or type(fault).__name__
