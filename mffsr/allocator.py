"""How the process takes memory from the system: left alone, it costs more of both it and time."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

__all__ = ["keep_few_kernels", "resident_memory", "tune_malloc"]

LARGE = 32 << 20  # bytes; the most that glibc takes

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def tune_malloc() -> None:
    """Let malloc keep blocks when freed but for the largest, and take large ones in large pages.

    Nothing where malloc is not glibc's. A network's layers take blocks of many sizes. Where all are kept, the
    next ones do not fit into their holes; where few are, the system clears new pages over and over: giving
    back those of 4 MB and more took 4–8 % more time than of 32 MB.

    For the program's own processes only: a library has no business with its host's allocator. Must be called
    before PyTorch first allocates.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by PyTorch
    mallopt(M_MMAP_THRESHOLD, LARGE)
    mallopt(M_TRIM_THRESHOLD, -1)  # never


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
