"""The accounting part of a privacy statement: every figure with its method, ready for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from accounting.accountant import profile, spend_curve
from accounting.comparison import Comparison
from accounting.events import Adjacency, Event
from accounting.interval import Interval
from accounting.wording import finite

PROFILE_DELTAS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)


def accountants_section(comparison: Comparison) -> dict[str, Any]:
    """All opinions side by side, and whether they agree.

    Returns:
        "accountants" and "agreement" as JSON values; an infinite end is the string "inf".
    """
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


def profile_section(
    events: Sequence[tuple[Event, int]], adjacency: Adjacency, accountant: str
) -> list[dict[str, Any]]:
    """Epsilon at several deltas, largest delta first.

    Args:
        events: (event, count) pairs.
        accountant: "prv" or "rdp".

    Returns:
        {"delta", "epsilon"} for each delta; an infinite epsilon is the string "inf".
    """
    points = profile(events, adjacency, PROFILE_DELTAS, accountant)
    return [{"delta": delta, "epsilon": finite(epsilon)} for delta, epsilon in points]


def spend_section(points: Iterable[tuple[int, float]]) -> list[dict[str, Any]]:
    """Epsilon after so many steps.

    Args:
        points: (steps, epsilon) pairs.

    Returns:
        {"step", "epsilon"} for each point; an infinite epsilon is the string "inf".
    """
    return [{"step": step, "epsilon": finite(epsilon)} for step, epsilon in points]


def spending(
    event: Event, steps: int, delta: float, adjacency: Adjacency, accountant: str, points: int = 24
) -> list[tuple[int, float]]:
    """Epsilon after about `points` evenly spread step counts, the last one included.

    Args:
        steps: number of releases, >= 1.
        delta: in [0, 1).
        accountant: "prv" or "rdp".

    Returns:
        (steps, epsilon) pairs that start at (0, 0).
    """
    counts = sorted({max(1, round(steps * i / points)) for i in range(1, points + 1)} | {steps})
    return [(0, 0.0), *spend_curve(event, counts, delta, adjacency, accountant)]
