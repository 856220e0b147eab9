"""Accountants: what has been charged so far, and what it amounts to.

An accountant keeps a list of (event, count) and answers epsilon at delta as an `Interval` whose upper end is
what may be reported. An event it cannot account for makes epsilon infinite, with the reason in the note.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from accounting.conversion import replace_one_delta, replace_one_epsilon
from accounting.discretise import Refused
from accounting.errors import InvalidInput, require, require_delta
from accounting.events import (
    Composed,
    Event,
    SelfComposed,
    flatten,
    obstacle,
    require_adjacency,
    require_count,
)
from accounting.interval import Interval
from accounting.pld import pld_delta, pld_epsilon
from accounting.prv import NAME as LIBRARY
from accounting.prv import prv_opinion
from accounting.renyi import delta_from_curve, renyi_curve, renyi_epsilon

Counted = Sequence[tuple[Event, int]]
_RELATIVE, _ABSOLUTE = 2e-4, 1e-6  # tolerance between two opinions


class Accountant(Protocol):
    """What a training run needs of an accountant."""

    name: str
    adjacency: str

    def supports(self, event: Event) -> str | None:
        """Why this event has no finite epsilon here, or None."""

    def charge(self, event: Event, count: int = 1) -> None:
        """Book `count` releases of an event, for ever."""

    def quote(self, event: Event, count: int, delta: float) -> Interval:
        """What epsilon(delta) would be after charging; changes nothing."""

    def epsilon(self, delta: float) -> Interval:
        """Epsilon at delta of everything charged so far."""

    def delta(self, epsilon: float) -> float:
        """Upper bound on delta at epsilon of everything charged so far."""

    @property
    def events(self) -> list[tuple[Event, int]]:
        """Everything charged so far: distinct primitive events with their counts."""

    @property
    def steps(self) -> int:
        """Number of primitive releases charged so far."""


class _Ledger(ABC):
    """The bookkeeping all accountants share."""

    name: str

    def __init__(self, adjacency: str = "add-remove") -> None:
        require_adjacency(adjacency)
        self.adjacency = adjacency
        self._counts: dict[Event, int] = {}

    def supports(self, event: Event) -> str | None:
        """Why this event has no finite epsilon here, or None."""
        return obstacle(event)

    def charge(self, event: Event, count: int = 1) -> None:
        """Book `count` releases of an event; raises InvalidInput on a malformed one, before booking it."""
        self._counts = dict(self._with(event, count))

    def quote(self, event: Event, count: int, delta: float) -> Interval:
        """What epsilon(delta) would be after charging `count` releases; changes nothing."""
        require_delta(delta)
        return self._epsilon(self._with(event, count), delta)

    def epsilon(self, delta: float) -> Interval:
        """Epsilon at delta in [0, 1) of everything charged so far."""
        require_delta(delta)
        return self._epsilon(self.events, delta)

    def delta(self, epsilon: float) -> float:
        """Upper bound on delta at epsilon >= 0 of everything charged so far."""
        require(epsilon >= 0.0, f"epsilon={epsilon!r} is not a number >= 0; give a non-negative epsilon")
        if _obstacles(self.events):
            return 1.0
        return self._delta(self.events, epsilon) if self._counts else 0.0

    @property
    def events(self) -> list[tuple[Event, int]]:
        """Distinct primitive events with their counts, in the order first charged."""
        return list(self._counts.items())

    @property
    def steps(self) -> int:
        """Number of primitive releases charged so far."""
        return sum(self._counts.values())

    def _with(self, event: Event, count: int) -> list[tuple[Event, int]]:
        require_count(count)
        require(
            isinstance(event, Event),
            f"{type(event).__name__} is not an event; give one of accounting's events",
        )
        counts = dict(self._counts)
        for primitive, times in flatten(SelfComposed(event, count)):
            counts[primitive] = counts.get(primitive, 0) + times
        return list(counts.items())

    def _epsilon(self, events: Counted, delta: float) -> Interval:
        reason = _obstacles(events)
        if reason:
            return Interval(self.name, None, None, math.inf, reason)
        if not events:
            return Interval(self.name, 0.0, 0.0, 0.0)
        return self._bound(events, delta)

    @abstractmethod
    def _bound(self, events: Counted, delta: float) -> Interval: ...

    @abstractmethod
    def _delta(self, events: Counted, epsilon: float) -> float: ...


class RenyiAccountant(_Ledger):
    """Rényi divergences on a grid of orders, added up and converted: fast, valid everywhere, 5-30 % loose."""

    name = "rdp"

    def _bound(self, events: Counted, delta: float) -> Interval:
        return Interval(self.name, None, None, renyi_epsilon(as_event(events), delta, self.adjacency)[0])

    def _delta(self, events: Counted, epsilon: float) -> float:
        return delta_from_curve(*renyi_curve(as_event(events), self.adjacency), epsilon)


class PRVAccountant(_Ledger):
    """Certified upper bound from privacy-loss distributions, never above the Rényi bound."""

    name = "prv"

    def _bound(self, events: Counted, delta: float) -> Interval:
        renyi = renyi_epsilon(as_event(events), delta, self.adjacency)[0]
        try:
            upper, note = distribution_epsilon(events, delta, self.adjacency), ""
        except Refused as refused:
            upper, note = renyi, f"Rényi bound, because the loss distribution was refused: {refused}"
        return Interval(self.name, None, None, min(upper, renyi), note)

    def _delta(self, events: Counted, epsilon: float) -> float:
        renyi = delta_from_curve(*renyi_curve(as_event(events), self.adjacency), epsilon)
        try:
            if self.adjacency == "replace-one":
                return min(renyi, replace_one_delta(lambda e: pld_delta(events, e), epsilon, events))
            return min(renyi, pld_delta(events, epsilon))
        except Refused:
            return renyi


def distribution_epsilon(events: Counted, delta: float, adjacency: str) -> float:
    """The loss distributions' epsilon under any adjacency; raises Refused where it cannot be computed."""
    if adjacency == "replace-one":
        return replace_one_epsilon(lambda d: pld_epsilon(events, d), delta, events)
    return pld_epsilon(events, delta)


def as_event(events: Counted) -> Event:
    """(event, count) pairs as one composed event."""
    return Composed(tuple(SelfComposed(event, count) for event, count in events))


def make_accountant(name: str, adjacency: str = "add-remove") -> Accountant:
    """A fresh accountant by name; raises InvalidInput naming the known ones."""
    if name not in ACCOUNTANTS:
        raise InvalidInput(f"accountant {name!r} is unknown; use one of {', '.join(sorted(ACCOUNTANTS))}")
    return ACCOUNTANTS[name](adjacency)


ACCOUNTANTS: dict[str, type[RenyiAccountant] | type[PRVAccountant]] = {
    "prv": PRVAccountant,
    "rdp": RenyiAccountant,
}


def profile(
    events: Counted, adjacency: str, deltas: Sequence[float], accountant: str = "prv"
) -> list[tuple[float, float]]:
    """(delta, epsilon) pairs of the same events at several deltas."""
    book = _booked(events, adjacency, accountant)
    return [(float(delta), book.epsilon(delta).upper) for delta in deltas]


def spend_curve(
    event: Event, counts: Sequence[int], delta: float, adjacency: str = "add-remove", accountant: str = "prv"
) -> list[tuple[int, float]]:
    """(count, epsilon at delta) after each count of the same event; never decreasing in the count.

    counts: integers >= 0 in increasing order.
    """
    require(list(counts) == sorted(counts), "counts must be in increasing order to draw a curve; sort them")
    ends = [make_accountant(accountant, adjacency).quote(event, count, delta).upper for count in counts]
    # Fewer releases never cost more: a later, smaller bound also holds before.
    lowered = np.minimum.accumulate(np.asarray(ends, dtype=float)[::-1])[::-1]
    return [(int(count), float(epsilon)) for count, epsilon in zip(counts, lowered, strict=True)]


def _booked(events: Counted, adjacency: str, accountant: str) -> Accountant:
    book = make_accountant(accountant, adjacency)
    for event, count in events:
        book.charge(event, count)
    return book


def _obstacles(events: Counted) -> str:
    reasons = [reason for event, count in events if count > 0 and (reason := obstacle(event)) is not None]
    return "; ".join(reasons)


@dataclass(frozen=True)
class Comparison:
    """The epsilon to report, by which accountant, and whether the opinions are consistent."""

    epsilon: float
    accountant: str
    opinions: tuple[Interval, ...]
    agree: bool
    reason: str


def compare(events: Counted, delta: float, adjacency: str = "add-remove", accountant: str = "prv") -> Comparison:
    """Ask the Rényi accountant, our loss distributions and prv-accountant, and report the defensible figure.

    They agree when the distributions' bound is not above the Rényi bound and prv-accountant's interval meets
    [0, our bound]. On disagreement the largest finite bound is reported and the reason says so.
    """
    book = _booked(events, adjacency, accountant)
    renyi, ours = (_booked(book.events, adjacency, name).epsilon(delta) for name in ("rdp", "prv"))
    library = prv_opinion(book.events, delta, adjacency)
    chosen = renyi if accountant == "rdp" else ours
    all_three = (renyi, ours, library)
    if math.isinf(chosen.upper):
        return Comparison(math.inf, chosen.accountant, all_three, True, chosen.note or "no finite bound exists")
    complaint = _complaint(renyi, ours, library)
    if complaint is None:
        return Comparison(chosen.upper, chosen.accountant, all_three, True, _consent(ours, library))
    largest = max((o for o in all_three if math.isfinite(o.upper)), key=lambda opinion: opinion.upper)
    reason = f"{complaint}; the largest of the bounds is reported"
    return Comparison(largest.upper, largest.accountant, all_three, False, reason)


def _complaint(renyi: Interval, ours: Interval, library: Interval) -> str | None:
    if ours.upper > renyi.upper * (1 + _RELATIVE) + _ABSOLUTE:
        return f"the loss distribution gives {ours.upper:.6g}, above the Rényi bound {renyi.upper:.6g}"
    if library.lower is not None and library.lower > ours.upper * (1 + _RELATIVE) + _ABSOLUTE:
        return f"{LIBRARY} gives at least {library.lower:.6g}, above our bound {ours.upper:.6g}"
    # Our bound is tight to about 0.02 %: an opinion far below it points at a defect in one of the two.
    tight = not ours.note and ours.upper < renyi.upper and not renyi.note
    if tight and library.upper < ours.upper * (1 - 10 * _RELATIVE) - 1e-3:
        return f"{LIBRARY} gives at most {library.upper:.6g}, below our bound {ours.upper:.6g}"
    return None


def _consent(ours: Interval, library: Interval) -> str:
    notes = [f"{LIBRARY} {library.note}"] if math.isinf(library.upper) else []
    if ours.note:
        notes.append(ours.note)
    return "; ".join(notes)
