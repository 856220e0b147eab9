"""What has been spent so far, valid at every moment, however noise and stopping are chosen on the
way.

Notation: step t is chosen from what was released before it, and costs at most rho_t(a) in Rényi
divergence of order a, in both directions. L_t is the privacy loss of everything released up to t,
log P/Q of the transcript.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from accounting.errors import InputError, require
from accounting.events import Event, require_adjacency, require_count, unsupported_reason
from accounting.events.base import is_real
from accounting.rdp.curve import renyi_divergence

# 1 + 1/4 .. 1 + 246: neighbours a factor of 1.5 apart in a - 1 cost at most 2 % where rho is linear
# in a.
ODOMETER_ORDERS: tuple[float, ...] = tuple(1.0 + 0.25 * 1.5**step for step in range(18))


class Odometer:
    """An epsilon that holds at every moment at once, with a failure probability of delta for all of
    them together.

    For every pair of neighbours and every way of choosing the events and the moment T of looking or
    stopping from what was released so far: Pr[L_T > epsilon at T] <= delta. So Pr[M(S) in O] <=
    E[1(M(S') in O) e^epsilon] + delta, which is (epsilon, delta)-DP wherever epsilon is a number
    that does not depend on the data. It costs more than an ordinary epsilon, since it says more.
    Nothing is ever refused: to keep within a budget, use a filter.

    epsilon_t = min over the orders a of [rho_1(a) + ... + rho_t(a) + log(K / delta) / (a - 1)], for
    K orders.

    Proof (derived here). Fix an order a. Under P, E[e^((a-1) loss of step t) | past] = E_Q[(P/Q)^a
    | past] <= e^((a-1) rho_t), so e^((a-1) (L_t - rho_1 - ... - rho_t)) is a non-negative
    supermartingale that starts at 1. By Ville's inequality it ever reaches K / delta with
    probability at most delta / K; otherwise, at all t at once, L_t < rho_1 + ... + rho_t + log(K /
    delta) / (a - 1). The union over the K orders costs delta. Whoever chooses the next event may
    toss coins: the argument is made for each outcome of them.

    The improved conversion of `epsilon_from_curve` is of no use here: it bounds (epsilon, delta)-DP
    at an epsilon fixed in advance, not the probability of a large loss. The doubling ladder of
    filters (Lécuyer 2021, arXiv 2103.01379) proves the same statement with 2^f gamma_a >= rho in
    place of the sum and delta / (2 K (f + 1)^2) in place of delta / K, so it is never below this.

    After a restart, charge again what the run's ledger holds.

    Args:
        delta: in (0, 1).
        adjacency: the neighbouring relation.
        orders: at least one, each in (1, inf), all different; fixed from here on.

    Raises:
        InputError: a value out of range.
    """

    def __init__(
        self, delta: float, adjacency: str, orders: Sequence[float] = ODOMETER_ORDERS
    ) -> None:
        require_adjacency(adjacency)
        require_open_delta(delta)
        self._orders = tuple(require_order(order) for order in orders)
        require(len(self._orders) > 0, "an odometer needs orders; give at least one above 1")
        require(
            len(set(self._orders)) == len(self._orders),
            "an order is given twice; give each of them once",
        )
        self._delta = float(delta)
        self._adjacency = adjacency
        self._costs = RunningCost(renyi_prices(self._orders, adjacency), len(self._orders))
        log_failure = math.log(len(self._orders)) - math.log(self._delta)
        self._tails = tuple(
            _up(_up(log_failure * (1 + 1e-15)) / (order - 1)) for order in self._orders
        )

    @property
    def delta(self) -> float:
        """The failure probability, for all moments together."""
        return self._delta

    @property
    def adjacency(self) -> str:
        """The neighbouring relation."""
        return self._adjacency

    @property
    def orders(self) -> tuple[float, ...]:
        """The orders fixed at the start."""
        return self._orders

    @property
    def releases(self) -> int:
        """Number of releases charged so far."""
        return self._costs.releases

    def charge(self, event: Event, count: int = 1) -> int:
        """Book releases of an event, before they run.

        An event without a finite divergence makes epsilon infinite from here on.

        Args:
            count: number of releases, >= 1.

        Returns:
            how many releases are booked by now.

        Raises:
            InputError: no event, or no such count.
        """
        require_event(event, count)
        self._costs.charge(event, int(count))
        return self._costs.releases

    def epsilon(self) -> float:
        """The loss so far exceeds this with probability at most delta at any moment; it never
        decreases.
        """
        if self._costs.releases == 0:
            return 0.0
        return min(
            _up(spent + tail) for spent, tail in zip(self._costs.spent, self._tails, strict=True)
        )


class RunningCost:
    """Costs of everything charged, on several scales at once (such as orders), each rounded up.

    They are a function of the schedule in which equal neighbours are merged, and of nothing else:
    the same releases cost the same to the last bit, charged one by one or together, before or after
    a restart.

    Args:
        prices: what one release of an event costs on each scale.
        scales: how many there are.
    """

    def __init__(self, prices: Callable[[Event], tuple[float, ...]], scales: int) -> None:
        self._prices = prices
        self._closed = (0.0,) * scales  # all entries of the schedule but the last
        self._schedule: list[tuple[Event, int]] = []
        self.releases = 0

    @property
    def schedule(self) -> tuple[tuple[Event, int], ...]:
        """Events with counts, in the order charged; equal neighbours are one."""
        return tuple(self._schedule)

    @property
    def spent(self) -> tuple[float, ...]:
        """Total on each scale, rounded up."""
        return self.after()

    def after(self, *more: tuple[Event, int]) -> tuple[float, ...]:
        """What would have been spent after further releases, too; changes nothing.

        Args:
            more: (event, count) pairs in the order charged.

        Returns:
            the total on each scale, rounded up.
        """
        closed = self._closed
        last = self._schedule[-1] if self._schedule else None
        for event, count in more:
            if last is not None and last[0] == event:
                last = (event, last[1] + count)
            else:
                closed, last = self._sum(closed, last), (event, count)
        return self._sum(closed, last)

    def charge(self, event: Event, count: int) -> None:
        """Book releases of an event; whatever its price raises is raised before anything is booked.

        Args:
            count: number of releases, >= 1.
        """
        self._prices(event)  # whatever this raises is raised before anything is booked
        if self._schedule and self._schedule[-1][0] == event:
            self._schedule[-1] = (event, self._schedule[-1][1] + count)
        else:
            self._closed = self._sum(self._closed, self._schedule[-1] if self._schedule else None)
            self._schedule.append((event, count))
        self.releases += count

    def _sum(self, closed: tuple[float, ...], last: tuple[Event, int] | None) -> tuple[float, ...]:
        if last is None:
            return closed
        return tuple(
            _up(a + b) for a, b in zip(closed, times(self._prices(last[0]), last[1]), strict=True)
        )


def times(prices: tuple[float, ...], count: int) -> tuple[float, ...]:
    """Each price times a count, rounded up (the count itself may be rounded, too)."""
    return tuple(_up(_up(count * price)) for price in prices)


def renyi_prices(orders: tuple[float, ...], adjacency: str) -> Callable[[Event], tuple[float, ...]]:
    """The price list of Rényi divergences.

    Args:
        orders: each in (1, inf).

    Returns:
        event -> rho at each order, inf where there is no bound.
    """
    return lambda event: tuple(_renyi_price(event, order, adjacency) for order in orders)


@lru_cache(maxsize=65536)
def _renyi_price(event: Event, order: float, adjacency: str) -> float:
    return renyi_divergence(event, order, adjacency)


def require_event(event: Event, count: int) -> None:
    """Refuse what cannot be charged.

    Raises:
        InputError: it is no event, or its count is no integer >= 1.
    """
    if not isinstance(event, Event):
        raise InputError(f"{type(event).__name__} is not an event; give one of accounting's events")
    require_count(count, least=1)


def require_accountable(event: Event, adjacency: str) -> None:
    """Refuse an event that no amount of budget pays for.

    Raises:
        InputError: it has no finite epsilon; the message says why.
    """
    reason = unsupported_reason(event, adjacency)
    require(reason is None, f"{reason}; no budget pays for it, so leave it out")


def require_order(order: float) -> float:
    """Refuse what is no Rényi order.

    Returns:
        the order as a float.

    Raises:
        InputError: it is no finite number above 1.
    """
    require(
        is_real(order) and 1.0 < order < math.inf,
        f"order {order!r} is not in (1, inf); give an order above 1",
    )
    return float(order)


def require_open_delta(delta: float) -> None:
    """Refuse a failure probability outside (0, 1).

    Raises:
        InputError: it is no number in (0, 1).
    """
    require(
        is_real(delta) and 0.0 < delta < 1.0,
        f"delta={delta!r} is not in (0, 1); give less than 1 / data set size",
    )


def _up(value: float) -> float:
    return math.nextafter(value, math.inf) if value > 0.0 else value
