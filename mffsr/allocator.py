"""How the process takes memory from the system: left alone, that costs a third of the CPU time."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["keep_few_kernels", "keep_freed_memory", "keep_up_to", "make_room_for", "resident_memory"]

MOST = 2 << 30  # bytes: a process that has more gives memory back whatever is allowed
NEED = 80  # bytes that a network takes for each of the tile's image, about

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4

# Bytes of the last tile's image (0: nothing is kept, -1: no tile yet), and how many the process may have
# before a tile of another size makes it give memory back.
_kept = {"size": 0, "most": 0}


def keep_freed_memory() -> None:
    """Let malloc keep what is freed, and take large blocks in large pages; nothing where that is unknown.

    By default glibc gives every large block back as soon as it is freed, so that each layer of a network
    writes into pages that the kernel first has to find and clear. For the program's own processes only: a
    library has no business with its host's allocator. Must be called before PyTorch first allocates.

    Where the address space is limited (`ulimit -v`), the opposite: what is kept counts there, and a tile too
    large would leave no room for smaller ones.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    if _address_space_is_limited():
        mallopt(M_MMAP_THRESHOLD, 1 << 20)
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by PyTorch
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)  # never
    mallopt(M_TOP_PAD, 64 << 20)
    _kept["size"] = -1


def _address_space_is_limited() -> bool:
    try:
        import resource
    except ImportError:  # Windows
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def make_room_for(size: int) -> None:
    """Give kept memory back before a tile of another size: its blocks fit badly into the old one's holes.

    `size` is the bytes of the tile's image. Does nothing where nothing is kept, nor where the process would
    stay below what `keep_up_to` allows if no hole fitted: to take memory anew costs a small tile a tenth of
    its time.
    """
    before = _kept["size"]
    if before in (0, size):
        return
    _kept["size"] = size
    if resident_memory() + NEED * size >= _kept["most"]:
        ctypes.CDLL(None).malloc_trim(0)


def keep_up_to(size: int) -> None:
    """Let `make_room_for` leave a process alone that has less than so many bytes, and than `MOST`."""
    _kept["most"] = min(size, MOST)


def resident_memory() -> int:
    """Return the bytes of memory that this process has now; 0 where the system does not tell."""
    try:
        import resource

        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (ImportError, OSError):
        return 0


def keep_few_kernels() -> None:
    """Let oneDNN keep only as much of the code that it makes for each layer and size as one tile needs.

    By default it keeps that of a thousand layers, some hundred megabytes where every tile has a size of its
    own; to keep none costs each tile a third of a second. An environment variable does it, so it holds for
    the whole process, a library's host too; one that is set already is left alone. Without effect after the
    first convolution.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
