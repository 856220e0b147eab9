"""DP-SGD against every mode of DiceSGD on a part of CIFAR-10, over a grid of C1, each at its proved noise.

usage: python cifar.py DATA.npz [SEEDS]    runs what results.json lacks
       python cifar.py --table             the table of README.md
       python cifar.py --figure            figure.svg

DATA.npz holds x_train [10000, 32, 32, 3] uint8, y_train, x_test, y_test. Writes results.json after each run.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import dpclip
from dpclip.clipping import make_rule

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
BATCH, EPOCHS, RATE, DELTA = 500, 4, 1e-2, 1e-5
THRESHOLDS = (0.1, 1.0, 10.0)
EPSILONS = (2.0, 8.0)
RULES = {
    "DP-SGD": "flat:max_grad_norm={c}",
    "DP-SGD at C3": "flat:max_grad_norm={cap}",
    "one-step": "dice:mode=one-step,max_grad_norm={c}",
    "capped": "dice:mode=capped,max_grad_norm={c}",
    "leaky": "dice:mode=leaky,max_grad_norm={c}",
    "literal": "dice:mode=literal,max_grad_norm={c}",
    "literal, published noise (conditional)": "dice:mode=literal,calibration=published,max_grad_norm={c}",
}


def data(path: str) -> tuple[list[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]:
    """Training rows, and the test set."""
    arrays = np.load(path)

    def images(name: str) -> Tensor:
        return torch.from_numpy(arrays[name]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    train = list(zip(images("x_train"), torch.from_numpy(arrays["y_train"]).long(), strict=True))
    return train, (images("x_test"), torch.from_numpy(arrays["y_test"]).long())


def network(seed: int) -> nn.Module:
    """A small convolutional net, 26,000 weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def accuracy(model: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Share of the test set."""
    with torch.no_grad():
        return float((model(test[0]).argmax(1) == test[1]).float().mean())


def train(
    rows: list[Any], test: tuple[Tensor, Tensor], rule: str, threshold: float, epsilon: float, seed: int
) -> dict[str, Any]:
    """One run with Adam (the paper's variant), whose steps do not depend on C1's scale: what C1 does is its bias."""
    model = network(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    clipping = make_rule(RULES[rule].format(c=threshold, cap=2 * threshold))
    private = dpclip.make_private(
        model, optimizer, rows, target_epsilon=epsilon, target_delta=DELTA, epochs=EPOCHS, expected_batch_size=BATCH,
        physical_batch_size=250, clipping=clipping, seed=seed, accept_conditional="conditional" in rule,
    )  # fmt: skip
    start = time.process_time()
    for inputs, targets in private.batches():
        with private.microbatch((inputs, targets)):
            private.mean(nn.functional.cross_entropy(model(inputs), targets, reduction="none")).backward()
        private.step()
    found = {
        "accuracy": round(accuracy(model, test), 4), "noise": private.plan.noise_multiplier * clipping.bounds()[0],
        "epsilon": private.guarantee().epsilon, "assumption": clipping.assumption,
        "cpu_s": round(time.process_time() - start, 1),
    }  # fmt: skip
    private.close()
    return found


def run(path: str, seeds: int) -> None:
    """All cells that are missing; seeds outermost."""
    rows, test = data(path)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    results |= {
        "command": f"OMP_NUM_THREADS=1 python cifar.py cifar10_jpeg_10k_2k.npz {seeds}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 1 thread",
        "versions": {package: version(package) for package in ("torch", "numpy")},
        "settings": {"batch": BATCH, "epochs": EPOCHS, "rate": RATE, "delta": DELTA, "optimizer": "Adam"},
    }
    for seed in range(1, seeds + 1):
        for epsilon in EPSILONS:
            for threshold in THRESHOLDS:
                for rule in RULES:
                    key = f"{rule}|{threshold:g}|{epsilon:g}|{seed}"
                    if key not in results["runs"]:
                        results["runs"][key] = train(rows, test, rule, threshold, epsilon, seed)
                        print(key, results["runs"][key], flush=True)
                        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def cells(results: dict[str, Any]) -> dict[tuple[str, float, float], list[float]]:
    """Accuracies by rule, threshold and epsilon."""
    found: dict[tuple[str, float, float], list[float]] = {}
    for key, value in results["runs"].items():
        rule, threshold, epsilon, _ = key.split("|")
        found.setdefault((rule, float(threshold), float(epsilon)), []).append(value["accuracy"])
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown: mean ± standard deviation in per cent."""
    found, lines = cells(results), []
    for epsilon in EPSILONS:
        lines += [f"| ε = {epsilon:g} | " + " | ".join(f"C1 = {c:g}" for c in THRESHOLDS) + " | noise / C1 |"]
        lines += ["| --- |" + " --- |" * (len(THRESHOLDS) + 1)]
        for rule in RULES:
            row = [shown(found.get((rule, c, epsilon), [])) for c in THRESHOLDS]
            noise = results["runs"].get(f"{rule}|1|{epsilon:g}|1", {}).get("noise", float("nan"))
            lines.append(f"| {rule} | " + " | ".join(row) + f" | {noise:.2f} |")
        lines.append("")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    """One cell."""
    if not values:
        return "—"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def figure(results: dict[str, Any]) -> None:
    """Accuracy against C1, one panel a budget."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    found = cells(results)
    chart, panels = pyplot.subplots(1, len(EPSILONS), figsize=(9, 4), sharey=True)
    for axes, epsilon in zip(panels, EPSILONS, strict=True):
        for rule in RULES:
            points = [(c, found[rule, c, epsilon]) for c in THRESHOLDS if (rule, c, epsilon) in found]
            spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for _, v in points]
            axes.errorbar(
                [c for c, _ in points],
                [statistics.fmean(v) for _, v in points],
                yerr=spread,
                marker="o",
                capsize=2,
                markersize=3,
                label=rule,
            )
        axes.set_xscale("log")
        axes.set_xlabel("C1")
        axes.set_title(f"ε = {epsilon:g}", fontsize=9)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy")
    chart.legend(*panels[0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=7, frameon=False)
    chart.tight_layout(rect=(0, 0.12, 1, 1))
    chart.savefig(HERE / "figure.svg", metadata={"Date": None})


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if sys.argv[1] == "--table":
        print(table(json.loads(RESULTS.read_text())))
    elif sys.argv[1] == "--figure":
        figure(json.loads(RESULTS.read_text()))
    else:
        run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
