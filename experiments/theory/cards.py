"""Why clipping helps: smoothness that grows with the gradient (Z1-Z3), and noise with heavy tails
(C1-C3).

usage: python cards.py    runs all six cards, writes results.json; figure.py draws them

After Zhang, He, Sra, Jadbabaie 2020 (arXiv 1905.11881) and Chezhegov et al. 2025 (arXiv
2406.04443), with `dpclip.optim` and `dpclip.diagnosis.smoothness`. Chains of one dimension are
vectorised (chains.py) and held to the classes.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chains import Method, at_rates, difference, heavy_noise, percentiles, simulate
from paths import card_z1, card_z2, card_z3

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import made_by, write_results

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)
RATES = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03, 0.015, 0.01, 0.005, 0.004, 0.003, 0.002)
EXPECTED: dict[str, Any] = {
    "Z1": {
        "best fixed": [11, 55, 325, 2070],
        "safe fixed": [176, 1240, 9104, 67214],
        "clipped, theory": [92, 112, 132, 152],
        "clipped, tuned": [10, 14, 18, 22],
    },
    "Z2": {
        "log correlation": [0.30, 0.49, 0.30, 0.62],
        "smoothness": "from 3.9 ... 6.6 to about 4",
    },
    "Z3": {"L0 of 2cosh": 2.0, "L0 of x^4": 16.0},
    "C1": {
        "AdaGrad": [0.01, 0.06, 0.24],
        "AdaGradD": [0.012, 0.52, 5.1],
        "Clip-AdaGrad": [1.8e-4, 1.5e-3, 3.2e-3],
        "Clip-AdaGradD": [1.8e-4, 1.5e-3, 3.2e-3],
    },
    "C2": {
        "SGD": [0.038, 0.38, 5.0, 55],
        "Clip-SGD": [0.0023, 0.0101, 0.021, 0.034],
        "AdaGrad": [0.024, 0.16, 0.66, 1.8],
        "AdaGradD": [0.055, 1.37, 59, 3315],
        "Adam": [0.050, 0.42, 1.27, 2.28],
        "AdamD": [0.051, 0.35, 1.78, 6.6],
        "Clip-AdaGrad": [0.0016, 0.0095, 0.023, 0.038],
        "Clip-AdaGradD": [0.0016, 0.0095, 0.023, 0.038],
        "Clip-Adam": [0.0014, 0.008, 0.019, 0.031],
        "Clip-AdamD": [0.0014, 0.008, 0.019, 0.031],
    },
    "C3": {"p50 for gamma 1, 0.5, 0.125": [2.33e-3, 2.35e-3, 2.04e-3]},
}


def pooled(methods: list[Method], steps: int, chains: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Last x of all seeds together, [methods, seeds * chains], and of each seed."""
    found = [
        simulate(methods, heavy_noise(np.random.default_rng(seed), (steps, chains)))
        for seed in SEEDS
    ]
    return np.concatenate(found, 1), found


def families(**settings: Any) -> list[Method]:
    """Unclipped, delayed, clipped, clipped and delayed."""
    return [
        Method(clipped=clipped, delayed=delayed, **settings)
        for clipped in (False, True)
        for delayed in (False, True)
    ]


def card_c1() -> dict[str, Any]:
    """AdaGrad at gamma = 1/8, T = 10 000: percentiles 50, 90, 99 of x^2."""
    methods = families(kind="adagrad", rate=0.125)
    x, seeds = pooled(methods, 10_000, 1000)
    return {
        "percentiles": {
            one.name: percentiles(row, (50, 90, 99)) for one, row in zip(methods, x, strict=True)
        },
        "p99 by seed": {
            one.name: [percentiles(found[i], (99,))[0] for found in seeds]
            for i, one in enumerate(methods)
        },
        "vectorised against the class": difference(methods),
    }


def card_c2() -> dict[str, Any]:
    """Ten methods at the rate of the best median, T = 1000: percentiles 50, 90, 99, 99.9 of x^2."""
    steps = 1000
    methods = [
        Method("sgd", 0.01, clipped=False),
        Method("sgd", 0.01),
        *families(kind="adagrad", rate=0.25),
    ]
    methods += families(kind="adam", rate=0.03, beta1=0.9, beta2=1 - 1 / steps)
    rows = {}
    for method in methods:
        x, seeds = pooled(at_rates(method, RATES), steps, 4000)
        best = int(np.argmin([percentiles(row, (50,))[0] for row in x]))
        rows[method.name] = {
            "rate": RATES[best],
            "percentiles": percentiles(x[best], (50, 90, 99, 99.9)),
            "p99.9 by seed": [percentiles(found[best], (99.9,))[0] for found in seeds],
            "at the expected rate": {
                "rate": method.rate,
                "percentiles": percentiles(x[RATES.index(method.rate)], (50, 90, 99, 99.9)),
            },
        }
    return {"rows": rows, "vectorised against the class": difference(methods)}


def card_c3() -> dict[str, Any]:
    """Clip-R-AdaGrad (eta = gamma^2) and Clip-AdaGrad (eta = 1) at three gammas, T = 10 000."""
    rates = (1.0, 0.5, 0.125)
    found: dict[str, Any] = {"gammas": list(rates)}
    methods = at_rates(Method("adagrad", 1.0, reweighted=True), rates) + at_rates(
        Method("adagrad", 1.0), rates
    )
    x, seeds = pooled(methods, 10_000, 1000)
    for key, rows in (("reweighted", range(3)), ("eta = 1", range(3, 6))):
        found[key] = [percentiles(x[i], (50, 90, 99)) for i in rows]
        found[f"{key}, p50 by seed"] = [
            [percentiles(one[i], (50,))[0] for one in seeds] for i in rows
        ]
    return found | {"vectorised against the class": difference(methods)}


# --- checks ---------------------------------------------------------------------------------------


def checks_z(
    z1: dict[str, Any], z2: dict[str, Any], half: dict[str, Any], z3: dict[str, Any]
) -> list[tuple[str, str, Any, bool]]:
    """Card, claim, measured, whether it holds."""
    found: list[tuple[str, str, Any, bool]] = []
    for key, value in z1["log-log slopes"].items():
        found.append(
            (
                "Z1",
                f"iterations of {key} steps grow like M: log-log slope above 0.8",
                value,
                value > 0.8,
            )
        )
    columns = {key: [row[key] for row in z1["rows"]] for key in EXPECTED["Z1"]}
    more = np.diff(columns["clipped, theory"]).tolist()
    found.append(
        (
            "Z1",
            "theory's clipping: about 20 iterations more per +2 in x0",
            more,
            all(19 <= d <= 21 for d in more),
        )
    )
    for key in ("safe fixed", "clipped, theory", "clipped, tuned"):
        found.append(
            ("Z1", f"{key}: as expected", columns[key], columns[key] == EXPECTED["Z1"][key])
        )
    near = np.abs(
        np.log(np.array(columns["best fixed"]) / EXPECTED["Z1"]["best fixed"])
    ).max() < np.log(1.3)
    found.append(
        ("Z1", "best fixed: within 30 % of the expected", columns["best fixed"], bool(near))
    )
    found.append(
        (
            "Z1",
            "float loops equal the class",
            z1["float loop equals the class"],
            z1["float loop equals the class"],
        )
    )
    logs = [row["log correlation"] for row in z2["rows"]]
    found.append(("Z2", "correlation of logs above 0.2 for every seed", logs, min(logs) > 0.2))
    last = [row["last 100 steps"] for row in z2["rows"]]
    found.append(
        ("Z2", "smoothness ends near 4, within 1", last, all(abs(v - 4) < 1 for v in last))
    )
    logs = [row["log correlation"] for row in half["rows"]]
    found.append(
        ("Z2", "half the loss: correlation of logs above 0 for every seed", logs, min(logs) > 0)
    )
    last = [row["last 100 steps"] for row in half["rows"]]
    claim = "half the loss: smoothness ends at 2 / lr = 4, within 1 %"
    found.append(("Z2", claim, last, all(abs(v - 4) < 0.04 for v in last)))
    edges = [row["times h/2, last 300 steps"] for one in (z2, half) for row in one["rows"]]
    claim = "both: later smoothness is 2 / h, h = min(lr, lr / norm), within 5 % in the median"
    found.append(("Z2", claim, edges, all(abs(v - 1) < 0.05 for v in edges)))
    l0 = [row["L0 for L1 = 1"] for row in z3["rows"]]
    found.append(("Z3", "L0 = 2 and 16 with L1 = 1", l0, bool(np.allclose(l0, [2, 16]))))
    no_bound = [row["sup f'' on the grid"] / row["sup f'' on half of it"] for row in z3["rows"]]
    found.append(
        (
            "Z3",
            "no global L: sup f'' at least 3.9 times as large on twice the interval",
            no_bound,
            min(no_bound) > 3.9,
        )
    )
    below = [row["share of steps below L0 + |f'|"] for row in z3["rows"]]
    found.append(("Z3", "every probed step is below L0 + |f'|", below, below == [1.0, 1.0]))
    return found


def checks_c(
    c1: dict[str, Any], c2: dict[str, Any], c3: dict[str, Any]
) -> list[tuple[str, str, Any, bool]]:
    """Card, claim, measured, whether it holds."""
    p, rows = c1["percentiles"], c2["rows"]
    found: list[tuple[str, str, Any, bool]] = []
    worst = p["Clip-AdaGrad"][2], p["AdaGrad"][0]
    found.append(("C1", "clipped p99 below unclipped p50", worst, worst[0] < worst[1]))
    ratio = p["AdaGradD"][2] / p["AdaGrad"][2]
    found.append(("C1", "delay makes unclipped p99 more than 5 times larger", ratio, ratio > 5))
    gap = max(abs(a / b - 1) for a, b in zip(p["Clip-AdaGradD"], p["Clip-AdaGrad"], strict=True))
    found.append(("C1", "clipped: delay changes no percentile by 10 %", gap, gap < 0.1))
    for name in ("SGD", "AdaGrad", "AdaGradD", "Adam", "AdamD"):
        tail = rows[name]["percentiles"][3] / rows[f"Clip-{name}"]["percentiles"][3]
        found.append(
            ("C2", f"{name}: unclipped p99.9 more than 20 times the clipped", tail, tail > 20)
        )
    medians = [row[0] for row in c3["reweighted"]]
    spread = max(abs(m / medians[0] - 1) for m in medians)
    found.append(("C3", "reweighted: p50 agree within 15 %", spread, spread < 0.15))
    tails = max(
        abs(row[k] / c3["reweighted"][0][k] - 1) for row in c3["reweighted"] for k in (1, 2)
    )
    found.append(("C3", "reweighted: p90 and p99 agree within 15 %", tails, tails < 0.15))
    plain = [row[0] for row in c3["eta = 1"]]
    found.append(
        (
            "C3",
            "eta = 1: p50 differ by more than 15 %",
            plain,
            max(abs(m / plain[0] - 1) for m in plain) > 0.15,
        )
    )
    for card, result in (("C1", c1), ("C2", c2), ("C3", c3)):
        value = result["vectorised against the class"]
        found.append((card, "vectorised chain equals the class to 1e-9", value, value < 1e-9))
    return found


def main() -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    begun = time.perf_counter()
    z1, z2, z3, c1, c2, c3 = card_z1(), card_z2(), card_z3(), card_c1(), card_c2(), card_c3()
    half = card_z2(weight=0.5)
    del half["scatter"]
    checks = checks_z(z1, z2, half, z3) + checks_c(c1, c2, c3)
    results: dict[str, Any] = {
        "checks": [
            {"card": c, "claim": claim, "measured": value, "holds": bool(h)}
            for c, claim, value, h in checks
        ],
        "expected": EXPECTED,
        "Z1": z1,
        "Z2": z2,
        "Z2 with half the loss": half,
        "Z3": z3,
        "C1": c1,
        "C2": c2,
        "C3": c3,
        **made_by("python cards.py", "torch", "numpy"),
        "seconds": round(time.perf_counter() - begun),
        "seeds": {"Z2": [0, 1, 2, 3], "C1, C2, C3": list(SEEDS)},
    }
    write_results(HERE / "results.json", results)
    for card, claim, measured, holds in checks:
        print(f"{card} {'holds' if holds else 'FAILS'}: {claim}: {measured}")


if __name__ == "__main__":
    main()
