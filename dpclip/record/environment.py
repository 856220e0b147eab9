"""What a bit-identical replay depends on besides the data and the plan."""

from __future__ import annotations

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
