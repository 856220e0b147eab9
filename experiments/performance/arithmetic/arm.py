"""One arm of a comparison: a process that takes a logical step whenever it is told to, and says how
long it took.

usage: arm.py CASE plain|exact|fast|before

Lines on standard input are commands; each is answered by one line of JSON. Works with this version
of the package and with the one before losses were handed over a row at a time, whichever PYTHONPATH
finds.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

import dpclip
from dpclip.models.loading import load_model
from dpclip.tasks.language_modelling import LanguageModelling

try:
    from dpclip.memory import reuse_heap
    from dpclip.tasks.reading import read_records

    LM: Any = LanguageModelling.head()
except ImportError:  # the version before
    from dpclip.environment import reuse_heap

    from dpclip.tasks.records import read_records

    LM = "lm"

sys.path.append(str(Path(__file__).parents[3]))  # the project's root

from experiments.performance.per_sample import models

SIZES = {  # units a logical batch, all of which take part in every step, and rows a micro-batch
    "built-in": (256, 32),
    "small GPT-2": (64, 16),
    "GPT-2 124M": (2, 2),
    "GPT-2 124M, logical batch of 64": (64, 2),
    "GPT-2 124M LoRA": (2, 2),
    "MLP": (256, 256),
    "WRN-16-4": (32, 16),
}
STEPS = 10_000


@dataclass
class Job:
    """What all arms share."""

    model: nn.Module
    rows: list[Any]
    losses: Callable[[nn.Module, Any], Tensor]
    collate: Callable[[list[Any]], Any]
    cost: Callable[[Any], int] | None
    physical: int


def build(name: str) -> Job:
    """The case of that name."""
    units, physical = SIZES[name]
    if name == "built-in":
        loaded = load_model("builtin", LM)
        task = LanguageModelling(loaded.tokenizer, 128)
        rows = task.encode(read_records("builtin", task="lm"))[:units]
        return Job(loaded.model.train(), rows, task.losses, task.collate, task.cost, physical)
    case = models.build(name.removesuffix(", logical batch of 64"), units)
    rows = list(zip(*case.batch, strict=True))
    return Job(case.model.train(), rows, case.losses, default_collate, None, physical)


def private_steps(job: Job, arm: str) -> Iterator[None]:
    """A private run that stops after each step."""
    extra: dict[str, Any] = {} if arm == "before" else {"arithmetic": arm}
    if arm == "before" and job.cost is not None:
        extra["row_cost"] = lambda row: job.cost(job.rows[row])  # type: ignore[misc]
    private = dpclip.make_private(
        job.model,
        torch.optim.SGD(job.model.parameters(), lr=0.0),
        job.rows,
        target_epsilon=1e6,
        target_delta=1e-9,
        steps=STEPS,
        expected_batch_size=len(job.rows),
        physical_batch_size=job.physical,
        collate_fn=job.collate,
        accountant="rdp",
        **extra,
    )
    for batch in private.batches():
        with private.microbatch(batch):
            losses = job.losses(job.model, batch)
            if hasattr(private, "backward"):
                private.backward(losses)
            else:
                private.mean(losses).backward()
        if private.step():
            yield


def plain_steps(job: Job) -> Iterator[None]:
    """The same without privacy, rows of similar length together."""
    optimizer = torch.optim.SGD(job.model.parameters(), lr=0.0)
    rows = sorted(job.rows, key=job.cost) if job.cost else job.rows
    while True:
        for start in range(0, len(rows), job.physical):
            part = rows[start : start + job.physical]
            (job.losses(job.model, job.collate(part)).sum() / len(rows)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def main() -> None:
    warnings.filterwarnings("ignore")
    reuse_heap()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    job, arm = build(sys.argv[1]), sys.argv[2]
    steps = plain_steps(job) if arm == "plain" else private_steps(job, arm)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        next(steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        line = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "peak_mib": round(peak),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
