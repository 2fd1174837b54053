"""Freed memory stays with the process, until it is much and tiles of another size need other blocks."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from mffsr.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import torch
def work():
    for _ in range(20):
        torch.ones(10, 1024, 1024)  # 40 MB
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


RESIDENT = """
import sys
from mffsr.allocator import keep_freed_memory, keep_up_to, make_room_for
keep_freed_memory()
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
tensors = [torch.ones(10, 1024, 1024) for _ in range(10)]
kept = [torch.ones(100, 1024) for _ in range(10)]  # above them, so that the heap cannot shrink
keep_up_to(2 << 30)
make_room_for(1)
del tensors
full = resident()
make_room_for(2)
roomy = resident()
keep_up_to(100 << 20)
make_room_for(1)
few = resident()
tensors = [torch.ones(10, 1024, 1024) for _ in range(10)]
del tensors
again = resident()
make_room_for(1)
print(full - roomy, roomy - few, again - resident())
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is what is adjusted")


@glibc
def test_memory_is_not_asked_for_again():
    plain, kept = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True).stdout)
        for how in ("plain", "keep")
    )
    assert kept < 100
    assert kept < plain / 5


@glibc
def test_memory_goes_back_before_tiles_of_another_size():
    run = subprocess.run([sys.executable, "-c", RESIDENT], check=True, capture_output=True)
    roomy, other_size, same_size = map(int, run.stdout.split())
    assert roomy < 10
    assert other_size > 300
    assert same_size < 10


LIMITED = """
import resource
from mffsr.allocator import keep_freed_memory
import torch
def mapped():
    return int(open("/proc/self/statm").read().split()[0]) * 4096 >> 20
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
keep_freed_memory()
tensors = [torch.ones(4, 1024, 1024) for _ in range(20)]  # 16 MB each: by default, soon taken from the heap
kept = []
for _ in range(20):
    del tensors[0]
    kept.append(torch.ones(100, 1024))
    tensors.append(torch.ones(4, 1024, 1024))
full = mapped()
del tensors
print(full - mapped())
"""


@glibc
def test_a_limited_address_space_gets_back_what_is_freed():
    run = subprocess.run([sys.executable, "-c", LIMITED], check=True, capture_output=True)
    assert int(run.stdout) > 300
