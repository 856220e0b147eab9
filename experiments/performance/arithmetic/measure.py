"""What exact sums and noise cost: logical steps of four arms in alternating rounds, one process an
arm, one thread.

usage: measure.py [--before CHECKOUT] [--rounds N] [--output FILE.json] [CASE …]

Arms: plain (no privacy, the same rows and micro-batches), fast and exact (`arithmetic=`), and, with
a checkout of an earlier version, before. A step is a whole logical one, noise and optimizer
included; all units take part in each. CPU time; medians of rounds, and of each round's ratio to
plain and of exact to fast.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from arm import SIZES

sys.path.append(str(Path(__file__).parents[3]))  # the project's root

from experiments.support import ResultsFile, machine

HERE = Path(__file__).parent
ROUNDS = {"GPT-2 124M, logical batch of 64": 3, "GPT-2 124M": 7, "GPT-2 124M LoRA": 7}
WARM = 2


class Arm:
    """A process that takes steps."""

    def __init__(self, case: str, name: str, package: Path) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(package),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, str(HERE / "arm.py"), case, name]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def step(self) -> dict[str, Any]:
        """Take one, and say what it took."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def measure(case: str, rounds: int, before: Path | None) -> dict[str, Any]:
    """One case."""
    here = HERE.parents[2]
    arms = {name: Arm(case, name, here) for name in ("plain", "fast", "exact")}
    if before is not None:
        arms["before"] = Arm(case, "before", before)
    for arm in arms.values():
        for _ in range(WARM):
            arm.step()
    taken = [{name: arm.step() for name, arm in arms.items()} for _ in range(rounds)]
    for arm in arms.values():
        arm.close()
    found: dict[str, Any] = {"rounds": rounds, "units": SIZES[case][0], "physical": SIZES[case][1]}
    for name in arms:
        found[name] = {
            "cpu": round(statistics.median(row[name]["cpu"] for row in taken), 4),
            "over_plain": _ratios([row[name]["cpu"] / row["plain"]["cpu"] for row in taken]),
            "peak_mib": taken[-1][name]["peak_mib"],
        }
    found["exact_over_fast"] = _ratios([row["exact"]["cpu"] / row["fast"]["cpu"] for row in taken])
    return found


def _ratios(values: list[float]) -> list[float]:
    """Median and quartiles."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return [round(value, 3) for value in (statistics.median(values), quartiles[0], quartiles[2])]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--before", type=Path)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    parser.add_argument("cases", nargs="*", default=list(SIZES))
    options = parser.parse_args()
    file = ResultsFile(options.output, {})
    file.results["machine"] = {"processor": machine(), "torch": torch.__version__}
    for case in options.cases:
        rounds = options.rounds or ROUNDS.get(case, 11)
        found = file.results[case] = measure(case, rounds, options.before)
        file.write()
        print(case, json.dumps(found))


if __name__ == "__main__":
    main()
