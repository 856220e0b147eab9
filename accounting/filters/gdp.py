"""A privacy filter for unsampled Gaussians, where adaptivity is free."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

from accounting.errors import InputError, require
from accounting.events import Event, flatten, require_adjacency
from accounting.events.base import is_real
from accounting.filters.base import (
    Filter,
    Reserve,
    budget_guarantee,
    plain,
    require_epsilon,
    reserve_from_json,
)
from accounting.filters.odometer import require_open_delta, times
from accounting.interval import EpsilonGuarantee
from accounting.mechanisms.gaussian import gaussian_delta, gaussian_epsilon


class GdpFilter(Filter):
    """A filter for unsampled Gaussians: the sum of mu_t^2 stays within mu^2. Nothing is lost to
    adaptivity.

    Smith and Thakurta 2022 (arXiv 2210.17520); Koskela et al. 2022 (arXiv 2209.15596). For Gaussian
    noise (derived here): in units of the noise, step t shifts standard normal noise z_t by v_t,
    chosen from the past, |v_t| <= mu_t. Add a last release whose shift makes sum |v_t|^2 = mu^2
    exactly; that only reveals more. Given the past, v_t.z_t is N(0, |v_t|^2), so e^(i k sum v_t.z_t
    + k^2/2 sum |v_t|^2) has mean 1, and sum v_t.z_t is exactly N(0, mu^2). Hence the loss, sum
    (v_t.z_t - |v_t|^2 / 2) under Q, is distributed as that of N(mu, 1) against N(0, 1).

    Poisson-sampled Gaussians are no such release and are refused. Give either mu, or epsilon and
    delta, from which the largest mu is found. Sums are rounded up: releases that add up to exactly
    mu^2 may lose the last one.

    Args:
        adjacency: the neighbouring relation.
        max_releases: how many releases there can be at most, >= 1.
        mu: the budget, finite and > 0.
        epsilon: the budget in place of mu: finite and > 0, and in (0, 1).
        delta: the budget in place of mu: finite and > 0, and in (0, 1).
        reserve: see `Filter`.

    Raises:
        InputError: a value out of range, not exactly one budget, or a reserve that overflows it.
    """

    name: ClassVar[str] = "gdp-filter"

    def __init__(
        self,
        adjacency: str,
        max_releases: int,
        *,
        mu: float | None = None,
        epsilon: float | None = None,
        delta: float | None = None,
        reserve: Reserve | None = None,
    ) -> None:
        require_adjacency(adjacency)
        self._mu, self._pair = _checked_budget(mu, epsilon, delta)

        def prices(event: Event) -> tuple[float, ...]:
            return (_mu_squared(event, adjacency),)

        budget = math.nextafter(self._mu * self._mu, 0.0)
        super().__init__(adjacency, max_releases, reserve, (budget,), prices)

    @property
    def mu(self) -> float:
        """The preset budget, finite and > 0."""
        return self._mu

    @property
    def contract(self) -> dict[str, Any]:
        """Everything that was fixed at the start, as JSON."""
        epsilon, delta = self._pair or (None, None)
        return {
            "mu": None if self._pair else self._mu,
            "epsilon": epsilon,
            "delta": delta,
            "adjacency": self._adjacency,
            "max_releases": self._max_releases,
            "reserve": self._reserve_json(),
        }

    @classmethod
    def _from_contract(cls, contract: dict[str, Any]) -> Self:
        budget = {name: contract[name] for name in ("mu", "epsilon", "delta")}
        reserve = reserve_from_json(contract["reserve"])
        return cls(contract["adjacency"], contract["max_releases"], reserve=reserve, **budget)

    def quote(self, event: Event, count: int = 1) -> float:
        """What releases would add to the sum of mu_t^2, rounded up; changes nothing.

        Args:
            count: number of releases, >= 1.

        Raises:
            InputError: the event is no unsampled Gaussian, or no such count.
        """
        self._require_chargeable(event, count)
        return times(self._prices(event), int(count))[0]

    def guarantee(self, delta: float | None = None) -> EpsilonGuarantee:
        """The preset budget: mu-GDP, as epsilon at any delta.

        Args:
            delta: in (0, 1); left out, the preset one.

        Raises:
            InputError: it is out of range, or left out where the filter was given mu.
        """
        if self._pair is not None and delta in (None, self._pair[1]):
            epsilon, delta = self._pair
        elif delta is None:
            raise InputError(
                "this filter was given mu, so that there is an epsilon for every delta; name a "
                "delta"
            )
        else:
            require_open_delta(delta)
            epsilon, delta = gaussian_epsilon(delta, self._mu), float(delta)
        note = f"preset budget, enforced as a sum of squares within {self._mu:.6g}^2"
        return budget_guarantee(epsilon, delta, self._adjacency, self.name, note)

    def diagnostics(self) -> dict[str, Any]:
        """The budget and what was spent of it, as JSON; for display, not for promises."""
        (spent,), (budget,) = self._costs.spent, self._budgets
        counts = {"releases": self.releases, "max_releases": self._max_releases}
        return {
            "mu_squared": {"budget": budget, "spent": plain(spent)},
            **counts,
            "remaining": self.remaining(),
        }

    def _require_chargeable(self, event: Event, count: int) -> None:
        super()._require_chargeable(event, count)
        for part, _ in flatten(event):
            require(
                part.gaussian_mu(self._adjacency) is not None,
                f"{part!r} is not an unsampled Gaussian under {self._adjacency}, and no GDP "
                "filter covers it; use a RenyiFilter",
            )


def _checked_budget(
    mu: float | None, epsilon: float | None, delta: float | None
) -> tuple[float, tuple[float, float] | None]:
    """(mu, the preset (epsilon, delta) or None)."""
    if mu is not None and epsilon is None and delta is None:
        require(
            is_real(mu) and 0.0 < mu < math.inf,
            f"mu={mu!r} is no budget; give a finite number above 0",
        )
        return float(mu), None
    if mu is not None or epsilon is None or delta is None:
        raise InputError(
            f"mu={mu!r}, epsilon={epsilon!r}, delta={delta!r} is no GDP budget; give mu alone, or "
            "epsilon and delta"
        )
    require_epsilon(epsilon)
    require_open_delta(delta)
    return _largest_mu(float(epsilon), float(delta)), (float(epsilon), float(delta))


def _mu_squared(event: Event, adjacency: str) -> float:
    """Sum of the mu^2 of everything the event consists of, rounded up; inf for anything but
    unsampled Gaussians.
    """
    squares = []
    for part, count in flatten(event):
        mu = part.gaussian_mu(adjacency)
        squares.append(math.inf if mu is None else count * mu * mu)
    return math.fsum(squares) * (1 + 1e-15)


def _largest_mu(epsilon: float, delta: float) -> float:
    """The largest mu whose delta at epsilon is within delta, from below, by bisection."""
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high) <= delta:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(epsilon, middle) <= delta else (low, middle)
    require(
        low > 0.0, f"epsilon={epsilon!r} at delta={delta!r} leaves room for nothing; allow more"
    )
    return low
