"""Full disks, failing system calls, little memory: what the machine does not allow is skipped."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import SkippedError

NOBODY = "65534"
_CGROUP = Path("/sys/fs/cgroup/memory")


def _works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@functools.cache
def _need(what: str, *command: str) -> None:
    if not _works(*command):
        raise SkippedError(f"{what} is not possible here ({' '.join(command)})")


def strace(*options: str) -> list[str]:
    """Return the beginning of a command line that runs under strace; skips where that is not possible."""
    _need("tracing system calls", "strace", "-qq", "-o", "/dev/null", "true")
    return ["strace", "-qq", "-f", *options]


def kill_at(calls: str, number: int) -> list[str]:
    """Kill at the given occurrence of a system call (of one of several, by commas)."""
    inject = f"inject={calls}:signal=SIGKILL:when={number}"
    return strace("-o", "/dev/null", "-e", f"trace={calls}", "-e", inject)


def fail_at(calls: str, error: str, number: int, path: Path | None = None) -> list[str]:
    """Let the given occurrence of a system call fail, of those about `path` only if one is given."""
    about = ["-P", str(path)] if path is not None else []
    return strace(
        "-o", "/dev/null", *about, "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={number}"
    )


def as_nobody() -> list[str]:
    """Run as a user whom file permissions bind."""
    if os.geteuid() != 0:
        return []
    ids = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    _need("becoming another user", "setpriv", *ids, "true")
    return ["setpriv", *ids]


def no_network() -> list[str]:
    """Run without any network, not even the machine's own."""
    _need("a run without network", "unshare", "-n", "true")
    return ["unshare", "-n"]


def limited_address_space(size: int) -> list[str]:
    """Run with at most `size` bytes of address space."""
    _need("a limited address space", "prlimit", f"--as={1 << 30}", "true")
    return ["prlimit", f"--as={size}"]


@contextlib.contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory at `folder`, which is made; `options` are those of tmpfs."""
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
        folder.rmdir()
        raise SkippedError("mounting a file system is not possible here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=False)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only for as long as the block lasts, also for root."""
    bind = subprocess.run(["mount", "--bind", str(folder), str(folder)], capture_output=True, check=False)
    if bind.returncode != 0:
        raise SkippedError("mounting a folder read-only is not possible here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True, capture_output=True)
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=False)


@contextlib.contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Make a file immutable for as long as the block lasts."""
    if not _works("chattr", "+i", str(path)):
        raise SkippedError("making a file immutable is not possible here")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


class Memory:
    """A memory cgroup: `before` starts a command in it."""

    def __init__(self, folder: Path, *, unified: bool) -> None:
        self.folder, self.unified = folder, unified

    @property
    def before(self) -> Sequence[str]:
        """The beginning of a command line that runs inside."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"]

    @property
    def peak(self) -> int:
        """The most bytes that were in use."""
        return int(
            (self.folder / ("memory.peak" if self.unified else "memory.max_usage_in_bytes")).read_text()
        )


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[Memory]:
    """Make a memory cgroup of `size` bytes, of version 1 or 2."""
    unified = not _CGROUP.is_dir()
    root = Path("/sys/fs/cgroup") if unified else _CGROUP
    try:
        folder = Path(tempfile.mkdtemp(prefix="mffsr-", dir=root))
        limit = folder / ("memory.max" if unified else "memory.limit_in_bytes")
        limit.write_text(str(size))
    except OSError as fault:
        raise SkippedError(f"a memory cgroup cannot be made here ({fault.strerror})") from None
    try:
        yield Memory(folder, unified=unified)
    finally:
        folder.rmdir()
