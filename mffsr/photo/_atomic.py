"""Files that are either the old ones or the new ones, never half of a new one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mffsr.errors import ExistsError, PhotoError

__all__ = ["atomic_output", "resolve_target"]

_EXISTS = "{}: exists already\nchoose another name, or replace it: -f; fuse and batch have --on-exists too"
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EMLINK}


def _reason(fault: OSError) -> str:
    return fault.strerror or str(fault)


def resolve_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """The file that writing to `path` will create or replace, checked as far as possible beforehand.

    A symbolic link is followed: the file it names is replaced and the link stays. Raises
    `ExistsError` if the target exists and `overwrite` is false, another `PhotoError` if it is no
    regular file, or lies in a folder that is missing or closed to writing.
    """
    path = Path(path)
    try:
        target = Path(os.path.realpath(path))
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            mode = None
        if mode is not None and not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise PhotoError(f"{path}: cannot be written: it is {kind}; name a file")
        if mode is not None and not overwrite:
            raise ExistsError(_EXISTS.format(path))
        if mode is not None:
            _refuse_immutable(target)
        folder = target.parent
        if not stat.S_ISDIR(os.stat(folder).st_mode):
            raise PhotoError(f"{path}: cannot be written: {folder} is not a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PhotoError(
                f"{path}: cannot be written: no permission to write into {folder}\nchoose another folder"
            )
    except FileNotFoundError:
        missing = target.parent if path.is_symlink() else path.parent
        raise PhotoError(
            f"{path}: cannot be written: the folder {missing} does not exist\ncreate it, or choose another"
        ) from None
    except OSError as fault:
        raise PhotoError(f"{path}: cannot be written: {_reason(fault)}") from fault
    except ValueError as fault:  # a NUL character in the name
        raise PhotoError(f"{path!r}: cannot be written: {fault}") from fault
    return target


def _refuse_immutable(target: Path) -> None:
    """Raise OSError for a file that may not be replaced, such as one with the attribute "immutable".

    Missing permission to write into the file itself (EACCES) does not matter: it is replaced.
    """
    try:
        os.close(os.open(target, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0)))
    except OSError as fault:
        if fault.errno == errno.EPERM:
            raise


@contextlib.contextmanager
def atomic_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A binary file, open for reading and writing, that becomes `path` when the block ends well.

    It lives in the target's folder under a short hidden name, is flushed to the disk, renamed, and
    the folder is flushed too. Whatever is raised inside, the temporary file is removed and an older
    target keeps its bytes. Permissions follow the umask. See `resolve_target` for links and checks.
    """
    target = resolve_target(path, overwrite=overwrite)
    temporary = _beside(target)  # named before it is made: Ctrl-C may come while the system makes it
    try:
        while (stream := _created(temporary)) is None:
            temporary = _beside(target)
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        _publish(temporary, target, overwrite=overwrite)
        _sync_folder(target.parent)
    except FileExistsError:
        raise ExistsError(_EXISTS.format(path)) from None
    except OSError as fault:
        raise PhotoError(f"{path}: cannot be written: {_reason(fault)}") from fault
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()  # already gone when all went well


def _beside(target: Path) -> Path:
    return target.with_name(f".mffsr-{secrets.token_hex(4)}.tmp")


def _created(path: Path) -> BinaryIO | None:
    try:
        return path.open("x+b")  # x: fails on an existing name; mode 0666 & ~umask
    except FileExistsError:
        return None


def _publish(temporary: Path, target: Path, *, overwrite: bool) -> None:
    """Give the finished file its name; without `overwrite`, raise FileExistsError if the name is taken."""
    if overwrite or sys.platform == "win32":  # where os.rename never replaces
        (os.replace if overwrite else os.rename)(temporary, target)
        return
    if _rename_exclusively(temporary, target):
        return
    try:
        os.link(temporary, target)
    except OSError as fault:
        if fault.errno not in _NO_LINKS:
            raise
        # No hard links here (exFAT, some network folders): a short gap between look and rename remains.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        os.rename(temporary, target)


def _rename_exclusively(temporary: Path, target: Path) -> bool:
    """Linux's renameat2 with RENAME_NOREPLACE; False where the system or file system has none."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here, no_replace = -100, 1  # AT_FDCWD, RENAME_NOREPLACE
    names = os.fsencode(temporary), os.fsencode(target)
    if rename(here, ctypes.c_char_p(names[0]), here, ctypes.c_char_p(names[1]), no_replace) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(target))


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; systems that cannot open a folder go without."""
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)
