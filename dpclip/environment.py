"""What a bit-identical replay depends on besides the data and the plan."""

from __future__ import annotations

import ctypes
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = (
    "dpclip",
    "torch",
    "opacus",
    "transformers",
    "peft",
    "numpy",
    "scipy",
    "prv-accountant",
    "cryptography",
)


def versions() -> dict[str, str]:
    """Versions of everything that computes, for the statement and the replay check."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def fingerprint(physical_batch_size: int, device: torch.device) -> dict[str, str]:
    """Two runs with equal fingerprints are expected to compute the same bits."""
    return {
        **versions(),
        "machine": f"{platform.system()} {platform.machine()} {_processor()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": str(torch.get_num_threads()),
        "physical_batch_size": str(physical_batch_size),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features")
    kept = sorted({line for line in lines if line.split("\t")[0].strip() in wanted})
    return " ".join(kept)


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Names of what has changed."""
    return sorted(key for key in {*before, *now} if before.get(key) != now.get(key))


def free_bytes(device: torch.device) -> int:
    """Memory that a run may still take on a device: what the system says, or a container's limit if that is less."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_meminfo(), _container()]
    return min(free for free in found if free is not None) if any(found) else 4 << 30


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), None)


def _container() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (folder / "memory.max").read_text().strip(), int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)


def reuse_heap() -> None:
    """Tell glibc to keep large freed blocks: per-sample gradients come and go by the hundred megabytes each step.

    Returned to the kernel and faulted in anew each time, they cost a sixth of a step (built-in model, two cores).
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # another C library: nothing to tune
    m_trim_threshold, m_mmap_threshold = -1, -3
    libc.mallopt(m_mmap_threshold, 1 << 30)
    libc.mallopt(m_trim_threshold, (1 << 31) - 1)
