"""The curve of epsilon over the planned steps."""

from __future__ import annotations

from accounting.statement import spending
from dpclip.budget.plan import Plan


def planned_spending(plan: Plan) -> list[tuple[int, float]]:
    """(step, epsilon) pairs from (0, 0) to the last planned step; empty without privacy."""
    if not plan.private:
        return []
    if plan.scheme.filter(plan) is not None:  # the whole budget is promised from the first step on
        return [(0, 0.0), (1, plan.target_epsilon), (plan.steps, plan.target_epsilon)]
    curve = spending(*plan.whole, plan.delta, plan.adjacency, plan.accountant)
    points = [(plan.scheme.after(plan, count), epsilon) for count, epsilon in curve[1:]]
    last = [(plan.steps, points[-1][1])] if points[-1][0] < plan.steps else []
    return [curve[0], *points, *last]


def epsilon_after(spend: list[tuple[int, float]], steps: int | None, budget: float) -> float:
    """epsilon after a number of planned steps: that of the curve's next point, so never too small.

    Args:
        spend: from `planned_spending`.
        steps: planned steps that cost as much; None beyond the plan, where it is the budget, which
            the ledger has checked before each charge.
        budget: the target epsilon.
    """
    if steps is None:
        return budget
    return next((epsilon for count, epsilon in spend if count >= steps), budget)
