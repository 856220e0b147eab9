"""The bias of clipped SGD on f(x) = x^2/2 with two-point noise: fixed points, step sizes,
thresholds.

usage: python cards.py    runs all four cards, writes results.json; figure.py draws them

Noise +sigma sqrt((1-p)/p) with probability p, else -sigma sqrt(p/(1-p)): mean 0, variance sigma^2.
The clipping is `dpclip.clipping.Flat`. After Koloskova, Hendrikx, Stich 2023 (arXiv 2305.01588);
the closed forms are derived in README.md.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpclip.clipping import Flat

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import made_by, write_results

HERE = Path(__file__).parent
SIGMAS, THRESHOLDS = (0.1, 0.5, 1.0, 2.0, 5.0), (0.1, 0.5, 1.0, 2.0, 10.0)


def clip(gradients: Tensor, threshold: float) -> Tensor:
    """One-dimensional per-sample clipping by the product's own rule."""
    factors = Flat(threshold).clip_factors(gradients.abs().clamp(min=1e-300).unsqueeze(0))[
        "release"
    ][0]
    return gradients * factors


def atoms(sigma: float, p: Tensor) -> tuple[Tensor, Tensor]:
    """The two values of the noise."""
    return sigma * ((1 - p) / p).sqrt(), -sigma * (p / (1 - p)).sqrt()


def fixed_points(sigma: float, threshold: float, p: Tensor) -> Tensor:
    """Roots of E clip(x + xi) = 0 by bisection, one for each p."""
    high_atom, low_atom = atoms(sigma, p)
    low, high = torch.full_like(p, -20 * sigma), torch.full_like(p, 20 * sigma)
    for _ in range(200):
        x = (low + high) / 2
        mean = p * clip(x + high_atom, threshold) + (1 - p) * clip(x + low_atom, threshold)
        low, high = torch.where(mean < 0, x, low), torch.where(mean < 0, high, x)
    return (low + high) / 2


def worst_bias(sigma: float, threshold: float) -> float:
    """sigma^2 / (4 c) while sigma <= 2 c, sigma - c beyond."""
    return sigma**2 / (4 * threshold) if sigma <= 2 * threshold else sigma - threshold


def card_1() -> list[dict[str, float]]:
    """The worst fixed point over p."""
    p = torch.logspace(-6, math.log10(0.499), 4000, dtype=torch.float64)
    rows = []
    for sigma in SIGMAS:
        for threshold in THRESHOLDS:
            found = float(fixed_points(sigma, threshold, p).abs().max())
            scale = min(sigma, sigma**2 / threshold)
            expected = worst_bias(sigma, threshold)
            rows.append(
                {
                    "sigma": sigma,
                    "c": threshold,
                    "worst": found,
                    "closed form": expected,
                    "over scale": found / scale,
                }
            )
    return rows


def simulate(
    threshold: float, rate: float, *, symmetric: bool = False, chains: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Mean and spread of x over the second half of T = 20 / rate steps, sigma = 1, p = 0.2."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.tensor(0.2, dtype=torch.float64)
    high, low = atoms(1.0, p)
    x = torch.zeros(chains, dtype=torch.float64)
    steps = round(20 / rate)
    kept = []
    for step in range(steps):
        if symmetric:
            noise = torch.randn(chains, generator=generator, dtype=torch.float64)
        else:
            noise = torch.where(torch.rand(chains, generator=generator) < p, high, low)
        x = x - rate * clip(x + noise, threshold)
        if step >= steps // 2:
            kept.append(x)
    values = torch.stack(kept)
    return float(values.mean()), float(values.std())


def card_2() -> list[dict[str, Any]]:
    """Smaller steps do not help; symmetric noise has no bias."""
    rows = []
    for rate in (0.1, 0.01, 0.001):
        rows.append(
            {
                "eta": rate,
                "two-point": simulate(1.0, rate)[0],
                "Gaussian": simulate(1.0, rate, symmetric=True, chains=1000)[0],
            }
        )
    return rows


def card_3() -> list[dict[str, float]]:
    """Without noise clipping only costs time: no plateau at any threshold."""
    rows = []
    for threshold in (0.01, 0.1, 1.0, 10.0, 100.0):
        x, count = torch.tensor([10.0], dtype=torch.float64), 0
        while float(x.abs()) > 1e-6:
            x, count = x - 0.1 * clip(x, threshold), count + 1
        predicted = (
            max(0.0, 10 - threshold) / (0.1 * threshold)
            + math.log(min(threshold, 10.0) / 1e-6) / 0.1
        )
        rows.append({"c": threshold, "iterations": count, "about": round(predicted)})
    return rows


def card_4() -> list[dict[str, float]]:
    """The bias falls with c until the large atom is no longer clipped; the variance grows."""
    rows = []
    for threshold in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0):
        mean, spread = simulate(threshold, 0.01, chains=1000)
        rows.append(
            {
                "c": threshold,
                "mean": mean,
                "std": spread,
                "closed form": max(0.0, 0.5 - 0.25 * threshold),
            }
        )
    return rows


def check(results: dict[str, Any]) -> list[str]:
    """What differs from the closed forms."""
    found = [
        f"K1 {row}" for row in results["K1"] if abs(row["worst"] / row["closed form"] - 1) > 0.005
    ]
    found += [f"K1 scale {row}" for row in results["K1"] if not 1 / 12 <= row["over scale"] <= 1]
    found += [
        f"K2 {row}"
        for row in results["K2"]
        if abs(row["two-point"] - 0.25) > 0.005 or abs(row["Gaussian"]) > 0.005
    ]
    found += [
        f"K3 {row}" for row in results["K3"] if abs(row["iterations"] / row["about"] - 1) > 0.06
    ]
    found += [f"K4 {row}" for row in results["K4"] if abs(row["mean"] - row["closed form"]) > 0.012]
    return found


def main() -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {"K1": card_1(), "K2": card_2(), "K3": card_3(), "K4": card_4()}
    results["differs from the closed forms"] = check(results)
    results |= made_by("python cards.py", "torch", "numpy") | {"seeds": [0]}
    write_results(HERE / "results.json", results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
