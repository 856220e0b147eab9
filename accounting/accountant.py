"""Accountants: what has been charged so far, and what it amounts to.

An accountant keeps a list of (event, count) and answers epsilon at delta as an `Interval` whose
upper end is what may be reported. An event it cannot account for makes epsilon infinite, with the
reason in the note. Composition assumes that the events' parameters were fixed in advance; where
they are chosen from what was released before, use a filter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from accounting.errors import CannotComputeError, InputError, require, require_delta
from accounting.events import (
    Composed,
    Event,
    SelfComposed,
    flatten,
    require_adjacency,
    require_count,
    unsupported_reason,
)
from accounting.interval import EpsilonGuarantee, Interval
from accounting.pld.bounds import attained_lower, cheap_lower, pld_delta, pld_epsilon
from accounting.rdp.curve import COARSE_ORDERS, renyi_delta, renyi_epsilon
from accounting.rdp.running import RunningCurve

Counted = Sequence[tuple[Event, int]]
# the default orders hardly ever lower a bound of the coarse ones by more than this factor
_FINER = 0.9
PROFILE_DELTAS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 1e-10)


class Accountant(Protocol):
    """What a training run needs of an accountant.

    Attributes:
        name: the method, such as "prv".
        adjacency: the neighbouring relation that every figure holds for.
    """

    name: str
    adjacency: str

    def supports(self, event: Event) -> str | None:
        """Why this event has no finite epsilon here, or None."""

    def charge(self, event: Event, count: int = 1) -> None:
        """Book `count` releases of an event, for ever.

        Args:
            count: an integer >= 0.

        Raises:
            InputError: no event, or no such count; nothing is booked.
        """

    def quote(self, event: Event, count: int, delta: float) -> Interval:
        """What epsilon(delta) would be after charging; changes nothing.

        Args:
            count: releases, an integer >= 0.
            delta: in [0, 1).

        Raises:
            InputError: no event, or a count or delta out of range.
        """

    def epsilon(self, delta: float) -> Interval:
        """Epsilon at delta of everything charged so far.

        Args:
            delta: in [0, 1).

        Returns:
            an interval; its upper end may be reported and is inf where there is no bound.
        """

    def running_epsilon(self, delta: float) -> float:
        """A quick upper bound on epsilon at delta, for display during training.

        Args:
            delta: in [0, 1).
        """

    def delta(self, epsilon: float) -> float:
        """Upper bound on delta at epsilon of everything charged so far.

        Args:
            epsilon: >= 0.

        Returns:
            a probability in [0, 1].
        """

    def profile(self, deltas: Sequence[float] = PROFILE_DELTAS) -> list[tuple[float, float]]:
        """Epsilon at several deltas, of everything charged so far.

        Args:
            deltas: each in [0, 1).

        Returns:
            (delta, epsilon) pairs in the order asked; epsilon >= 0 is an upper bound, inf if there
            is none.
        """

    def guarantee(self, delta: float) -> EpsilonGuarantee:
        """What may be promised of everything charged so far.

        Args:
            delta: in [0, 1).
        """

    @property
    def events(self) -> list[tuple[Event, int]]:
        """Everything charged so far: distinct primitive events with their counts."""

    @property
    def steps(self) -> int:
        """Number of primitive releases charged so far."""


class _Ledger(ABC):
    """The bookkeeping all accountants share."""

    name: str

    def __init__(self, adjacency: str) -> None:
        require_adjacency(adjacency)
        self.adjacency = adjacency
        self._counts: dict[Event, int] = {}
        self._running = RunningCurve(adjacency)

    def supports(self, event: Event) -> str | None:
        """Why this event has no finite epsilon here, or None."""
        return unsupported_reason(event, self.adjacency)

    def charge(self, event: Event, count: int = 1) -> None:
        """Book `count` releases of an event.

        Raises:
            InputError: it is malformed; nothing is booked.
        """
        for primitive, times in self._checked(event, count):
            self._counts[primitive] = self._counts.get(primitive, 0) + times
            self._running.charge(primitive, times)

    def quote(self, event: Event, count: int, delta: float) -> Interval:
        """What epsilon(delta) would be after charging `count` releases; changes nothing."""
        require_delta(delta)
        counts = dict(self._counts)
        for primitive, times in self._checked(event, count):
            counts[primitive] = counts.get(primitive, 0) + times
        return self._epsilon(list(counts.items()), delta)

    def epsilon(self, delta: float) -> Interval:
        """Epsilon at delta in [0, 1) of everything charged so far."""
        require_delta(delta)
        return self._epsilon(self.events, delta)

    def running_epsilon(self, delta: float) -> float:
        """The Rényi bound on a sparse grid of orders, kept up to date: well below a millisecond."""
        require_delta(delta)
        return self._running.epsilon(delta)

    def delta(self, epsilon: float) -> float:
        """Upper bound on delta at epsilon >= 0 of everything charged so far."""
        require(
            epsilon >= 0.0, f"epsilon={epsilon!r} is not a number >= 0; give a non-negative epsilon"
        )
        if unsupported_reasons(self.events, self.adjacency):
            return 1.0
        return self._delta(self.events, epsilon) if self._counts else 0.0

    def profile(self, deltas: Sequence[float] = PROFILE_DELTAS) -> list[tuple[float, float]]:
        """(delta, epsilon) pairs of everything charged so far."""
        return [(float(delta), self.epsilon(delta).upper) for delta in deltas]

    def guarantee(self, delta: float) -> EpsilonGuarantee:
        """A worst-case bound, since all parameters were fixed in advance."""
        found = self.epsilon(delta)
        return EpsilonGuarantee(found.upper, delta, "worst-case", self.adjacency, self.name, found)

    @property
    def events(self) -> list[tuple[Event, int]]:
        """Distinct primitive events with their counts, in the order first charged."""
        return list(self._counts.items())

    @property
    def steps(self) -> int:
        """Number of primitive releases charged so far."""
        return sum(self._counts.values())

    def _checked(self, event: Event, count: int) -> list[tuple[Event, int]]:
        require_count(count)
        require(
            isinstance(event, Event),
            f"{type(event).__name__} is not an event; give one of accounting's events",
        )
        return flatten(SelfComposed(event, count))

    def _epsilon(self, events: Counted, delta: float) -> Interval:
        reason = unsupported_reasons(events, self.adjacency)
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
    """Rényi divergences on a grid of orders, added up and converted: fast, valid everywhere, 5-30 %
    loose.
    """

    name = "rdp"

    def _bound(self, events: Counted, delta: float) -> Interval:
        return Interval(
            self.name, None, None, renyi_epsilon(as_event(events), delta, self.adjacency)[0]
        )

    def _delta(self, events: Counted, epsilon: float) -> float:
        return renyi_delta(as_event(events), epsilon, self.adjacency)


class PRVAccountant(_Ledger):
    """Certified interval from privacy-loss distributions, never above the Rényi bound."""

    name = "prv"

    def _bound(self, events: Counted, delta: float) -> Interval:
        verified = (
            events[0][0].verified_epsilon(events[0][1], delta, self.adjacency)
            if len(events) == 1
            else None
        )
        if verified is not None:
            renyi = self._renyi(events, delta)
            ends = [
                None if end is None else min(end, renyi)
                for end in (verified.lower, verified.estimate)
            ]
            return Interval(self.name, ends[0], ends[1], min(verified.upper, renyi), verified.note)
        try:
            lower, upper = pld_epsilon(events, delta, self.adjacency)
        except CannotComputeError as refused:
            renyi = self._renyi(events, delta)
            lower = min(renyi, cheap_lower(events, delta, self.adjacency))
            note = f"Rényi bound, because the loss distribution was refused: {refused}"
            return Interval(self.name, lower, renyi, renyi, note)
        if (
            upper
            > _FINER * renyi_epsilon(as_event(events), delta, self.adjacency, COARSE_ORDERS)[0]
        ):
            upper = min(upper, self._renyi(events, delta))
        lower = min(upper, attained_lower(events, lower, delta, self.adjacency))
        # The optimistic grid is off by about twice as much as the pessimistic one, the other way.
        estimate = upper - (upper - lower) / 3 if upper < math.inf else upper
        return Interval(self.name, lower, estimate, upper)

    def _renyi(self, events: Counted, delta: float) -> float:
        return renyi_epsilon(as_event(events), delta, self.adjacency)[0]

    def _delta(self, events: Counted, epsilon: float) -> float:
        renyi = renyi_delta(as_event(events), epsilon, self.adjacency)
        try:
            return min(renyi, pld_delta(events, epsilon, self.adjacency).upper)
        except CannotComputeError:
            return renyi


def as_event(events: Counted) -> Event:
    """(event, count) pairs as one composed event."""
    return Composed(tuple(SelfComposed(event, count) for event, count in events))


def make_accountant(name: str, adjacency: str) -> Accountant:
    """A fresh accountant by name.

    Args:
        name: "prv" or "rdp".
        adjacency: "add-remove", "zero-out" or "replace-one".

    Raises:
        InputError: an unknown name or adjacency; the message lists the known ones.
    """
    if name not in ACCOUNTANTS:
        raise InputError(
            f"accountant {name!r} is unknown; use one of {', '.join(sorted(ACCOUNTANTS))}"
        )
    return ACCOUNTANTS[name](adjacency)


ACCOUNTANTS: dict[str, type[RenyiAccountant] | type[PRVAccountant]] = {
    "prv": PRVAccountant,
    "rdp": RenyiAccountant,
}


def profile(
    events: Counted, adjacency: str, deltas: Sequence[float], accountant: str
) -> list[tuple[float, float]]:
    """Epsilon of the same events at several deltas.

    Args:
        events: (event, count) pairs.
        deltas: each in [0, 1).
        accountant: "prv" or "rdp".

    Returns:
        (delta, epsilon) pairs in the order asked; epsilon >= 0 is an upper bound, inf if there is
        none.
    """
    return booked(events, adjacency, accountant).profile(deltas)


def spend_curve(
    event: Event, counts: Sequence[int], delta: float, adjacency: str, accountant: str
) -> list[tuple[int, float]]:
    """How epsilon at delta grows with the number of releases of one event.

    Args:
        counts: integers >= 0 in increasing order; one may be repeated.
        delta: in [0, 1).
        accountant: "prv" or "rdp".

    Returns:
        (count, epsilon) for each count; epsilon never decreases.

    Raises:
        InputError: the counts are not in order, or a value is out of range.
    """
    require(
        list(counts) == sorted(counts),
        "counts must be in increasing order to draw a curve; sort them",
    )
    ends = [
        make_accountant(accountant, adjacency).quote(event, count, delta).upper for count in counts
    ]
    # Fewer releases never cost more: a later, smaller bound also holds before.
    lowered = np.minimum.accumulate(np.asarray(ends, dtype=float)[::-1])[::-1]
    return [(int(count), float(epsilon)) for count, epsilon in zip(counts, lowered, strict=True)]


def booked(events: Counted, adjacency: str, accountant: str) -> Accountant:
    """An accountant with these events charged.

    Args:
        events: (event, count) pairs.
        accountant: "prv" or "rdp".

    Raises:
        InputError: an unknown accountant or adjacency, or a malformed event.
    """
    book = make_accountant(accountant, adjacency)
    for event, count in events:
        book.charge(event, count)
    return book


def unsupported_reasons(events: Counted, adjacency: str) -> str:
    """Why there is no finite epsilon.

    Returns:
        the reasons of all events with a count above 0, separated by "; "; empty if there are none.
    """
    reasons = [
        reason
        for event, count in events
        if count > 0 and (reason := unsupported_reason(event, adjacency)) is not None
    ]
    return "; ".join(reasons)
