"""The accounting part of a privacy statement: every figure with its method, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

from accounting.accountant import profile, spend_curve
from accounting.comparison import Comparison
from accounting.events import Adjacency, Event
from accounting.interval import Interval

SCHEMA = 1
PROFILE_DELTAS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def finite(value: float | None) -> float | str | None:
    """A number as JSON knows it: infinity becomes the string "inf"."""
    return "inf" if value is not None and math.isinf(value) else value


def accountants_section(comparison: Comparison) -> dict[str, Any]:
    """All opinions side by side, and whether they agree."""
    return {
        "accountants": [_opinion(interval) for interval in comparison.opinions],
        "agreement": {"agree": comparison.agree, "reason": comparison.reason},
    }


def _opinion(interval: Interval) -> dict[str, Any]:
    return {
        "accountant": interval.accountant,
        "lower": finite(interval.lower),
        "estimate": finite(interval.estimate),
        "upper": finite(interval.upper),
        "note": interval.note,
    }


def profile_section(events: Sequence[tuple[Event, int]], adjacency: Adjacency, accountant: str) -> list[dict[str, Any]]:
    """epsilon at several deltas, largest delta first."""
    points = profile(events, adjacency, PROFILE_DELTAS, accountant)
    return [{"delta": delta, "epsilon": finite(epsilon)} for delta, epsilon in points]


def spend_section(points: Iterable[tuple[int, float]]) -> list[dict[str, Any]]:
    """epsilon after so many steps."""
    return [{"step": step, "epsilon": finite(epsilon)} for step, epsilon in points]


def spending(
    event: Event, steps: int, delta: float, adjacency: Adjacency, accountant: str, points: int = 24
) -> list[tuple[int, float]]:
    """epsilon after about `points` evenly spread step counts, the last one included; starts at (0, 0)."""
    counts = sorted({max(1, round(steps * i / points)) for i in range(1, points + 1)} | {steps})
    return [(0, 0.0), *spend_curve(event, counts, delta, adjacency, accountant)]


def rounded_up(epsilon: float) -> str:
    """Two decimals, or three significant digits below 0.1; never less than epsilon."""
    if math.isinf(epsilon):
        return "inf"
    exact = Decimal(repr(epsilon))  # the figure as the statement writes it
    if epsilon >= 0.1:
        return str(exact.quantize(Decimal("0.01"), rounding=ROUND_CEILING))
    return f"{Context(prec=3, rounding=ROUND_CEILING).create_decimal(exact):g}"


def sentence(epsilon: float, delta: float, unit: str, adjacency: str, kind: str, assumption: str | None) -> str:
    """The guarantee in one sentence; epsilon is rounded up."""
    if math.isinf(epsilon):
        return "This run gives no privacy guarantee: epsilon is infinite."
    relation = {
        "add-remove": "adding or removing",
        "zero-out": "blanking out",
        "replace-one": "replacing",
    }.get(adjacency, adjacency)
    condition = f", provided that {assumption}" if assumption else ""
    return (
        f"The trained model is ({rounded_up(epsilon)}, {delta:g})-differentially private ({kind}) "
        f"with respect to {relation} {unit}{condition}."
    )
