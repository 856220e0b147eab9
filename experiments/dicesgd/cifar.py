"""DP-SGD against every mode of DiceSGD on a part of CIFAR-10, over a grid of C1, each at its proved
noise.

usage: python cifar.py adam|sgd DATA.npz [SEEDS]   runs what cifar_adam.json or cifar_sgd.json lacks
       python cifar.py adam|sgd --table            a table of README.md
       python cifar.py --figure                    cifar.svg

DATA.npz holds x_train [10000, 32, 32, 3] uint8, y_train, x_test, y_test. With SGD the learning rate
is RATE / C1, so that C1 only decides what is clipped; RATE is the best of RATES for each rule on a
seed of its own, epsilon 8, C1 = 1.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from grid import DELTA, HERE, RULES, Cell, cells, figure, opened, private_run, table
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import RunsFile, read_results

BATCH, EPOCHS, ADAM_RATE, MOMENTUM = 500, 4, 1e-2, 0.9
RATES = (0.03, 0.1, 0.3, 1.0)
THRESHOLDS = {"adam": (0.1, 1.0, 10.0), "sgd": (0.01, 0.1, 1.0)}
SGD_RULES = ("DP-SGD", "one-step", "leaky", "literal, published noise (conditional)")
Rows = list[tuple[Tensor, Tensor]]


def path_of(kind: str) -> Path:
    """The file of results."""
    return HERE / f"cifar_{kind}.json"


def data(path: str) -> tuple[Rows, tuple[Tensor, Tensor]]:
    """Training rows, and the test set."""
    arrays = np.load(path)

    def images(name: str) -> Tensor:
        return torch.from_numpy(arrays[name]).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)

    train = list(zip(images("x_train"), torch.from_numpy(arrays["y_train"]).long(), strict=True))
    return train, (images("x_test"), torch.from_numpy(arrays["y_test"]).long())


def network(seed: int) -> nn.Module:
    """A small convolutional net, 23,690 weights."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def train(
    rows: Rows, test: tuple[Tensor, Tensor], cell: Cell, rate: float | None
) -> dict[str, object]:
    """One run: with Adam, or with SGD at `rate` / C1."""
    model = network(cell.seed)
    optimizer = (
        torch.optim.Adam(model.parameters(), lr=ADAM_RATE)
        if rate is None
        else torch.optim.SGD(model.parameters(), lr=rate / cell.threshold, momentum=MOMENTUM)
    )
    found = private_run(
        model, optimizer, rows, cell, epochs=EPOCHS, batch=BATCH, physical_batch=250
    )
    with torch.no_grad():
        found["accuracy"] = round(float((model(test[0]).argmax(1) == test[1]).float().mean()), 4)
    return found | {"rate": rate}


def run(kind: str, path: str, seeds: int) -> None:
    """All cells that are missing."""
    rows, test = data(path)
    settings = {"batch": BATCH, "epochs": EPOCHS, "delta": DELTA, "optimizer": kind}
    settings |= {"rate": ADAM_RATE} if kind == "adam" else {"momentum": MOMENTUM, "rates": RATES}
    command = f"OMP_NUM_THREADS=1 python cifar.py {kind} cifar10_jpeg_10k_2k.npz {seeds}"
    file = opened(path_of(kind), command, settings)
    best: dict[str, float | None] = dict.fromkeys(RULES)
    if kind == "sgd":
        best = {rule: _best_rate(rows, test, rule, file) for rule in SGD_RULES}
    for cell in cells(THRESHOLDS[kind], range(1, seeds + 1)):
        if cell.rule in best:
            file.add(cell.key, train, rows, test, cell, best[cell.rule])


def _best_rate(rows: Rows, test: tuple[Tensor, Tensor], rule: str, file: RunsFile) -> float:
    tuned = file.results.setdefault("tuning", {}).setdefault(rule, {})
    for rate in RATES:
        if str(rate) not in tuned:
            tuned[str(rate)] = train(rows, test, Cell(rule, 1.0, 8.0, 100), rate)["accuracy"]
            print("tuning", rule, rate, tuned[str(rate)], flush=True)
    return float(max(tuned, key=tuned.__getitem__))


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if sys.argv[1] == "--figure":
        grids = {f"{kind}, ": read_results(path_of(kind))["runs"] for kind in ("adam", "sgd")}
        figure(grids, (0.01, 0.1, 1.0, 10.0), HERE / "cifar.svg")
    elif sys.argv[2] == "--table":
        print(table(read_results(path_of(sys.argv[1]))["runs"], THRESHOLDS[sys.argv[1]]))
    else:
        run(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 3)
