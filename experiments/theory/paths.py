"""Cards Z1-Z3: losses whose smoothness grows with the gradient, and what that does to step
sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpclip.diagnosis.smoothness import SmoothnessProbe, SmoothnessRecord
from dpclip.optim import ClippedSGD, NormalizedSGD

STARTS, STOP = (3.0, 5.0, 7.0, 9.0), 1e-3
GRID = np.logspace(-6, 0, 40)


def slope(x: float) -> float:
    """f' of f = 2 cosh; L0 = 2, L1 = 1."""
    return 2 * math.sinh(x)


def iterations(make: Callable[[list[nn.Parameter]], Optimizer], start: float) -> int:
    """Steps of an optimizer until |f'| <= STOP."""
    x = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer, count = make([x]), 0
    while abs(found := slope(x.item())) > STOP:
        x.grad = torch.tensor([found], dtype=torch.float64)
        optimizer.step()
        count += 1
    return count


def fixed_iterations(rate: float, start: float) -> int:
    """The same for plain gradient descent, in floats: tens of thousands of steps."""
    x, count = start, 0
    while abs(found := slope(x)) > STOP:
        x, count = x - rate * found, count + 1
    return count


def best_fixed(start: float) -> tuple[int, float]:
    """Fewest iterations over the grid of step sizes, and that step size."""
    x, count = np.full(len(GRID), start), 0
    with np.errstate(over="ignore", invalid="ignore"):  # steps that are too long run away
        while not (np.abs(found := 2 * np.sinh(x)) <= STOP).any():
            x, count = x - GRID * found, count + 1
    return count, float(GRID[np.argmax(np.abs(found) <= STOP)])


def card_z1() -> dict[str, Any]:
    """Iterations from four starts with the best fixed, the safe fixed, the theory's and tuned
    clipped steps.
    """
    rows, same = [], []
    for start in STARTS:
        largest = slope(start)
        count, rate = best_fixed(start)
        safe = 1 / (2 * (largest + 2))
        if start <= 5:
            same += [iterations(lambda p, r=rate: ClippedSGD(p, r, None), start) == count]
            same += [
                iterations(lambda p, r=safe: ClippedSGD(p, r, None), start)
                == fixed_iterations(safe, start)
            ]
        rows.append(
            {
                "x0": start,
                "M": largest,
                "best fixed": count,
                "best fixed step": rate,
                "safe fixed": fixed_iterations(safe, start),
                "clipped, theory": iterations(lambda p: ClippedSGD(p, 0.05, max_norm=2.0), start),
                "clipped, tuned": iterations(lambda p: ClippedSGD(p, 0.4, max_norm=1.25), start),
                "normalized": iterations(lambda p: NormalizedSGD(p, 0.5, beta=1.25), start),
            }
        )
    logs = np.log([row["M"] for row in rows])
    slopes = {
        key: float(np.polyfit(logs, np.log([row[key] for row in rows]), 1)[0])
        for key in ("best fixed", "safe fixed")
    }
    return {"rows": rows, "log-log slopes": slopes, "float loop equals the class": all(same)}


def net_and_batch(generator: torch.Generator) -> tuple[nn.Module, Tensor, Tensor]:
    """A tanh net 10-16-16-1 with weights of 3/sqrt(fan_in), and y = 3 sin(1.5 x.w) with w of mean
    square length 1.
    """

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    net = nn.Sequential(
        nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
    ).double()
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(draw(*layer.weight.shape) * 3 / math.sqrt(layer.in_features))
                layer.bias.zero_()
    x = draw(128, 10)
    return net, x, 3 * torch.sin(1.5 * x @ (draw(10, 1) / math.sqrt(10)))


def card_z2(
    weight: float = 1.0, seeds: tuple[int, ...] = (0, 1, 2, 3), steps: int = 600
) -> dict[str, Any]:
    """Smoothness against gradient norm under clipped SGD, by the probe, on the training batch,
    which is public here.

    Args:
        weight: of the loss.
        seeds: of net and data.
        steps: of descent, each measured.
    """
    rows, scatter = [], {}
    for seed in seeds:
        net, x, y = net_and_batch(torch.Generator().manual_seed(seed))

        def loss(net: nn.Module = net, x: Tensor = x, y: Tensor = y) -> Tensor:
            return weight * (net(x) - y).square().mean()

        optimizer = ClippedSGD(net.parameters(), lr=0.5, max_norm=1.0)
        probe = SmoothnessProbe(loss, every=1)
        first = loss().item()
        descend(optimizer, loss, probe, steps)
        fit, values = probe.fit(), [r.smoothness for r in probe.records]
        rows.append(
            {
                "seed": seed,
                "log correlation": fit.log_correlation,
                "L0": fit.l0,
                "L1": fit.l1,
                "first 10 steps": float(np.mean(values[:10])),
                "last 100 steps": float(np.mean(values[-100:])),
                "times h/2, last 300 steps": float(
                    np.median([edge(r) for r in probe.records[-300:]])
                ),
                "loss": [first, loss().item()],
            }
        )
        scatter[seed] = [
            [float(f"{v:.4g}") for v in (r.gradient_norm, r.smoothness)]
            for r in probe.records[::10]
        ]
    return {"rows": rows, "scatter": scatter}


def edge(record: SmoothnessRecord) -> float:
    """Smoothness times h / 2, h = min(0.5, 0.5 / gradient norm) clipped descent's step; 1: the edge
    of stability.
    """
    return record.smoothness * min(0.5, 0.5 / record.gradient_norm) / 2


def descend(
    optimizer: Optimizer, loss: Callable[[], Tensor], probe: SmoothnessProbe, steps: int
) -> None:
    """Watched by the probe."""
    with probe.attached(optimizer):
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


def derivatives(f: Callable[[Tensor], Tensor], grid: Tensor) -> tuple[Tensor, Tensor]:
    """|f'| and f'' on a grid."""
    x = grid.clone().requires_grad_()
    (first,) = torch.autograd.grad(f(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return first.detach().abs(), second


def card_z3() -> dict[str, Any]:
    """f'' <= L0 + |f'| for 2 cosh (L0 = 2) and x^4 (L0 = 16), on a grid and along the
    probe's path.
    """
    rows = []
    losses: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
        "2cosh(x)": (lambda x: 2 * torch.cosh(x), 10.0),
        "x^4": (lambda x: x**4, 100.0),
    }
    for name, (f, reach) in losses.items():
        first, second = derivatives(f, torch.linspace(-reach, reach, 200_001, dtype=torch.float64))
        l0 = float((second - first).max())
        x = nn.Parameter(torch.tensor([0.9 * reach], dtype=torch.float64))
        probe, optimizer = (
            SmoothnessProbe(lambda f=f, x=x: f(x).sum(), every=1),
            ClippedSGD([x], 0.01, max_norm=50.0),
        )
        descend(optimizer, lambda f=f, x=x: f(x).sum(), probe, 300)
        below = float(np.mean([r.smoothness <= l0 + r.gradient_norm + 1e-9 for r in probe.records]))
        rows.append(
            {
                "f": name,
                "L0 for L1 = 1": l0,
                "sup f'' on the grid": float(second.max()),
                "sup f'' on half of it": float(second[50_000:150_001].max()),
                "steps": len(probe.records),
                "share of steps below L0 + |f'|": below,
            }
        )
    return {"rows": rows}
