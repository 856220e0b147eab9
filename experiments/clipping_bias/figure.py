"""One panel a card.

usage: python figure.py    writes figure.svg from results.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from cards import SIGMAS, worst_bias

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import read_results

HERE = Path(__file__).parent


def draw(results: dict[str, Any], path: Path) -> None:
    """One panel a card."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    chart, panels = pyplot.subplots(1, 4, figsize=(14, 3.2))
    for sigma in SIGMAS:
        rows = [row for row in results["K1"] if row["sigma"] == sigma]
        (line,) = panels[0].plot(
            [r["c"] for r in rows],
            [r["worst"] for r in rows],
            "o",
            markersize=4,
            label=f"σ = {sigma:g}",
        )
        grid = np.logspace(-1, 1, 200)
        panels[0].plot(
            grid, [worst_bias(sigma, c) for c in grid], color=line.get_color(), linewidth=0.8
        )
    panels[0].set(
        xscale="log", yscale="log", xlabel="c", title="K1: worst bias; lines: closed form"
    )
    panels[0].legend(fontsize=6)
    for key, marker in (("two-point", "o-"), ("Gaussian", "s-")):
        panels[1].plot(
            [r["eta"] for r in results["K2"]],
            [r[key] for r in results["K2"]],
            marker,
            label=f"{key} noise",
        )
    panels[1].axhline(0.25, color="grey", linewidth=0.8)
    panels[1].set(
        xscale="log", xlabel="step size", title="K2: mean of x; smaller steps do not help"
    )
    panels[1].legend(fontsize=7)
    panels[2].plot([r["c"] for r in results["K3"]], [r["iterations"] for r in results["K3"]], "o-")
    panels[2].set(xscale="log", yscale="log", xlabel="c", title="K3: iterations to 1e-6, no noise")
    rows = results["K4"]
    panels[3].errorbar(
        [r["c"] for r in rows],
        [r["mean"] for r in rows],
        yerr=[r["std"] for r in rows],
        marker="o",
        capsize=2,
        label="mean ± std",
    )
    panels[3].plot(
        [r["c"] for r in rows],
        [r["closed form"] for r in rows],
        "k--",
        linewidth=0.8,
        label="closed form",
    )
    panels[3].set_xscale("log", base=2)
    panels[3].set(xlabel="c", title="K4: bias and variance, p = 0.2")
    panels[3].legend(fontsize=7)
    for axes in panels:
        axes.title.set_fontsize(8)
        axes.grid(alpha=0.3)
    chart.tight_layout()
    chart.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    draw(read_results(HERE / "results.json"), HERE / "figure.svg")
