"""ε over the run and ε over δ: the two curves of a statement, as tables and figures."""

import math
from typing import Any

from dpclip.report import rounding
from dpclip.report.content import Block, Line, Mark, Paragraph, Plot, Plots, Table
from dpclip.report.metrics import Points, thinned
from dpclip.report.reading import Statement
from dpclip.report.verdict import bounded_epsilon, part, stated_delta

MOST_ROWS = 7


def spend(statement: Statement, entries: list[dict[str, Any]]) -> tuple[Block, ...]:
    """ε over steps, drawn and as a short table.

    Args:
        statement: for δ and the level that is promised.
        entries: of its part "spend", each with a step and the ε spent so far.

    Returns:
        nothing without entries.
    """
    if not entries:
        return ()
    rows = tuple(
        (rounding.anything(e.get("step")), rounding.epsilon(e.get("epsilon"))) for e in entries
    )
    columns = ("After step", "ε spent (rounded up)")
    table = Table(columns, _few(rows), frozenset({0, 1}))
    return (Plots(_spend_plot(statement, finite_points(entries, "step", "epsilon")), table),)


def _few(rows: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
    if len(rows) <= MOST_ROWS:
        return rows
    return tuple(
        rows[round(index * (len(rows) - 1) / (MOST_ROWS - 1))] for index in range(MOST_ROWS)
    )


def _spend_plot(statement: Statement, points: Points) -> tuple[Plot, ...]:
    if not points:
        return ()
    delta = part(statement, "guarantee").get("delta")
    at_delta = f"at δ = {rounding.delta(delta)}"
    last_step, last = points[-1]
    promised = bounded_epsilon(statement)
    level = last if promised is None else float(promised)
    description = (
        f"ε spent so far {at_delta}: from {rounding.epsilon(points[0][1])} at step "
        f"{rounding.number(points[0][0])} to {rounding.epsilon(last)} at step "
        f"{rounding.number(last_step)}. Between two listed steps the larger value is drawn."
    )
    mark = Mark(
        last_step,
        level,
        f"{'reached' if promised is None else 'guarantee'}: ε = {rounding.epsilon(level)}",
    )
    line = Line("ε", thinned(points))
    return (
        Plot(
            title="Privacy spent",
            description=description,
            x_label="step",
            y_label=f"ε {at_delta}",
            lines=(line,),
            style="spend",
            mark=mark,
        ),
    )


def profile(statement: Statement, entries: list[dict[str, Any]]) -> tuple[Block, ...]:
    """ε(δ), drawn and as a table.

    Args:
        statement: for the pair that is promised.
        entries: of its part "profile", each with a δ and its ε.
    """
    if not entries:
        return (Paragraph("Not stated."),)
    rows = tuple(
        (rounding.delta(e.get("delta")), rounding.epsilon(e.get("epsilon"))) for e in entries
    )
    table = Table(("δ", "ε (rounded up)"), rows, frozenset({0, 1}))
    return (Plots(_profile_plot(statement, entries), table),)


def _profile_plot(statement: Statement, entries: list[dict[str, Any]]) -> tuple[Plot, ...]:
    points = tuple((x, y) for x, y in finite_points(entries, "delta", "epsilon") if 0 < x < 1)
    if len(points) < 2:
        return ()
    (first, most), (last, least) = points[0], points[-1]
    description = (
        f"The smallest ε for each δ: {rounding.epsilon(most)} at δ = {rounding.delta(first)}, down "
        f"to {rounding.epsilon(least)} at δ = {rounding.delta(last)}."
    )
    line = Line("ε(δ)", points)
    return (
        Plot(
            title="ε for each δ",
            description=description,
            x_label="δ",
            y_label="ε",
            lines=(line,),
            style="profile",
            mark=_stated(statement),
        ),
    )


def _stated(statement: Statement) -> Mark | None:
    epsilon, delta = bounded_epsilon(statement), stated_delta(statement)
    if epsilon is None or not delta:
        return None
    label = f"ε = {rounding.epsilon(float(epsilon))} at δ = {rounding.delta(float(delta))}"
    return Mark(float(delta), float(epsilon), label)


def finite_points(entries: list[dict[str, Any]], x: str, y: str) -> Points:
    """Collect pairs of finite numbers, in the order of x; the rest cannot be drawn.

    Args:
        entries: records of the statement.
        x: keys of the two numbers.
        y: keys of the two numbers.
    """
    stated = ((rounding.exact(entry.get(x)), rounding.exact(entry.get(y))) for entry in entries)
    pairs = [(float(a), float(b)) for a, b in stated if a is not None and b is not None]
    return tuple(sorted((a, b) for a, b in pairs if math.isfinite(a) and math.isfinite(b)))


def finite_profile(entries: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Collect the pairs (ε, δ) of a profile that are guarantees.

    Args:
        entries: of the statement's part "profile".

    Returns:
        pairs with ε in [0, ∞) and δ in [0, 1).
    """
    return [(e, d) for d, e in finite_points(entries, "delta", "epsilon") if e >= 0 and 0 <= d < 1]
