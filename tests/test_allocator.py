"""Blocks stay with the process when freed, but for the largest; large ones come in large pages."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is adjusted")

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

FAULTS = """
import resource, sys
if sys.argv[1] == "tuned":
    from mffsr.allocator import tune_malloc
    tune_malloc()
import torch
rows, count = int(sys.argv[2]), int(sys.argv[3])
def work():
    tensors = [torch.ones(rows, 1024) for _ in range(count)]
    for _ in range(10):
        tensors = [torch.ones(rows, 1024) for _ in range(count)]
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

RESIDENT = """
from mffsr.allocator import resident_memory, tune_malloc
tune_malloc()
import torch
tensors, beside = [], []
for _ in range(5):
    tensors = [*tensors[1:], *(torch.ones(10, 1024, 1024) for _ in range(4))]
    beside.append(torch.ones(100, 1024))
full = resident_memory()
taken = len(tensors) * 40
del tensors
print(full - resident_memory() >> 20, taken)
"""


def numbers(code: str, *arguments: str) -> list[int]:
    """Run a program and return what it prints."""
    plain = os.environ | {"MALLOC_TRIM_THRESHOLD_": "131072"}  # glibc's own, which else changes as it goes
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, check=True, capture_output=True, env=plain)
    return [int(word) for word in run.stdout.split()]


def faults(how: str, rows: int, count: int) -> int:
    """Return how many pages a program asks for that takes so many tensors of so many rows, ten times anew."""
    return numbers(FAULTS, how, str(rows), str(count))[0]


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="the system has small pages only"
)
def test_large_blocks_come_in_large_pages() -> None:
    assert faults("tuned", 10 * 1024, 2) < faults("plain", 10 * 1024, 2) / 5


def test_small_blocks_are_not_asked_for_again() -> None:
    assert faults("tuned", 128, 100) < faults("plain", 128, 100) / 5


def test_large_blocks_go_back_when_they_are_freed() -> None:
    given, taken = numbers(RESIDENT)
    assert given > 0.9 * taken
