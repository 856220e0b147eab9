"""The most that thresholds and noise shares can do for Adam, with gradients that no private run may
see.

usage: OMP_NUM_THREADS=1 python ceiling.py PREPARED OUTPUT.json

Where noise dominates, Adam divides each group's released gradient by its noise, so noise moves
every weight alike and, to first order, the loss falls by an amount in proportion to

    sum_k (C_k / s_k) A_k,    A_k = <grad_k, mean clipped g_k> / C_k,    sum_k (C_k / s_k)^2 = 1 /
    sigma_eff^2 given.

That is largest for C_k / s_k in proportion to A_k (Cauchy-Schwarz). Here the true A_k of 384
records are measured, and what other ways of sharing out the noise reach of that largest value: one
less it is what a perfect controller of the shares would gain in signal over noise.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from grid import Quiet, settings_of
from torch import Tensor, nn

from dpclip.clipping.per_group import layer_of, noise_shares
from dpclip.noise.keystream import SecretKey
from dpclip.train.job import Job
from dpclip.train.run import start

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import write_results

RECORDS, QUANTILES = 384, (0.1, 0.5, 0.9)
SETTINGS = ("notes-builtin", "e2e-builtin", "e2e-wikitext-lora")


class Gradients:
    """Every record's gradient, computed again whenever it is asked for."""

    def __init__(self, model: nn.Module, job: Job) -> None:
        self.model, self.job = model, job
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        layers = [layer_of(name) for name, _ in named]
        self.groups = list(dict.fromkeys(layers))
        self.owners = [self.groups.index(layer) for layer in layers]
        self.sizes = [
            sum(p.numel() for p, o in zip(self.parameters, self.owners, strict=True) if o == k)
            for k in range(len(self.groups))
        ]
        draw = torch.Generator().manual_seed(0)
        self.picked = torch.randperm(len(job.examples), generator=draw)[:RECORDS].tolist()

    def each(self) -> Any:
        """One list of tensors a record."""
        for index in self.picked:
            batch = self.job.task.collate([self.job.examples[index]])
            yield torch.autograd.grad(
                self.job.task.losses(self.model, batch).mean(), self.parameters
            )

    def norms(self) -> Tensor:
        """[records, K]."""
        found = torch.zeros(RECORDS, len(self.groups), dtype=torch.float64)
        for row, gradient in enumerate(self.each()):
            for owner, part in zip(self.owners, gradient, strict=True):
                found[row, owner] += part.double().square().sum()
        return found.sqrt()

    def means(self, factors: list[Tensor]) -> list[list[Tensor]]:
        """Weighted means, one for each [records, K] of factors."""
        sums = [[torch.zeros_like(p) for p in self.parameters] for _ in factors]
        for row, gradient in enumerate(self.each()):
            for weights, into in zip(factors, sums, strict=True):
                for owner, part, total in zip(self.owners, gradient, into, strict=True):
                    total += float(weights[row, owner]) / RECORDS * part
        return sums

    def products(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        """Inner products, [K]."""
        found = torch.zeros(len(self.groups), dtype=torch.float64)
        for owner, a, b in zip(self.owners, one, other, strict=True):
            found[owner] += (a * b).sum().double()
        return found


def ceiling(model: nn.Module, job: Job) -> dict[str, Any]:
    """What each way of sharing out the noise reaches of the best, by quantile of the thresholds."""
    gradients = Gradients(model.eval(), job)
    norms = gradients.norms()
    whole = norms.square().sum(1).sqrt()
    bounds = {q: norms.quantile(q, 0) for q in QUANTILES}
    layered = [(bounds[q] / norms).clamp(max=1) for q in QUANTILES]
    flat = [
        (whole.quantile(q) / whole).clamp(max=1).unsqueeze(1).expand_as(norms) for q in QUANTILES
    ]
    true, *clipped = gradients.means([torch.ones_like(norms), *layered, *flat])
    found = {}
    for index, q in enumerate(QUANTILES):
        gains = gradients.products(true, clipped[index]) / bounds[q]
        best = float(gains.square().sum().sqrt())
        reached = {
            "flat": float(
                gradients.products(true, clipped[len(QUANTILES) + index]).sum() / whole.quantile(q)
            )
        }
        for allocation in ("minimum-variance", "uniform", "proportional"):
            shares = torch.tensor(
                noise_shares(allocation, bounds[q].tolist(), gradients.sizes), dtype=torch.float64
            )
            reached[allocation] = float((shares.sqrt() * gains).sum())
        found[str(q)] = {"best": best, **{name: value / best for name, value in reached.items()}}
    return {"groups": len(gradients.groups), "quantiles": found}


class Measuring(Quiet):
    """Measures at the start and after the last step."""

    def on_plan(self, job: Job, spend: list[tuple[int, float]], folder: Path | None) -> None:
        super().on_plan(job, spend, folder)
        self.found = {"start": self.ceiling()}

    def on_step(self, step: int, epsilon: float, values: dict[str, float]) -> None:
        if step == self.job.plan.steps:
            self.found["trained"] = self.ceiling()

    def ceiling(self) -> dict[str, Any]:
        found = ceiling(self.job.loaded.model, self.job)
        self.job.loaded.model.train()
        return found


def main(prepared: Path, output: Path) -> None:
    """Private runs with the quantile controller, epsilon = 2, seed 1."""
    results = {}
    for setting in SETTINGS:
        listener = Measuring()
        with tempfile.TemporaryDirectory() as folder:
            settings = settings_of(prepared, setting, "quantile", 2.0, 1).changed(eval_every=None)
            start(settings, Path(folder) / "run", listener, key=SecretKey.for_tests(1))
        results[setting] = listener.found
        print(setting, json.dumps(listener.found), flush=True)
        write_results(output, results)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
