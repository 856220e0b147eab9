"""One panel a card: validation loss of every arm, all seeds as dots.

usage: python figure.py    writes figure.svg from results.json
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import read_results

HERE = Path(__file__).parent

TITLES = {
    "A": "A: noise of 50 norms (Adam)",
    "B": "B: noise of 45 norms, loss × 0.1 (SGD)",
    "C": "C: noise in one small tensor (SGD, Adam)",
    "D": "D: 4-bit weights, noise of 100 norms",
    "E": "E: noise of 1000 norms",
    "H": "H: rates that are too high",
}
FAR = 1.35  # what lies further than this many times the best is drawn at the edge


def draw(runs: dict[str, Any], path: Path) -> None:
    """Six panels, from the numbers of results.json."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "spikes", "svg.fonttype": "none", "font.size": 8}):
        chart = Figure(figsize=(11, 9), layout="constrained")
        for card, axes in zip(TITLES, chart.subplots(3, 2).flat, strict=True):
            panel(axes, arms_of(runs, card))
            axes.set_title(TITLES[card], fontsize=9)
        chart.supxlabel(
            "validation loss, nats a byte: seeds and their mean; arrow: further off or diverged; "
            "grey: no spikes",
            fontsize=8,
        )
        chart.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else {})


def arms_of(runs: dict[str, Any], card: str) -> dict[str, list[float | None]]:
    """Losses by arm; None where training diverged."""
    found: dict[str, list[float | None]] = {}
    for key, value in runs.items():
        where, arm, _ = key.split("|")
        if where == card:
            found.setdefault(arm, []).append(value["loss"])
    return found


def panel(axes: Any, arms: dict[str, list[float | None]]) -> None:
    """A line an arm."""
    best = min(v for values in arms.values() for v in values if v is not None)
    worst = max(v for values in arms.values() for v in values if v is not None and v <= FAR * best)
    edge = worst + 0.06 * (worst - best)
    for row, (arm, values) in enumerate(arms.items()):
        colour = "grey" if "no spikes" in arm else "C0"
        inside = [v for v in values if v is not None and v <= FAR * best]
        axes.plot(
            inside,
            [row] * len(inside),
            "o",
            color=colour,
            markersize=4,
            alpha=0.6,
            markeredgewidth=0,
        )
        if len(inside) == len(values):
            axes.plot([statistics.fmean(inside)], [row], "|", color=colour, markersize=12)
        else:
            axes.plot([edge], [row], ">", color="C3", markersize=5)
            axes.annotate(
                f"{len(values) - len(inside)} of {len(values)}",
                (edge, row),
                (-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                fontsize=7,
                color="C3",
            )
    axes.set_yticks(range(len(arms)), list(arms), fontsize=7)
    axes.invert_yaxis()
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    draw(read_results(HERE / "results.json")["runs"], HERE / "figure.svg")
