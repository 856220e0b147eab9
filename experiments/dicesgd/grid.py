"""What the scripts of this folder share: the rules, one private run, the cells of a grid, tables
and figures.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dpclip
from dpclip.clipping import make_rule
from dpclip.noise.keystream import SecretKey

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import RunsFile, made_by, markdown_table

HERE = Path(__file__).parent
DELTA = 1e-5
EPSILONS = (2.0, 8.0)
RULES = {
    "DP-SGD": "flat:max_grad_norm={c}",
    "DP-SGD at C3": "flat:max_grad_norm={cap}",
    "one-step": "dice:mode=one-step,max_grad_norm={c}",
    "capped": "dice:mode=capped,max_grad_norm={c}",
    "leaky": "dice:mode=leaky,max_grad_norm={c}",
    "literal": "dice:mode=literal,max_grad_norm={c}",
    "literal, published noise (conditional)": (
        "dice:mode=literal,calibration=published,max_grad_norm={c}"
    ),
}


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    rule: str
    threshold: float
    epsilon: float
    seed: int

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        return f"{self.rule}|{self.threshold:g}|{self.epsilon:g}|{self.seed}"


def cells(thresholds: Sequence[float], seeds: Iterable[int]) -> list[Cell]:
    """All rules, budgets and thresholds; seeds outermost."""
    return [Cell(r, c, e, s) for s in seeds for e in EPSILONS for c in thresholds for r in RULES]


def private_run(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Any],
    cell: Cell,
    *,
    epochs: float,
    batch: int,
    physical_batch: int,
) -> dict[str, Any]:
    """Train a classifier in place at the rule's proved noise; what it cost."""
    clipping = make_rule(RULES[cell.rule].format(c=cell.threshold, cap=2 * cell.threshold))
    private = dpclip.make_private(
        model, optimizer, rows, target_epsilon=cell.epsilon, target_delta=DELTA, epochs=epochs,
        expected_batch_size=batch, physical_batch_size=physical_batch, clipping=clipping,
        key=SecretKey.for_tests(cell.seed), accept_conditional="conditional" in cell.rule,
    )  # fmt: skip
    start = time.process_time()
    for inputs, targets in private.batches():
        with private.microbatch((inputs, targets)):
            private.backward(nn.functional.cross_entropy(model(inputs), targets, reduction="none"))
        private.step()
    found = {
        "noise": private.plan.noise_multiplier * clipping.bounds()[0],
        "epsilon": private.guarantee().epsilon,
        "assumption": clipping.assumption,
        "cpu_s": round(time.process_time() - start, 1),
    }
    private.close()
    return found


def opened(path: Path, command: str, settings: dict[str, Any]) -> RunsFile:
    """The results so far, with how they were made."""
    return RunsFile(path, made_by(command, "torch", "numpy") | {"settings": settings})


def values(runs: dict[str, Any]) -> dict[tuple[str, float, float], list[float]]:
    """Accuracies by rule, threshold and epsilon."""
    found: dict[tuple[str, float, float], list[float]] = {}
    for key, value in runs.items():
        rule, threshold, epsilon, _ = key.split("|")
        found.setdefault((rule, float(threshold), float(epsilon)), []).append(value["accuracy"])
    return found


def table(runs: dict[str, Any], thresholds: Sequence[float]) -> str:
    """Markdown: mean ± standard deviation in per cent; noise over C1."""
    found, tables, last = values(runs), [], thresholds[-1]
    for epsilon in EPSILONS:
        columns = [f"ε = {epsilon:g}", *(f"C1 = {c:g}" for c in thresholds), "noise / C1"]
        rows = []
        for rule in RULES:
            accuracies = [shown(found.get((rule, c, epsilon), [])) for c in thresholds]
            noise = runs.get(Cell(rule, last, epsilon, 1).key, {}).get("noise", math.nan) / last
            rows.append([rule, *accuracies, f"{noise:.2f}"])
        tables.append(markdown_table(columns, rows) + "\n")
    return "\n".join(tables)


def shown(found: Sequence[float]) -> str:
    """One cell."""
    if not found:
        return "—"
    spread = f" ± {100 * statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{100 * statistics.fmean(found):.1f}{spread}"


def figure(grids: dict[str, dict[str, Any]], thresholds: Sequence[float], path: Path) -> None:
    """Accuracy against C1; a row for each grid, a panel for each budget."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    chart, panels = pyplot.subplots(
        len(grids), 2, figsize=(9, 3.4 * len(grids) + 0.6), sharey="row", squeeze=False
    )
    for row, (title, runs) in zip(panels, grids.items(), strict=True):
        found = values(runs)
        for axes, epsilon in zip(row, EPSILONS, strict=True):
            for rule in RULES:
                points = [
                    (c, found[rule, c, epsilon]) for c in thresholds if (rule, c, epsilon) in found
                ]
                spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points]
                means = [statistics.fmean(v) for _, v in points]
                axes.errorbar(
                    [c for c, _ in points],
                    means,
                    yerr=spread,
                    marker="o",
                    capsize=2,
                    ms=3,
                    label=rule,
                )
            axes.set_xscale("log")
            axes.set_xlabel("C1")
            axes.set_title(f"{title}ε = {epsilon:g}", fontsize=9)
            axes.grid(alpha=0.3)
        row[0].set_ylabel("test accuracy")
    names = panels[0][0].get_legend_handles_labels()
    chart.legend(*names, loc="lower center", ncols=4, fontsize=7, frameon=False)
    chart.tight_layout(rect=(0, 0.4 / chart.get_figheight(), 1, 1))
    chart.savefig(path, metadata={"Date": None})
