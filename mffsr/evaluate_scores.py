"""Numbers of many images: computed by worker processes, averaged with a bootstrap interval.

This module loads without torch, which workers have no use for.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mffsr.batch_workers import interrupts_held
from mffsr.errors import MffsrError, UsageError
from mffsr.evaluate_files import Pixels, colour, load_all
from mffsr.metrics import FUSION_KEYS, FusionMetrics, fusion_metrics, psnr, ssim

__all__ = [
    "Evaluation",
    "Progress",
    "Row",
    "Scores",
    "bootstrap",
    "finite",
    "fusion_scores",
    "measure",
    "scores",
    "truth_scores",
]

Progress = Callable[[str, int, int], None]

DIED = "a worker process died, probably for lack of memory\nuse --jobs 1"
RESAMPLES = 2000  # of the bootstrap
LIKENESS = ("psnr_y", "ssim_y")
ORDER = (
    *FUSION_KEYS,
    *LIKENESS,
    *("label_accuracy", "boundary_accuracy"),
    *(f"{prefix}_{key}" for prefix in ("ceiling", "sr", "bicubic") for key in LIKENESS),
)


class Row(NamedTuple):
    """One image's numbers."""

    name: str
    values: dict[str, float]
    facts: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One method's numbers on a set of images."""

    method: str
    rows: list[Row] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """The numbers that every image has, in order."""
        return [key for key in self.rows[0].values if all(key in row.values for row in self.rows)]

    def column(self, key: str) -> NDArray[np.float64]:
        """One number of all images."""
        return np.array([row.values[key] for row in self.rows])

    @property
    def mean(self) -> dict[str, float]:
        """The mean over all images; NaN or infinite where one image's value is."""
        return {key: float(self.column(key).mean()) for key in self.keys}

    @property
    def ci95(self) -> dict[str, tuple[float, float]]:
        """The 95 % bootstrap interval of each mean."""
        return {key: bootstrap(self.column(key)) for key in self.keys}

    def as_json(self) -> dict[str, Any]:
        """Return `{"mean", "ci95", "images"}` for JSON; what is not finite becomes None."""
        return {
            "mean": {key: finite(value) for key, value in self.mean.items()},
            "ci95": {key: [finite(end) for end in ends] for key, ends in self.ci95.items()},
            "images": [
                {"name": row.name, **row.facts, **{key: finite(value) for key, value in row.values.items()}}
                for row in self.rows
            ],
        }


def finite(value: float) -> float | None:
    """Return the value, or None where JSON has no number for it."""
    return value if np.isfinite(value) else None


def bootstrap(values: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % percentile-bootstrap interval of the mean: 2000 resamples of the images, drawn alike.

    One image has no spread: both ends are its value. NaN where a value is not finite.
    """
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[drawn].mean(1), [2.5, 97.5])
    return float(low), float(high)


class _Inline(Executor):
    """Computes at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except ValueError as error:
            future.set_exception(error)
        return future


class _Workers(ProcessPoolExecutor):
    """Computes in processes that the parent ends: what a terminal sends to all at Ctrl-C is not for them."""

    def __init__(self, jobs: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would carry torch's threads and the GPU along
        super().__init__(jobs, mp_context=context, initializer=_start_worker)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        with interrupts_held():  # which a process that is started here inherits
            return super().submit(fn, *args, **kwargs)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


class Scores:
    """Collects numbers of images, computed by `jobs` worker processes while the next image is fused."""

    def __init__(self, executor: Executor, limit: int, total: int, progress: Progress) -> None:
        self._executor, self._limit, self._total, self._progress = executor, limit, total, progress
        self._pending: dict[Future[Any], tuple[Row, str]] = {}
        self._methods: dict[str, Evaluation] = {}
        self._done = 0

    def row(self, method: str, name: str, **facts: str) -> Row:
        """Start an image of a method. Raises MffsrError where it has just been: two methods have one name."""
        rows = self._methods.setdefault(method, Evaluation(method=method)).rows
        if rows and rows[-1].name == name:
            raise MffsrError(f"{method}: two methods of this name\nrename the folder of the one")
        rows.append(Row(name, {}, facts))
        return rows[-1]

    def add(
        self, row: Row, function: Callable[..., Mapping[str, float]], *args: object, prefix: str = ""
    ) -> None:
        """Compute numbers of an image; images may wait while others are measured, but not without limit."""
        try:
            future = self._executor.submit(function, *args)
        except BrokenProcessPool:
            raise MffsrError(DIED) from None
        self._pending[future] = row, prefix
        while len(self._pending) > self._limit:
            self._collect(wait(self._pending, return_when=FIRST_COMPLETED).done)

    def _collect(self, futures: set[Future[Any]]) -> None:
        for future in futures:
            row, prefix = self._pending.pop(future)
            try:
                values: Mapping[str, float] = future.result()
            except ValueError as error:
                raise MffsrError(f"{row.name}: {error}") from None
            except BrokenProcessPool:
                raise MffsrError(DIED) from None
            row.values.update({prefix + key: value for key, value in values.items()})
            self._done += 1
            self._progress("Measuring", self._done, self._total)

    def results(self) -> list[Evaluation]:
        """Wait for all numbers and return the methods in the order in which they began."""
        while self._pending:
            self._collect(wait(self._pending, return_when=FIRST_COMPLETED).done)
        for evaluation in self._methods.values():
            for row in evaluation.rows:  # whichever worker was first
                ordered = sorted(row.values.items(), key=lambda item: ORDER.index(item[0]))
                row.values.clear()
                row.values.update(ordered)
        return list(self._methods.values())


@contextmanager
def scores(jobs: int, total: int, progress: Progress) -> Iterator[Scores]:
    """Measure `total` times in `jobs` processes (1: in this one) while the block runs, then end them."""
    executor = _Inline() if jobs == 1 else _Workers(jobs)
    before = set(multiprocessing.active_children())
    try:
        yield Scores(executor, 0 if jobs == 1 else 2 * jobs, total, progress)
    except BaseException:  # a fault, or Ctrl-C: do not wait for what is being measured
        for worker in set(multiprocessing.active_children()) - before:
            worker.terminate()
        raise
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


# What is computed -----------------------------------------------------------------------------------------


def measure(sources: Sequence[Path], fused: Path) -> FusionMetrics:
    """Return the fusion metrics of any fused image, per channel and as their mean.

    All files are read as 8 bits a channel, alpha left out. Raises UsageError for fewer than two sources,
    PhotoError, BracketError for sizes that differ, MffsrError for images smaller than 11×11.
    """
    if len(sources) < 2:
        raise UsageError(f"{len(sources)} source given, expected at least 2: --sources A B --fused F")
    *originals, result = load_all([*sources, fused])
    try:
        return fusion_metrics(originals, result)
    except ValueError as error:
        raise MffsrError(f"{fused}: {error}") from None


def fusion_scores(originals: Sequence[Pixels], fused: Pixels) -> dict[str, float]:
    """Return the fusion metrics, each the mean over the channels. Raises ValueError as `fusion_metrics`."""
    if originals[0].shape[2] != fused.shape[2]:
        originals, fused = [colour(image) for image in originals], colour(fused)
    return fusion_metrics(originals, fused)["mean"]


def truth_scores(truth: Pixels, image: Pixels, border: int) -> dict[str, float]:
    """Return PSNR (dB) and SSIM of the luma, `border` pixels left out along every side. Raises ValueError."""
    truth, image = colour(truth), colour(image)
    return {
        "psnr_y": psnr(truth, image, luma=True, border=border),
        "ssim_y": ssim(truth, image, luma=True, border=border),
    }
