"""Where the network runs and in which precision: chosen once, here, and always with the reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from mffsr.errors import DeviceError, UsageError

__all__ = ["Runtime", "available_devices", "available_memory", "choose", "find_device"]

Network = TypeVar("Network", bound=torch.nn.Module)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """The device and precision of a run."""

    device: torch.device
    dtype: torch.dtype  # of the convolutions; images, masks and the final sum stay float32
    memory: int  # bytes that may be taken beside those that the process has already
    reason: str  # one line, for the user
    limit: int = 1 << 62  # bytes that a run may take in all, the program included

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run the enclosed convolutions in `dtype`."""
        if self.dtype == torch.float32:
            cudnn = torch.backends.cudnn
            allowed = cudnn.allow_tf32  # by default: convolutions then round their inputs to 10 bits
            cudnn.allow_tf32 = False
            try:
                yield
            finally:
                cudnn.allow_tf32 = allowed
            return
        with torch.autocast(self.device.type, self.dtype):
            yield

    def place(self, network: Network) -> Network:
        """Move a network to the device, channels last: there convolutions are fastest."""
        placed: Network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return placed

    @property
    def precision(self) -> str:
        """The option that asks for this precision: fp32, bf16 or fp16."""
        return _name(self.dtype)


def _name(dtype: torch.dtype) -> str:
    return next(name for name, value in PRECISIONS.items() if value == dtype)


def available_devices() -> list[str]:
    """List what `--device` accepts on this machine."""
    found = (
        [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def find_device(device: str, precision: str) -> torch.device:
    """Return the device that a name stands for, and take up nothing on it.

    Raises UsageError for a device or precision that is not there, and names those that are.
    """
    found, device = available_devices(), str(device)
    name = found[0] if device == "auto" else "cuda:0" if device == "cuda" else device
    if name not in found:
        raise UsageError(f"device {device}: not on this machine\navailable: {', '.join(found)}")
    if precision not in ("auto", *PRECISIONS):
        raise UsageError(f"precision {precision}: expected auto, {', '.join(PRECISIONS)}")
    chosen = torch.device(name)
    if precision == "fp16" and chosen.type == "cpu":
        raise UsageError("precision fp16: slower than fp32 on a CPU and less exact\nuse fp32, bf16 or auto")
    return chosen


def choose(device: str = "auto", precision: str = "auto", max_memory: int | None = None) -> Runtime:
    """Choose device, precision and memory budget.

    device: auto (the fastest), cuda, cuda:N, mps or cpu; precision: auto (the fastest that is exact enough),
    fp32, bf16 or fp16; max_memory: most bytes to use, beside the limit of 80 % of what is free. Raises
    UsageError for a device or precision that is not there, and names those that are, and for a limit below
    1; DeviceError where a graphics card does not answer.
    """
    try:
        limit = 1 << 62 if max_memory is None else int(max_memory)
    except (TypeError, ValueError, OverflowError):
        limit = 0
    if limit < 1:
        raise UsageError(f"max_memory {max_memory}: expected bytes, at least 1")
    chosen = find_device(device, precision)
    memory = int(0.8 * available_memory(chosen))  # first: it is what tells of a card that does not answer
    dtype, why = _precision(chosen) if precision == "auto" else (PRECISIONS[precision], "as asked")
    label = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type.upper()
    label = f"{label}, {torch.get_num_threads()} threads" if chosen.type == "cpu" else label
    reason = f"{label}, {_name(dtype)} ({why})"
    return Runtime(device=chosen, dtype=dtype, memory=memory, limit=limit, reason=reason)


def _precision(device: torch.device) -> tuple[torch.dtype, str]:
    """Return the fastest precision that is exact enough, by known rules.

    On a CPU bf16 convolutions are 3–10 times as fast as fp32 where the processor has matrix tiles (AMX),
    twice as fast where it only has AVX-512 BF16, and slower elsewhere. The residual that the network adds is
    small, so bf16 costs about 0.01 dB.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return (torch.bfloat16, "tensor cores") if major >= 8 else (torch.float16, "half precision is faster")
    if device.type == "mps":
        return torch.float32, "exact"
    for feature, name in (("amx_tile", "AMX matrix tiles"), ("avx512_bf16", "AVX-512 BF16")):
        if getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)():
            return torch.bfloat16, name
    return torch.float32, "no fast bf16"


def available_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take on `device`.

    On a CPU the smallest of: free memory, the cgroup's limit, the address-space limit.
    """
    if device.type == "cuda":
        try:
            return int(torch.cuda.mem_get_info(device)[0])
        except RuntimeError as error:
            raise DeviceError(f"{device}: {error}") from None
    limits = [8 << 30]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        limits = [int(lines.get("MemAvailable", "8388608 kB").split()[0]) * 1024]
    limits += _cgroup_limits()
    try:
        import resource
    except ImportError:  # Windows
        return min(limits)
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        statm = Path("/proc/self/statm")
        used = int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0
        limits.append(max(0, soft - used))
    return min(limits)


def _cgroup_limits(
    own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Return what the memory cgroups (version 1 and 2) of this process, and all around them, still allow."""
    try:
        groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in groups:
        if controllers == "":
            base, limit, usage = mounted, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, usage = mounted / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(base))):
            with contextlib.suppress(OSError, ValueError):
                used = int((folder / usage).read_text()) - _files_kept(folder)
                found.append(max(0, int((folder / limit).read_text()) - used))
    return found


def _files_kept(folder: Path) -> int:
    """Return the bytes of a memory cgroup that are copies of files; the system drops them when it must."""
    with contextlib.suppress(OSError, ValueError):
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return int(lines.get("total_inactive_file", lines.get("inactive_file", "0")))
    return 0
