"""The figure of a comparison: utility against epsilon, and the released statistics' courses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpclip.report.figures import COLOURS, GRID, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TRACES = (
    ("threshold", "clipping threshold (released)"),
    ("share_within", "share of samples within it (released)"),
)


def write_figure(folder: Path, result: dict[str, Any]) -> Path:
    """Draw `comparison.svg` beside the table; the same bytes for the same results.

    Args:
        folder: of the comparison; the runs' folders lie in it.
        result: with "table" (a cell a rule and budget) and "rows" (a run each).

    Returns:
        the figure's path.
    """
    import matplotlib
    from matplotlib.figure import Figure

    traces = [
        (key, label) for key, label in TRACES if any(True for _ in _traces(folder, result, key))
    ]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "comparison"}):
        figure = Figure(figsize=(4.6 * (1 + len(traces)), 3.4), layout="constrained")
        panels = figure.subplots(1, 1 + len(traces), squeeze=False)[0]
        rules = list(dict.fromkeys(cell["rule"] for cell in result["table"]))
        colours = {rule: COLOURS[index % len(COLOURS)] for index, rule in enumerate(rules)}
        _utility(panels[0], result, colours)
        for axes, (key, label) in zip(panels[1:], traces, strict=True):
            _trajectories(axes, list(_traces(folder, result, key)), label, colours)
        path = folder / "comparison.svg"
        figure.savefig(path, format="svg", metadata={"Date": None})
    return path


def _utility(axes: Axes, result: dict[str, Any], colours: dict[str, str]) -> None:
    cells = [cell for cell in result["table"] if cell["mean"] is not None]
    for rule, colour in colours.items():
        own = sorted(
            (c for c in cells if c["rule"] == rule and c["epsilon"] != "inf"),
            key=lambda c: c["epsilon"],
        )
        if own:
            axes.errorbar(
                [c["epsilon"] for c in own],
                [c["mean"] for c in own],
                yerr=[c["std"] or 0.0 for c in own],
                color=colour,
                label=rule,
                marker="o",
                markersize=3.5,
                linewidth=1.4,
                capsize=2,
            )
    for cell in cells:
        if cell["epsilon"] == "inf":
            axes.axhline(
                cell["mean"],
                color=INK,
                linewidth=0.9,
                linestyle=(0, (4, 3)),
                label="without privacy",
            )
    axes.set_xscale("log", base=2)
    ticks = sorted({c["epsilon"] for c in cells if c["epsilon"] != "inf"})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    metric = next((c["metric"] for c in result["table"]), None)
    _label(axes, "ε (log scale)", f"held-out {metric}")
    axes.legend(frameon=False, fontsize=7)


def _traces(
    folder: Path, result: dict[str, Any], key: str
) -> Iterator[tuple[str, float, list[tuple[int, float]]]]:
    """Give rule, budget and course of one released statistic, of each first seed."""
    for row in result["rows"]:
        path = folder / row["folder"] / "public" / "released_metrics.jsonl"
        if row["seed"] != 1 or row["target_epsilon"] == "inf" or not path.is_file():
            continue
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        points = [(line["step"], line[key]) for line in lines if key in line]
        if points:
            yield row["rule"], row["target_epsilon"], points


def _trajectories(
    axes: Axes,
    traces: list[tuple[str, float, list[tuple[int, float]]]],
    label: str,
    colours: dict[str, str],
) -> None:
    styles = ["-", "--", "-.", ":"]
    budgets = sorted({epsilon for _, epsilon, _ in traces})
    for rule, epsilon, points in traces:
        style = styles[budgets.index(epsilon) % len(styles)]
        x, y = zip(*points, strict=True)
        axes.plot(x, y, style, color=colours[rule], linewidth=1.0, label=f"{rule}, ε = {epsilon:g}")
    if min(value for _, _, points in traces for _, value in points) > 0:
        axes.set_yscale("log")
    _label(axes, "step", label)
    axes.legend(frameon=False, fontsize=6)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK, fontsize=8.5)
    axes.set_ylabel(y, color=INK, fontsize=8.5)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", labelsize=7.5, colors=INK)
