"""Thousands of one-dimensional runs at once, and the proof that each is what the optimizer's class
does.

f(x) = x^2/2, x0 = 2, b0 = 3, lambda = 1/2; gradient noise of density (3/4)(1 + |x|)^-2.5, finite
moments of order below 1.5. It is drawn by its exact inverse: sign * (U^(-2/3) - 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from dpclip.optim import ClipAdaGradNorm, ClipAdamNorm, ClippedSGD

START, B0, LIMIT = 2.0, 3.0, 0.5


@dataclass(frozen=True)
class Method:
    """One optimizer of one dimension.

    Attributes:
        kind: "sgd", "adagrad" or "adam".
        rate: gamma.
        clipped: by LIMIT, or not at all.
        delayed: divides by the last b.
        beta1, beta2: of Adam.
        reweighted: eta = gamma^2 (AdaGrad).
    """

    kind: str
    rate: float
    clipped: bool = True
    delayed: bool = False
    beta1: float = 0.0
    beta2: float = 0.0
    reweighted: bool = False

    @property
    def name(self) -> str:
        """As the paper calls it."""
        base = {
            "sgd": "SGD",
            "adagrad": "R-AdaGrad" if self.reweighted else "AdaGrad",
            "adam": "Adam",
        }[self.kind]
        return ("Clip-" if self.clipped else "") + base + ("D" if self.delayed else "")

    def optimizer(self, x: nn.Parameter) -> Optimizer:
        """The class that it is an example of."""
        limit = LIMIT if self.clipped else None
        if self.kind == "sgd":
            return ClippedSGD([x], self.rate, limit)
        if self.kind == "adagrad":
            eta = "reweighted" if self.reweighted else 1.0
            return ClipAdaGradNorm([x], self.rate, limit, B0, eta, delayed=self.delayed)
        return ClipAdamNorm([x], self.rate, (self.beta1, self.beta2), limit, B0, self.delayed)


def heavy_noise(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Exact draws."""
    size = (1.0 - generator.random(shape)) ** (-2 / 3) - 1.0
    return np.where(generator.random(shape) < 0.5, -size, size)


def simulate(methods: Sequence[Method], noise: np.ndarray) -> np.ndarray:
    """Last x of every chain, [methods, chains], for noise [steps, chains] that all methods
    share.
    """
    shape = (len(methods), noise.shape[1])
    x, m, b_squared = np.full(shape, START), np.zeros(shape), np.full(shape, B0**2)

    def column(values: list[float]) -> np.ndarray:
        return np.array(values)[:, None]

    limit = column([LIMIT if one.clipped else math.inf for one in methods])
    rate, beta1 = column([one.rate for one in methods]), column([one.beta1 for one in methods])
    keep = column([one.beta2 if one.kind == "adam" else 1.0 for one in methods])
    eta = [one.rate**2 if one.reweighted else 1.0 for one in methods]
    feed = column(
        [
            {"sgd": 0.0, "adagrad": e, "adam": 1 - one.beta2}[one.kind]
            for one, e in zip(methods, eta, strict=True)
        ]
    )
    delayed = column([float(one.delayed) for one in methods]) > 0
    b_squared[[i for i, one in enumerate(methods) if one.kind == "sgd"]] = 1.0
    for xi in noise:
        c = np.clip(x + xi, -limit, limit)
        then, b_squared = b_squared, keep * b_squared + feed * c * c
        m += (1 - beta1) * (c - m)
        x -= rate * m / np.sqrt(np.where(delayed, then, b_squared))
    return x


def by_class(method: Method, noise: np.ndarray) -> float:
    """Last x of the one chain that the class makes of noise [steps]."""
    x = nn.Parameter(torch.tensor([START], dtype=torch.float64))
    optimizer = method.optimizer(x)
    for xi in noise.tolist():
        x.grad = x.detach() + xi
        optimizer.step()
    return float(x.detach())


def difference(methods: Sequence[Method], steps: int = 300, seed: int = 99) -> float:
    """Largest relative difference between a vectorised chain and the class."""
    noise = heavy_noise(np.random.default_rng(seed), (steps, 1))
    ours = simulate(methods, noise)[:, 0]
    theirs = [by_class(one, noise[:, 0]) for one in methods]
    return max(abs(a - b) / max(abs(b), 1e-9) for a, b in zip(ours, theirs, strict=True))


def percentiles(x: np.ndarray, ranks: Sequence[float]) -> list[float]:
    """Of x^2 over all chains."""
    return [float(v) for v in np.percentile(x**2, ranks)]


def at_rates(method: Method, rates: Sequence[float]) -> list[Method]:
    """The method at each rate."""
    return [replace(method, rate=rate) for rate in rates]
