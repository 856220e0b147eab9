"""What a learning controller adds to a step: whole intervals in alternating rounds of one process,
one thread.

usage: OMP_NUM_THREADS=1 python measure.py [ROUNDS [OUTPUT.json]]

Without a GPU: CPU time, the built-in model and notes, expected batch 32. With one: time on the
clock, a model of GPT-2 124M's shapes, expected batch 64, records of up to 128 tokens. "rl" against
"quantile", which clips the same and releases the same count. Each round takes 4 steps of each, one
decision with 4 updates of the agent among them. Also the time of one `observe` without a decision,
by the number of parameters.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import dpclip
from dpclip.clipping import ClippingRule, ControlledClipping, RunShape, StepRelease, make_rule
from dpclip.gradient_sum import GradientSum
from dpclip.memory import reuse_heap
from dpclip.models.loading import load_model
from dpclip.noise.keystream import SecretKey
from dpclip.noise.release import WhiteGaussian
from dpclip.noise.scale import scale_noise
from dpclip.released import Receipt, Released
from dpclip.tasks.language_modelling import LanguageModelling
from dpclip.tasks.reading import read_records

sys.path.append(str(Path(__file__).parents[3]))  # the project's root

from experiments.support import machine, write_results

INTERVAL, WARM = 4, 9  # the agent learns from its ninth decision on
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
BATCH = 64 if GPU else 32


def training(rule: ClippingRule, steps: int) -> Iterator[None]:
    """A run that stops after each step."""
    loaded = load_model("builtin", LanguageModelling.head())
    model = GPT2LMHeadModel(GPT2Config(use_cache=False)).to(DEVICE) if GPU else loaded.model
    model, task = model.train(), LanguageModelling(loaded.tokenizer, 128)
    rows = task.encode(read_records("builtin", task="lm"))[: 20 * BATCH]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    private = dpclip.make_private(
        model,
        optimizer,
        rows,
        target_epsilon=8,
        expected_batch_size=BATCH,
        steps=steps,
        clipping=rule,
        collate_fn=task.collate,
        key=SecretKey.for_tests(1),
    )
    for batch in private.batches():
        with private.microbatch(batch):
            private.backward(task.losses(model, batch))
        if private.step():
            yield


def now() -> float:
    """Seconds of CPU time, or on the clock once the GPU has done what it was asked to."""
    if not GPU:
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(run: Iterator[None], steps: int) -> float:
    """Time of so many steps."""
    start = now()
    for _ in range(steps):
        next(run)
    return now() - start


class Timed:
    """Adds up the time that a rule spends on what was released."""

    def __init__(self, rule: ClippingRule) -> None:
        self.seconds, self._observe = 0.0, rule.observe
        rule.observe = self  # type: ignore[method-assign,assignment]

    def __call__(self, released: Released[StepRelease]) -> None:
        start = now()
        self._observe(released)
        self.seconds += now() - start


def observe_seconds(parameters: int, groups: int, calls: int = 20) -> float:
    """Time of one `observe`, median."""
    rule = ControlledClipping(interval=10**6)
    sizes = [parameters // groups] * groups
    owners = rule.partition([f"h.{k}.weight" for k in range(groups)], sizes)
    rule.set_run(RunShape(100, 32))
    scale = scale_noise(1.0, rule.bounds(), rule.shares(), rule.side_queries())
    total = GradientSum.zeros([torch.zeros(size, device=DEVICE) for size in sizes], owners)
    sides = {q.name: torch.zeros(q.size, dtype=torch.float64) for q in rule.side_queries()}
    released: Released[StepRelease] = WhiteGaussian().release(
        total, sides, scale, Receipt(0, 0, 1.0, 0), SecretKey.for_tests(0), 32
    )
    times = []
    for _ in range(calls):
        start = now()
        rule.observe(released)
        times.append(now() - start)
    return statistics.median(times)


def main(rounds: int, output: Path) -> None:
    """Alternate, then write what was found."""
    reuse_heap()
    steps = INTERVAL * (rounds + WARM + 1)
    rules = {name: make_rule(name) for name in ("quantile", f"rl:interval={INTERVAL},warmup=0")}
    timed = {name: Timed(rule) for name, rule in rules.items()}
    runs = {name: training(rule, steps) for name, rule in rules.items()}
    for name, run in runs.items():
        seconds(run, INTERVAL * (1 if name == "quantile" else WARM))
    for clock in timed.values():
        clock.seconds = 0.0
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run, INTERVAL))
    plain, controlled = times.values()
    ratios = [b / a for a, b in zip(plain, controlled, strict=True)]
    result = {
        "rounds": rounds,
        "machine": machine(),
        "device": torch.cuda.get_device_name() if GPU else "CPU",
        "torch": torch.__version__,
        "ms_a_step": {
            name: round(1000 * statistics.median(t) / INTERVAL, 1) for name, t in times.items()
        },
        "ratio_quartiles": [round(q, 4) for q in statistics.quantiles(ratios, n=4)],
        "share_of_the_step_spent_on_releases": {
            name: round(clock.seconds / sum(times[name]), 4) for name, clock in timed.items()
        },
        "observe_ms": {
            f"{n:.0e}": round(1000 * observe_seconds(n, 48), 2) for n in (10**6, 10**7, 124 * 10**6)
        },
    }
    print(result)
    write_results(output, result)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    arguments = sys.argv[1:]
    rounds = int(arguments[0]) if arguments else 20
    main(
        rounds,
        Path(arguments[1]) if len(arguments) > 1 else Path(__file__).with_name("results.json"),
    )
