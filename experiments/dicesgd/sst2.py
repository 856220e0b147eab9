"""DP-SGD against every mode of DiceSGD on SST-2: a classifier on the frozen states of a pre-trained
GPT-2.

usage: python sst2.py --features DATA_DIR MODEL_DIR FEATURES.npz   runs the model once
       python sst2.py FEATURES.npz [SEEDS]                         runs what sst2.json lacks
       python sst2.py --table | --figure                           of README.md; sst2.svg

SGD, whose learning rate is RATE / C1 with the best RATE for each rule, C1 and epsilon on a seed of
its own ("tuned"), and the same learning rate for every C1, the best one at C1 = 1 ("fixed"). 67,349
sentences, 4 passes in batches of 1,024.
"""

from __future__ import annotations

import csv
import gzip
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from grid import DELTA, HERE, Cell, cells, figure, opened, private_run, table
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import RunsFile, read_results

BATCH, EPOCHS = 1024, 4
RATES = (0.3, 1.0, 3.0, 10.0, 30.0)
THRESHOLDS = (0.01, 0.1, 1.0, 10.0)
FILE = HERE / "sst2.json"
Rows = list[tuple[Tensor, Tensor]]


def sentences(path: Path) -> tuple[list[str], list[int]]:
    """Texts and labels of one file."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return [text for _, text in rows], [int(label) for label, _ in rows]


def write_features(data: Path, model_folder: str, path: str) -> None:
    """Mean and last hidden state of each sentence: no record's features depend on another's."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModel.from_pretrained(model_folder, dtype=torch.float32).eval()

    def states(texts: list[str]) -> Iterator[Tensor]:
        for text in texts:
            ids = tokenizer(text.strip(), return_tensors="pt")["input_ids"][:, :128]
            with torch.no_grad():
                hidden = model(ids).last_hidden_state[0]
            yield torch.cat([hidden.mean(0), hidden[-1]])

    arrays = {}
    for name, file in {"train": "train.tsv.gz", "test": "dev.tsv"}.items():
        texts, labels = sentences(data / "sst2" / file)
        arrays[f"x_{name}"] = torch.stack(list(states(texts))).half().numpy()
        arrays[f"y_{name}"] = np.array(labels)
    np.savez(path, **arrays)


def train(rows: Rows, test: tuple[Tensor, Tensor], cell: Cell, rate: float) -> dict[str, object]:
    """One run at learning rate `rate`."""
    width = rows[0][0].numel()
    torch.manual_seed(cell.seed)
    model = nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    found = private_run(
        model, optimizer, rows, cell, epochs=EPOCHS, batch=BATCH, physical_batch=BATCH
    )
    with torch.no_grad():
        found["accuracy"] = round(float((model(test[0]).argmax(1) == test[1]).float().mean()), 4)
    return found | {"rate": rate}


def run(path: str, seeds: int) -> None:
    """Tuning, then both grids, what is missing of them."""
    arrays = np.load(path)
    x, y = (torch.from_numpy(arrays[name]) for name in ("x_train", "y_train"))
    rows = list(zip(x.float(), y, strict=True))
    test = (torch.from_numpy(arrays["x_test"]).float(), torch.from_numpy(arrays["y_test"]))
    settings = {
        "batch": BATCH,
        "epochs": EPOCHS,
        "rates": RATES,
        "delta": DELTA,
        "optimizer": "sgd",
    }
    file = opened(FILE, f"OMP_NUM_THREADS=1 python sst2.py features.npz {seeds}", settings)
    for cell in cells(THRESHOLDS, range(1, seeds + 1)):
        best = {c: _best_rate(rows, test, cell, c, file) for c in (1.0, cell.threshold)}
        for kind, rate in {
            "tuned": best[cell.threshold] / cell.threshold,
            "fixed": best[1.0],
        }.items():
            file.add(f"{kind}|{cell.key}", train, rows, test, cell, rate)


def _best_rate(
    rows: Rows, test: tuple[Tensor, Tensor], cell: Cell, threshold: float, file: RunsFile
) -> float:
    key = f"{cell.rule}|{threshold:g}|{cell.epsilon:g}"
    tuned = file.results.setdefault("tuning", {}).setdefault(key, {})
    for rate in RATES:
        if str(rate) not in tuned:
            trial = Cell(cell.rule, threshold, cell.epsilon, 100)
            tuned[str(rate)] = train(rows, test, trial, rate / threshold)["accuracy"]
    return float(max(tuned, key=tuned.__getitem__))


def grids() -> dict[str, dict]:
    """Runs by kind of learning rate, keyed as the tables want them."""
    runs = read_results(FILE)["runs"]
    split = {
        kind: {k.split("|", 1)[1]: v for k, v in runs.items() if k.startswith(kind)}
        for kind in ("tuned", "fixed")
    }
    return {f"{kind} rate, ": found for kind, found in split.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if sys.argv[1] == "--features":
        write_features(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    elif sys.argv[1] == "--table":
        print("\n".join(f"{kind}\n\n{table(runs, THRESHOLDS)}" for kind, runs in grids().items()))
    elif sys.argv[1] == "--figure":
        figure(grids(), THRESHOLDS, HERE / "sst2.svg")
    else:
        run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3)
