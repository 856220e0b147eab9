"""Privacy filters: a preset budget that holds although noise, sampling or stopping follow what was
released.

Ordinary composition lets the releases adapt, not their privacy parameters. A filter lets the
parameters adapt, too: every release is charged before it runs and refused if it would overflow.
What may be promised is the budget fixed at the start, never the smaller figure of what happened to
be spent. Composing trade-off functions or loss distributions until the target is reached is no
filter (arXiv 2602.06756), so those accountants only compare here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np

from accounting.errors import BudgetExceededError, InputError, require
from accounting.events import Event, PoissonGaussian, require_adjacency, require_count
from accounting.events.base import is_real
from accounting.filters.base import (
    Filter,
    PlugInFigure,
    Reserve,
    budget_guarantee,
    plain,
    require_epsilon,
    reserve_from_json,
)
from accounting.filters.gdp import GdpFilter
from accounting.filters.odometer import renyi_prices, require_open_delta, require_order, times
from accounting.interval import EpsilonGuarantee
from accounting.rdp.curve import DEFAULT_ORDERS, renyi_curve

__all__ = ["BudgetExceededError", "Filter", "GdpFilter", "PlugInFigure", "RenyiFilter"]

_SAFETY_WEIGHT = 0.05
_SAFETY_NOISE = (0.9, 0.8)  # less noise than planned, which the safety orders are chosen for
_MOST_NOISE = 1e6


class RenyiFilter(Filter):
    """A filter for any event with a Rényi divergence, at a few orders with a share of delta each.

    The budget of an order is the largest divergence that gives (epsilon, w delta): B(a) = epsilon +
    (log(w delta) + log a) / (a-1) - log((a-1)/a) (Canonne, Kamath and Steinke 2020, Proposition 12;
    Balle et al. 2020, Theorem 21). An order is alive while what was spent at it is within its
    budget; a release is admitted if some alive order can pay for it. An order dies when a release
    that overflows it is charged under another one.

    One order (Feldman and Zrnic 2021, arXiv 2008.11193): let L be the privacy loss and R the sum of
    the divergences of what was charged, each chosen from the past. Under Q, e^(aL - (a-1)R) is a
    non-negative supermartingale that starts at 1, so E_Q[e^(aL)] <= e^((a-1)B) where R never
    exceeds B: the run is (a, B)-Rényi private.

    Several orders (derived here). Let M be the whole run and M_a the same run, halted just before a
    release that overflows order a: M_a is (epsilon, w delta)-DP by the above. Put every complete
    transcript into the cell of its first order alive at the end. What is spent never falls, so
    nothing in the cell of a ever overflowed a, and there M and M_a coincide. Summed over the cells,
    Pr[M(S) in O] <= e^epsilon Pr[M(S') in O] + delta.

    The order must fit the smallest noise that will be used, since just above the best order the
    divergence of a Poisson-sampled Gaussian explodes; `planned` chooses it.

    Args:
        epsilon: the budget, finite and > 0.
        delta: in (0, 1).
        adjacency: the neighbouring relation.
        orders: {order a: weight w}, a > 1, w in (0, 1], the weights adding up to at most 1.
        max_releases: how many releases there can be at most, >= 1.
        reserve: see `Filter`.

    Raises:
        InputError: a value out of range, an order without a budget, or a reserve that overflows it.
    """

    name: ClassVar[str] = "renyi-filter"

    def __init__(
        self,
        epsilon: float,
        delta: float,
        adjacency: str,
        orders: Mapping[float, float],
        max_releases: int,
        reserve: Reserve | None = None,
    ) -> None:
        require_epsilon(epsilon)
        require_open_delta(delta)
        require_adjacency(adjacency)
        self._epsilon, self._delta = float(epsilon), float(delta)
        self._weights = _checked_orders(orders)
        budgets = tuple(
            _budget(a, self._epsilon, _log_share(self._delta, w)) for a, w in self._weights
        )
        for (order, weight), budget in zip(self._weights, budgets, strict=True):
            require(
                budget > 0.0,
                f"order {order:g} with weight {weight:g} has no budget at epsilon={epsilon:g}, "
                f"delta={delta:g}; leave it out, or give a larger order",
            )
        prices = renyi_prices(self.orders, adjacency)
        super().__init__(adjacency, max_releases, reserve, budgets, prices)

    @classmethod
    def planned(
        cls,
        epsilon: float,
        delta: float,
        adjacency: str,
        sample_rate: float,
        noise_multiplier: float,
        releases: int,
        reserve: Reserve | None = None,
    ) -> RenyiFilter:
        """A filter for Poisson-sampled Gaussians, with its orders chosen from the plan, that is,
        from public numbers.

        The order that affords the most releases gets 0.9 of delta. The orders that do so with 0.05
        of delta at 0.9 and 0.8 times the noise get that share if they are lower; otherwise it goes
        to the first (so small a share often leaves lower orders no budget at all).

        Args:
            epsilon: the budget, finite and > 0.
            delta: in (0, 1).
            sample_rate: probability that a unit is in a sample, in (0, 1].
            noise_multiplier: noise standard deviation / L2 sensitivity, the smallest that will ever
                be picked.
            releases: the largest number of them, >= 1.
            reserve: see `Filter`.

        Raises:
            InputError: a value out of range, or not one release fits.
        """
        require_epsilon(epsilon)
        require_open_delta(delta)
        require_count(releases, "releases", 1, "give the largest number of releases")
        event = PoissonGaussian(sample_rate, noise_multiplier)
        require(
            sample_rate > 0.0,
            "sample_rate=0 never looks at the data; give the expected batch / data set size",
        )
        main_weight = 1 - _SAFETY_WEIGHT * len(_SAFETY_NOISE)
        best = _most_affordable(event, epsilon, _log_share(delta, main_weight), adjacency)
        if best is None:
            raise InputError(
                f"noise_multiplier={noise_multiplier!r} does not fit even once into "
                f"epsilon={epsilon!r} at delta={delta!r}; plan with more noise"
            )
        safety: list[float] = []
        for share in _SAFETY_NOISE:
            risky = PoissonGaussian(sample_rate, share * noise_multiplier)
            order = _most_affordable(risky, epsilon, _log_share(delta, _SAFETY_WEIGHT), adjacency)
            if order is not None and order < min([best, *safety]):
                safety.append(order)
        weights = {best: 1 - _SAFETY_WEIGHT * len(safety), **dict.fromkeys(safety, _SAFETY_WEIGHT)}
        return cls(epsilon, delta, adjacency, weights, releases, reserve)

    @property
    def epsilon(self) -> float:
        """The preset epsilon, finite and > 0."""
        return self._epsilon

    @property
    def delta(self) -> float:
        """The preset delta, in (0, 1)."""
        return self._delta

    @property
    def orders(self) -> tuple[float, ...]:
        """The preset orders, each in (1, inf)."""
        return tuple(order for order, _ in self._weights)

    @property
    def alive(self) -> tuple[float, ...]:
        """The orders whose budget was not overflowed."""
        found = zip(self.orders, self._costs.spent, self._budgets, strict=True)
        return tuple(order for order, spent, budget in found if spent <= budget)

    @property
    def contract(self) -> dict[str, Any]:
        """Everything that was fixed at the start, as JSON."""
        return {
            "epsilon": self._epsilon,
            "delta": self._delta,
            "adjacency": self._adjacency,
            "orders": [[order, weight] for order, weight in self._weights],
            "max_releases": self._max_releases,
            "reserve": self._reserve_json(),
        }

    @classmethod
    def _from_contract(cls, contract: dict[str, Any]) -> Self:
        orders = dict(contract["orders"])
        reserve = reserve_from_json(contract["reserve"])
        return cls(
            contract["epsilon"],
            contract["delta"],
            contract["adjacency"],
            orders,
            contract["max_releases"],
            reserve,
        )

    def quote(self, event: Event, count: int = 1) -> dict[float, float]:
        """What releases would add at each order; changes nothing.

        Args:
            count: number of releases, >= 1.

        Returns:
            {order: rho}, rounded up.

        Raises:
            InputError: the event has no finite epsilon, or no such count.
        """
        self._require_chargeable(event, count)
        return dict(zip(self.orders, times(self._prices(event), int(count)), strict=True))

    def smallest_noise(self, releases_left: int, sample_rate: float, floor: float) -> float:
        """The smallest noise multiplier at which so many equal Poisson-sampled Gaussians would be
        admitted.

        For pacing: the rest of the budget, spread evenly.

        Args:
            releases_left: >= 1.
            sample_rate: probability that a unit is in a sample, in [0, 1].
            floor: the smallest noise multiplier to consider, in (0, 1e6].

        Returns:
            a noise multiplier >= floor, at most 1e-6 (relative) above the exact answer.

        Raises:
            InputError: a value out of range.
            BudgetExceededError: no noise up to about 1e6 is enough.
        """
        require(
            is_real(floor) and 0.0 < floor <= _MOST_NOISE,
            f"floor={floor!r} is not in (0, 1e6]; give a noise",
        )

        def refusal(noise: float) -> str | None:
            return self._refusal(PoissonGaussian(sample_rate, noise), releases_left)

        low, high = float(floor), float(floor)
        while (found := refusal(high)) is not None:
            low, high = high, 1.5 * high
            if high > _MOST_NOISE:
                raise BudgetExceededError(found)
        while high > low * (1 + 1e-6):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if refusal(middle) is None else (middle, high)
        return high

    def guarantee(self) -> EpsilonGuarantee:
        """The preset (epsilon, delta), whatever was spent of it."""
        note = (
            "preset budget, enforced at the Rényi orders "
            f"{', '.join(f'{order:g}' for order in self.orders)}"
        )
        return budget_guarantee(self._epsilon, self._delta, self._adjacency, self.name, note)

    def diagnostics(self) -> dict[str, Any]:
        """Budgets and what was spent of them at each order, as JSON; for display, not for
        promises.
        """
        alive = self.alive
        rows = [
            {
                "order": order,
                "weight": weight,
                "budget": budget,
                "spent": plain(spent),
                "alive": order in alive,
            }
            for (order, weight), budget, spent in zip(
                self._weights, self._budgets, self._costs.spent, strict=True
            )
        ]
        counts = {"releases": self.releases, "max_releases": self._max_releases}
        return {"orders": rows, **counts, "remaining": self.remaining()}


def _checked_orders(orders: Mapping[float, float]) -> tuple[tuple[float, float], ...]:
    require(
        isinstance(orders, Mapping) and len(orders) > 0,
        f"orders={orders!r} is not a mapping of orders to weights; give at least one, such as "
        f"{{4.0: 1.0}}",
    )
    for order, weight in orders.items():
        require_order(order)
        require(
            is_real(weight) and 0.0 < weight <= 1.0,
            f"weight {weight!r} of order {order!r} is not in (0, 1]; give its share of delta",
        )
    total = math.fsum(float(weight) for weight in orders.values())
    require(
        total <= 1.0,
        f"the weights add up to {total!r}, more than the whole delta; make them add up to 1",
    )
    return tuple((float(order), float(weight)) for order, weight in orders.items())


def _log_share(delta: float, weight: float) -> float:
    return math.log(delta) + math.log(weight)


def _budget(order: float, epsilon: float, log_delta: float) -> float:
    """The largest divergence at this order that gives (epsilon, delta), rounded down; see
    `RenyiFilter`.
    """
    logs = (
        log_delta / (order - 1),
        math.log(order) / (order - 1),
        math.log(order),
        -math.log(order - 1),
    )
    terms = (epsilon, *logs)
    allowance = 1e-14 * math.fsum(abs(term) for term in terms)
    return math.nextafter(math.fsum(terms) - allowance, -math.inf)


def _most_affordable(
    event: Event, epsilon: float, log_delta: float, adjacency: str
) -> float | None:
    """The order whose budget pays for the most releases of the event; None if not for one."""
    budgets = {order: _budget(order, epsilon, log_delta) for order in DEFAULT_ORDERS}
    usable = [order for order, budget in budgets.items() if budget > 0.0]
    if not usable:
        return None
    orders, rho = renyi_curve(event, adjacency, usable)
    with np.errstate(divide="ignore"):
        affordable = np.asarray([budgets[order] for order in usable]) / rho
    best = int(np.argmax(affordable))
    return float(orders[best]) if affordable[best] >= 1.0 else None
