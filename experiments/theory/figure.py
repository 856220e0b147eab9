"""One panel a card.

usage: python figure.py    writes figure.svg from results.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import read_results

HERE = Path(__file__).parent


def draw(results: dict[str, Any], path: Path) -> None:
    """Six panels, from the numbers of results.json."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "theory", "svg.fonttype": "none", "font.size": 8}):
        chart = Figure(figsize=(11, 6), layout="constrained")
        panels = chart.subplots(2, 3).flat
        for one, axes in zip((z1, z2, z3, c1, c2, c3), panels, strict=True):
            one(axes, results)
            axes.title.set_fontsize(9)
            axes.grid(alpha=0.3)
        chart.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else {})


def z1(axes: Any, results: dict[str, Any]) -> None:
    """Iterations against M."""
    rows = results["Z1"]["rows"]
    for key, marker in (
        ("safe fixed", "^-"),
        ("best fixed", "s-"),
        ("clipped, theory", "o-"),
        ("clipped, tuned", "v-"),
    ):
        axes.plot([r["M"] for r in rows], [r[key] for r in rows], marker, markersize=4, label=key)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="M, gradient at the start",
        ylabel="iterations to |f'| ≤ 0.001",
    )
    axes.set_title("Z1: descent on 2cosh(x)")
    axes.legend(frameon=False)


def z2(axes: Any, results: dict[str, Any]) -> None:
    """Smoothness against gradient norm."""
    for seed, points in results["Z2"]["scatter"].items():
        axes.plot(
            [p[0] for p in points],
            [p[1] for p in points],
            "o",
            markersize=2.5,
            label=f"seed {seed}",
        )
    grid = np.geomspace(0.6, 6, 50)
    axes.plot(
        grid,
        4 * np.maximum(1, grid),
        "--",
        color="grey",
        linewidth=0.8,
        label="2/h, the edge of stability",
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="gradient norm",
        ylabel="smoothness along the step",
        ylim=(3.5, 50),
    )
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(lambda y, _: f"{y:g}" if y in (4, 5, 6, 8, 20, 30) else "")
    axes.set_title("Z2: tanh net under clipped SGD")
    axes.legend(frameon=False, loc="upper left")


def z3(axes: Any, results: dict[str, Any]) -> None:
    """f'' against |f'|, and the lines above them."""
    x = np.linspace(0, 8, 400)
    for name, slope, curvature, l0, colour in (
        ("2cosh(x)", 2 * np.sinh(x), 2 * np.cosh(x), 2, "C0"),
        ("x⁴", 4 * x**3, 12 * x**2, 16, "C1"),
    ):
        axes.plot(slope, curvature, color=colour, label=name)
        axes.plot(
            slope, l0 + slope, color=colour, linewidth=0.9, linestyle="--", label=f"{l0} + |f'|"
        )
    axes.set(
        xscale="log", yscale="log", xlim=(0.1, 2000), ylim=(0.5, 3000), xlabel="|f'|", ylabel="f''"
    )
    axes.set_title("Z3: smooth in the sense of (L0, L1)")
    axes.legend(frameon=False)


def c1(axes: Any, results: dict[str, Any]) -> None:
    """Percentiles of four AdaGrads."""
    percentile_lines(axes, results["C1"]["percentiles"], ("50", "90", "99"))
    axes.set_title("C1: AdaGrad, γ = 1/8, T = 10 000")


def c2(axes: Any, results: dict[str, Any]) -> None:
    """Percentiles of ten methods."""
    rows = {name: row["percentiles"] for name, row in results["C2"]["rows"].items()}
    percentile_lines(axes, rows, ("50", "90", "99", "99.9"))
    axes.set_title("C2: each at its best rate, T = 1000")


def percentile_lines(axes: Any, rows: dict[str, list[float]], ranks: tuple[str, ...]) -> None:
    """Dashed where delayed; round and filled where clipped."""
    colours = {"SGD": "C0", "AdaGrad": "C1", "AdaGradD": "C1", "Adam": "C2", "AdamD": "C2"}
    for name, values in rows.items():
        clipped, delayed = name.startswith("Clip-"), name.endswith("D") and not name.endswith("SGD")
        style = {
            "linestyle": "--" if delayed else "-",
            "marker": "o" if clipped else "x",
            "markersize": 4,
        }
        axes.plot(
            ranks,
            values,
            color=colours[name.removeprefix("Clip-")],
            linewidth=1,
            label=name,
            **style,
        )
    axes.set(yscale="log", xlabel="percentile over chains", ylabel="x² at the end")
    axes.set_ylim(top=3000 * max(max(values) for values in rows.values()))
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper left")


def c3(axes: Any, results: dict[str, Any]) -> None:
    """Percentiles against gamma."""
    found = results["C3"]
    for key, colour in (("reweighted", "C0"), ("eta = 1", "C1")):
        for k, (rank, style) in enumerate((("p50", "o-"), ("p90", "s--"), ("p99", "^:"))):
            values = [row[k] for row in found[key]]
            axes.plot(
                found["gammas"],
                values,
                style,
                color=colour,
                markersize=4,
                linewidth=1,
                label=f"{key}, {rank}",
            )
    axes.set(yscale="log", ylim=(5e-5, 0.05), xlabel="γ", ylabel="x² at the end")
    axes.set_xscale("log", base=2)
    axes.set_title("C3: Clip-AdaGrad, η = γ² or 1")
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="lower right")


if __name__ == "__main__":
    draw(read_results(HERE / "results.json"), HERE / "figure.svg")
