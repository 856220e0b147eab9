"""Secure noise beside torch's generator: drawing, adding and dividing in place against `Tensor.normal_` alone.

usage: python measure.py [ROUNDS]

CPU time of one thread in alternating rounds of one process, medians and quartiles; writes results.json.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from dpclip.environment import reuse_heap
from dpclip.gaussian import add_gaussian
from dpclip.gradient_sum import GradientSum
from dpclip.randomness import SecretKey

SIZES = (100_000, 1_000_000, 4_000_000, 40_000_000)


def seconds(action: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def compare(size: int, rounds: int, key: SecretKey) -> dict[str, object]:
    """One size, two warm-up rounds."""
    tensor, times = torch.zeros(size), []
    for index in range(rounds + 2):
        stream = key.stream("noise", index, 0)
        plain = seconds(tensor.normal_)
        ours = seconds(lambda stream=stream: add_gaussian(tensor, 1.3, stream, 0, 64.0))
        digest = seconds(lambda: GradientSum([tensor], [0]).digest([], bytes(range(32))))
        times.append((plain, ours, digest))
    kept = times[2:]
    ratios = statistics.quantiles([ours / plain for plain, ours, _ in kept], n=4)
    plain, ours, digest = (1e9 * statistics.median(column) / size for column in zip(*kept, strict=True))
    return {
        "ratio quartiles": [round(q, 3) for q in ratios],
        "ns an element": {"normal_": round(plain, 2), "ours": round(ours, 2), "fingerprint": round(digest, 2)},
    }


def main(rounds: int) -> None:
    """All sizes."""
    torch.set_num_threads(1)
    reuse_heap()
    key = SecretKey(bytes(range(32)))
    result = {
        "command": f"OMP_NUM_THREADS=1 python measure.py {rounds}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "versions": {package: version(package) for package in ("torch", "numpy", "cryptography")},
        "sizes": {str(size): compare(size, rounds, key) for size in SIZES},
    }
    print(json.dumps(result["sizes"], indent=1))
    (Path(__file__).parent / "results.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
