"""What a private micro-batch costs beside the plain forward and backward pass, in one process, in
alternating rounds.

usage: python measure.py [ROUNDS]

Built-in model and notes, 32 rows, default threads. Prints medians in milliseconds a row and writes
results.json.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dpclip.gradient_sum import GradientSum
from dpclip.memory import reuse_heap
from dpclip.models.loading import load_model
from dpclip.per_sample import make_backend
from dpclip.tasks.language_modelling import LanguageModelling
from dpclip.tasks.reading import read_records

sys.path.append(str(Path(__file__).parents[3]))  # the project's root

from experiments.support import machine, write_results

ROWS = 32


def seconds(action: Callable[[], None]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main(rounds: int) -> None:
    """Alternate the two kinds of step, two warm-up rounds first."""
    reuse_heap()
    loaded = load_model("builtin", LanguageModelling.head())
    model, task = loaded.model.train(), LanguageModelling(loaded.tokenizer, 128)
    batch = task.collate(task.encode(read_records("builtin:public", task="lm"))[:ROWS])
    parameters = list(model.parameters())
    total = GradientSum.zeros(parameters, [0] * len(parameters))

    def plain() -> None:
        task.losses(model, batch).mean().backward()
        model.zero_grad(set_to_none=True)

    def private() -> None:
        backend = make_backend("hooks", model, parameters, total.groups)
        with backend.capture(ROWS) as view:
            task.losses(model, batch).mean().backward()
        norms = view.squared_norms().sqrt()
        view.weighted_sum((1 / norms).clamp(max=1), total)
        backend.close()

    times: dict[str, list[float]] = {"plain": [], "private": []}
    for index in range(rounds + 2):
        for name, action in (("plain", plain), ("private", private)):
            spent = seconds(action)
            if index >= 2:
                times[name].append(spent)
    ratios = [b / a for a, b in zip(times["plain"], times["private"], strict=True)]
    result = {
        "rows": ROWS,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "machine": machine(),
        "torch": torch.__version__,
        "ms_per_row": {
            name: round(1000 * statistics.median(t) / ROWS, 2) for name, t in times.items()
        },
        "ratio_quartiles": [round(q, 2) for q in statistics.quantiles(ratios, n=4)],
    }
    print(result)
    write_results(Path(__file__).with_name("results.json"), result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
