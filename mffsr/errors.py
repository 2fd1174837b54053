"""The exceptions of mffsr, one small tree.

    MffsrError                 something could not be done; exit code 1
    ├── UsageError             the request itself is wrong; exit code 2
    ├── PhotoError             one photo file: unreadable, damaged, not supported, not writable
    │   └── ExistsError        its name is taken, and it is not to be replaced
    ├── BracketError           the frames of a bracket do not belong together
    ├── CheckpointError        a weight file is missing, damaged, or of another kind
    ├── DeviceError            the device is missing or out of memory
    ├── ClusterError           scheduler or workers are missing, lost, or not alike
    └── TrainingError          training cannot start or go on

A message says what is wrong, what was expected and what to do next, in at most a few lines,
and names the file. The command line prints it; nothing else does.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BracketError",
    "CheckpointError",
    "ClusterError",
    "DeviceError",
    "ExistsError",
    "MffsrError",
    "PhotoError",
    "TrainingError",
    "UsageError",
    "is_out_of_memory",
]

# What PyTorch's allocators and graphics back ends, oneDNN, OpenCV and C++ say instead of MemoryError.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "could not create a memory",
    "create a primitive",
    "insufficient memory",
    "bad_alloc",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception of any library says that memory did not suffice."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


class MffsrError(Exception):
    """Something could not be done."""

    def __reduce__(self) -> tuple[Any, ...]:  # an error may come from another process, whatever its __init__
        return _same, (type(self), self.args, self.__dict__)


def _same(kind: type[MffsrError], arguments: tuple[Any, ...], state: dict[str, Any]) -> MffsrError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


class UsageError(MffsrError):
    """The request itself is wrong: an option, a missing or superfluous argument."""


class PhotoError(MffsrError):
    """A photo file cannot be read or written; the message names it."""


class ExistsError(PhotoError):
    """A file exists that is not to be replaced."""


class BracketError(MffsrError):
    """The frames of a bracket do not belong together (size, scene, exposure)."""


class CheckpointError(MffsrError):
    """A weight file is missing, damaged, or of another kind than asked for."""


class DeviceError(MffsrError):
    """The device asked for is not there, or its memory does not suffice."""


class ClusterError(MffsrError):
    """The scheduler or the workers of a cluster are missing, were lost, or are not alike."""


class TrainingError(MffsrError):
    """Training cannot start or cannot go on."""
