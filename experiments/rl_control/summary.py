"""The grid in two tables: ratios to flat clipping, and how soon the agent reaches what others end
with.

usage: python summary.py e2e-builtin.json …
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grid import interval_of, steps_to

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import markdown_table, read_results

Found = dict[tuple[str, float], dict[int, dict[str, Any]]]
BUDGETS, TUNING = (0.5, 2.0, 8.0), 100  # the seed that thresholds were tuned on


def found_in(path: Path) -> Found:
    """Runs by rule and budget, then seed."""
    found: Found = {}
    for key, run in read_results(path)["runs"].items():
        rule, epsilon, seed = key.split("|")
        if int(seed) != TUNING:
            found.setdefault((rule, float(epsilon)), {})[int(seed)] = run
    return found


def ratios(found: Found, rule: str, epsilon: float) -> str:
    """To flat clipping, seed by seed: mean and 95 % interval."""
    own, flat = found.get((rule, epsilon), {}), found.get(("flat", epsilon), {})
    values = [own[seed]["perplexity"] / flat[seed]["perplexity"] for seed in own if seed in flat]
    if not values:
        return "–"
    mean, half = interval_of(values)
    return f"{mean:.3f} ± {half:.3f}" if math.isfinite(half) else f"{mean:.3f}"


def soon(found: Found, rule: str, epsilon: float) -> str:
    """Part of its run after which the agent has what a rule ends with; the median over seeds."""
    own, agent = found.get((rule, epsilon), {}), found.get(("agent", epsilon), {})
    parts = [
        steps_to(agent[s]["curve"], own[s]["perplexity"]) / own[s]["curve"][-1][0]
        for s in own
        if s in agent
    ]
    middle = statistics.median(parts) if parts else math.nan
    return (
        "–" if math.isnan(middle) else f"{100 * middle:.0f} %" if math.isfinite(middle) else "never"
    )


def measures(found: Found, rule: str, epsilon: float) -> str:
    """Perplexity, choices, membership, exposure."""
    runs = list(found.get((rule, epsilon), {}).values())
    if not runs:
        return "–"
    names = (("perplexity", 1, 2), ("choice", 100, 0), ("membership", 1, 3), ("exposure", 1, 2))
    return ", ".join(
        f"{times * statistics.fmean(r[n] for r in runs):.{digits}f}" for n, times, digits in names
    )


def table(
    cell: Callable[[Found, str, float], str], settings: dict[str, Found], rules: list[str]
) -> str:
    """Markdown: a row a rule, a column a setting; the budgets side by side in a cell."""
    rows = []
    for rule in rules:
        cells = ("; ".join(cell(found, rule, e) for e in BUDGETS) for found in settings.values())
        rows.append([rule, *cells])
    return markdown_table(["rule", *settings], rows)


if __name__ == "__main__":
    settings = {Path(name).stem: found_in(Path(name)) for name in sys.argv[1:]}
    every = dict.fromkeys(rule for found in settings.values() for rule, _ in found)
    rules = [rule for rule in every if "C =" not in rule]
    for cell, rows in ((ratios, rules), (soon, rules), (measures, ["flat", "agent"])):
        print(table(cell, settings, rows), end="\n\n")
