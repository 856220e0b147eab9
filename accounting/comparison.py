"""Several opinions on the same events, side by side, and the figure that can be defended."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accounting.accountant import Counted, booked
from accounting.filters.renyi import RenyiFilter
from accounting.interval import Interval
from accounting.prv_library import NAME as LIBRARY
from accounting.prv_library import prv_opinion

_RELATIVE, _ABSOLUTE = 2e-4, 1e-6  # tolerance between two opinions


@dataclass(frozen=True)
class Comparison:
    """The epsilon to report, by which accountant, and whether the opinions are consistent.

    Attributes:
        epsilon: the figure to report, >= 0 or inf.
        accountant: the name of the opinion it is taken from.
        opinions: of everyone who was asked.
        agree: whether they are consistent.
        reason: what was wrong, or which opinion is missing and why; may be empty.
    """

    epsilon: float
    accountant: str
    opinions: tuple[Interval, ...]
    agree: bool
    reason: str


def compare(events: Counted, delta: float, adjacency: str, accountant: str = "prv") -> Comparison:
    """Ask the Rényi accountant, our loss distributions and prv-accountant, and report the
    defensible figure.

    They agree when the distributions' interval is not above the Rényi bound and meets
    prv-accountant's. On disagreement the largest finite bound is reported and the reason says so.

    Args:
        events: (event, count) pairs.
        delta: in [0, 1).
        accountant: "prv" or "rdp": whose figure is reported where the opinions agree.

    Raises:
        InputError: an unknown accountant or adjacency, a malformed event, or a delta out of range.
    """
    book = booked(events, adjacency, accountant)
    renyi, ours = (booked(book.events, adjacency, name).epsilon(delta) for name in ("rdp", "prv"))
    library = prv_opinion(book.events, delta, adjacency)
    chosen = renyi if accountant == "rdp" else ours
    all_three = (renyi, ours, library)
    if math.isinf(chosen.upper):
        return Comparison(
            math.inf, chosen.accountant, all_three, True, chosen.note or "no finite bound exists"
        )
    complaint = _complaint(renyi, ours, library)
    if complaint is None:
        return Comparison(chosen.upper, chosen.accountant, all_three, True, _consent(ours, library))
    largest = max(
        (o for o in all_three if math.isfinite(o.upper)), key=lambda opinion: opinion.upper
    )
    reason = f"{complaint}; the largest of the bounds is reported"
    return Comparison(largest.upper, largest.accountant, all_three, False, reason)


def filtered(book: RenyiFilter, delta: float) -> Comparison:
    """A filter's preset budget, beside what an accountant would say of the realised schedule.

    Args:
        delta: in [0, 1); where the accountant is asked.

    Returns:
        a comparison that reports the preset epsilon; the other opinion is no bound.
    """
    promised, plug_in = book.guarantee(), book.plug_in(delta)
    other = Interval(plug_in.accountant, None, plug_in.figure, math.inf, plug_in.note)
    reason = (
        "the preset budget is promised; composing noise that was chosen while training proves "
        "nothing"
    )
    return Comparison(promised.epsilon, book.name, (promised.evidence, other), True, reason)


def _complaint(renyi: Interval, ours: Interval, library: Interval) -> str | None:
    if ours.upper > renyi.upper * (1 + _RELATIVE) + _ABSOLUTE:
        return (
            f"the loss distribution gives {ours.upper:.6g}, above the Rényi bound {renyi.upper:.6g}"
        )
    if library.lower is not None and library.lower > ours.upper * (1 + _RELATIVE) + _ABSOLUTE:
        return f"{LIBRARY} gives at least {library.lower:.6g}, above our bound {ours.upper:.6g}"
    if ours.lower is not None and library.upper < ours.lower * (1 - _RELATIVE) - _ABSOLUTE:
        return (
            f"{LIBRARY} gives at most {library.upper:.6g}, below what is certain, {ours.lower:.6g}"
        )
    return None


def _consent(ours: Interval, library: Interval) -> str:
    notes = [f"{LIBRARY} {library.note}"] if math.isinf(library.upper) else []
    if ours.note:
        notes.append(ours.note)
    return "; ".join(notes)
