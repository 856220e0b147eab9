"""Nanoseconds a value of a released sum, beside what it is made of and torch's own generator.

usage: python measure.py [ROUNDS]

Wall time in alternating rounds of one process, medians, with one thread and with two; writes
results.json.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dpclip.gradient_sum import GradientSum
from dpclip.memory import reuse_heap
from dpclip.noise.gaussian import BLOCK, HALF, GaussianSampler, _spread, grid, released
from dpclip.noise.keystream import NoiseStream, SecretKey

sys.path.append(str(Path(__file__).parents[3]))  # the project's root

from experiments.support import made_by, write_results

SIZES = (100_000, 1_000_000, 4_000_000, 40_000_000)
STD = 1.3


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def box_muller(stream: NoiseStream, size: int) -> None:
    """The float32 transform of as many values, thrown away."""
    blocks, ratio = -(-size // BLOCK), STD / grid(STD)

    def draw(sampler: GaussianSampler, block: int) -> None:
        sampler.approximate(stream, 0, block, min(BLOCK, size - block * BLOCK), ratio)

    _spread(draw, blocks)


def aes(stream: NoiseStream, size: int) -> None:
    """The words of as many values, thrown away."""

    def fill(sampler: GaussianSampler, block: int) -> None:
        count = min(BLOCK, size - block * BLOCK)
        stream.fill(sampler._words.reshape(-1)[:count], 0, block)

    _spread(fill, -(-size // BLOCK))


def compare(size: int, rounds: int, key: SecretKey) -> dict[str, float]:
    """One size, two warm-up rounds; nanoseconds a value."""
    tensor, integers, times = torch.zeros(size), torch.zeros(size, dtype=torch.int32), []
    for index in range(rounds + 2):
        stream = key.noise(index, 0)
        tensor.zero_()
        integers.zero_()
        actions: dict[str, Callable[[], object]] = {
            "released, float32": lambda stream=stream: released(
                [(tensor, 1.0)], STD, stream, 0, 64.0
            ),
            "released, int32": lambda stream=stream: released(
                [(integers, 2.0**-24)], STD, stream, 0, 64.0
            ),
            "Box-Muller in float32": lambda stream=stream: box_muller(stream, size),
            "AES": lambda stream=stream: aes(stream, size),
            "normal_": tensor.normal_,
            "fingerprint": lambda: GradientSum([tensor], [0]).digest([], bytes(range(32))),
        }
        times.append({name: seconds(action) for name, action in actions.items()})
    return {
        name: round(1e9 * statistics.median(row[name] for row in times[2:]) / size, 2)
        for name in times[0]
    }


def refined(key: SecretKey) -> float:
    """Share of the values that float32 leaves open."""
    sampler, ratio, found = GaussianSampler(), STD / grid(STD), 0
    for block in range(16):
        sampler.rounded(key.noise(0, 0), 0, block, np.zeros(BLOCK), ratio)
        found += int(sampler._doubt.sum())
    return found / (32 * HALF)


def main(rounds: int) -> None:
    """All sizes, one thread and two."""
    reuse_heap()
    key = SecretKey(bytes(range(32)))
    result: dict[str, object] = {
        **made_by(
            f"OMP_NUM_THREADS=1 python measure.py {rounds}", "torch", "numpy", "cryptography"
        ),
        "share refined": round(refined(key), 5),
    }
    for threads in (1, 2):
        torch.set_num_threads(threads)
        result[f"ns a value, {threads} thread{'s' * (threads > 1)}"] = {
            str(size): compare(size, rounds, key) for size in SIZES
        }
    print(json.dumps(result, indent=1))
    write_results(Path(__file__).with_name("results.json"), result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
