"""Where tensors lie and how much memory there is for them."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import nn


def free_bytes(device: torch.device) -> int:
    """Estimate the memory that a run may still take on a device.

    Args:
        device: a GPU, or anything else for the machine's own memory.

    Returns:
        bytes: what the system says is free, or what a container's limit leaves if that is less;
        4 GiB where neither says.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_meminfo(), _container()]
    return min(free for free in found if free is not None) if any(found) else 4 << 30


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable")), None
    )


def _container() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (
            (folder / "memory.max").read_text().strip(),
            int((folder / "memory.current").read_text()),
        )
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)


def reuse_heap() -> None:
    """Ask glibc to keep large freed blocks.

    Per-sample gradients come and go by the hundred megabytes each step. Returned to the kernel and
    faulted in anew each time, they cost a sixth of a step (built-in model, two cores).
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # another C library: nothing to tune
    m_trim_threshold, m_mmap_threshold = -1, -3
    libc.mallopt(m_mmap_threshold, 1 << 30)
    libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter.

    Args:
        model: with at least one parameter.
    """
    return next(model.parameters()).device
