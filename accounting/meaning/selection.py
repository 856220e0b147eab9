"""The price of publishing only the best of several training runs.

Papernot and Steinke 2022 (arXiv 2110.03620): the number of runs is drawn at random and kept secret,
every run draws its hyper-parameters afresh from a list fixed in advance, and nothing but the best
run comes out. What is required, and what this module cannot check:

- the score that picks the winner is computed from the run's private output and public (or held-out,
  not protected) data, or is itself released privately and accounted for within the run;
- every candidate satisfies the curve of one run (take the largest of the candidates' curves at
  every order);
- the number of runs is drawn from the very distribution given here, once, and is not revealed.

Trying a number of settings that is fixed in advance and publishing the best costs as much as
publishing all of
them: `FixedRuns`. Everything holds under the adjacency of the curve that is put in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.errors import InputError, require
from accounting.rdp.curve import delta_from_curve, epsilon_from_curve

Array = NDArray[np.floating[Any]]
_ROUNDING = 1 + 1e-12


@dataclass(frozen=True)
class TruncatedNegativeBinomial:
    """At least one run; shape 1: stop after each run with a fixed probability (geometric), 0:
    logarithmic.

    Attributes:
        shape: eta, finite and >= 0.
        stop_probability: gamma in (0, 1]; smaller means more runs, 1 a single run.
    """

    shape: float
    stop_probability: float

    def __post_init__(self) -> None:
        require(
            0.0 <= self.shape < math.inf,
            f"shape={self.shape!r} is not a finite number >= 0; 1 is geometric",
        )
        require(
            0.0 < self.stop_probability <= 1.0,
            f"stop_probability={self.stop_probability!r} is not in (0, 1]; use with_mean() to get "
            "it from a mean",
        )

    @classmethod
    def with_mean(cls, shape: float, runs: float) -> TruncatedNegativeBinomial:
        """The distribution of this shape with a given mean, met within 1e-12.

        Args:
            shape: eta, finite and >= 0.
            runs: the mean, in [1, 1e12).

        Raises:
            InputError: a value out of range.
        """
        require(
            1.0 <= runs < 1e12,
            f"runs={runs!r} is not a mean in [1, 1e12); give the expected number of runs",
        )
        low, high = 1e-300, 1.0  # the mean falls from infinity to 1
        while high > low * (1 + 1e-14):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if cls(shape, middle).expected_runs > runs else (low, middle)
        return cls(shape, high)

    @property
    def expected_runs(self) -> float:
        """eta (1 - gamma) / (gamma (1 - gamma^eta)), in the limits (1/gamma - 1) / log(1/gamma) and
        1.
        """
        gamma, log = self.stop_probability, -math.log(self.stop_probability)
        if log == 0.0:
            return 1.0
        started = self.shape / -math.expm1(-self.shape * log) if self.shape > 0.0 else 1 / log
        return -math.expm1(-log) / gamma * started

    def curve(self, orders: Array, rho: Array) -> Array:
        """Theorem 2: rho + (1 + eta) min over b >= 1 of ((1 - 1/b) rho(b) + log(1/gamma) / b) + log
        E[K] / (a - 1).

        Args:
            orders: a, [orders], each > 1.
            rho: of one run, [orders], >= 0, inf where there is no bound.

        Returns:
            rho of the best run, [orders].
        """
        log = -math.log(self.stop_probability)
        # At b = 1 the first part vanishes, since rho(1) is finite wherever any rho is.
        others = np.min((1 - 1 / orders) * rho + log / orders)
        lost = (1 + self.shape) * min(float(others), log if np.isfinite(rho).any() else math.inf)
        return rho + lost + math.log(self.expected_runs) / (orders - 1)


@dataclass(frozen=True)
class PoissonRuns:
    """A Poisson number of runs; with probability e^-mean there is none, and nothing comes out.

    Attributes:
        mean: finite and at least 1.
        delta_at: an upper bound on one run's delta at an epsilon, asked once for every order; None
            takes it from the curve.
    """

    mean: float
    delta_at: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        require(
            1.0 <= self.mean < math.inf,
            f"mean={self.mean!r} is not a finite number >= 1; give the expected runs",
        )

    @property
    def expected_runs(self) -> float:
        """The mean number of runs."""
        return self.mean

    def curve(self, orders: Array, rho: Array) -> Array:
        """Theorem 6: rho + mean * delta(log(1 + 1 / (a - 1))) + log(mean) / (a - 1).

        Args:
            orders: a, [orders], each > 1.
            rho: of one run, [orders], >= 0, inf where there is no bound.

        Returns:
            rho of the best run, [orders].
        """
        delta_at = self.delta_at or (lambda epsilon: delta_from_curve(orders, rho, epsilon))
        # The bound on epsilon is from above: round it down.
        deltas = np.asarray(
            [delta_at(math.log1p(1 / (order - 1)) * (1 - 1e-15)) for order in orders.tolist()]
        )
        return rho + self.mean * deltas + math.log(self.mean) / (orders - 1)


@dataclass(frozen=True)
class FixedRuns:
    """A number of runs that is fixed in advance: all of them are paid for, as if every one were
    published.

    Attributes:
        count: number of runs, >= 1.
    """

    count: int

    def __post_init__(self) -> None:
        valid = isinstance(self.count, int) and not isinstance(self.count, bool) and self.count >= 1
        require(valid, f"count={self.count!r} is not an integer >= 1; give the number of runs")

    @property
    def expected_runs(self) -> float:
        """The number of runs, which is certain."""
        return float(self.count)

    def curve(self, orders: Array, rho: Array) -> Array:
        """Composition: count * rho.

        Args:
            rho: of one run, [orders], >= 0, inf where there is no bound.

        Returns:
            rho of all runs together, [orders].
        """
        return self.count * rho


Runs = TruncatedNegativeBinomial | PoissonRuns | FixedRuns


def selection_curve(orders: Array, rho: Array, runs: Runs) -> tuple[Array, Array]:
    """Rényi curve of the best run out of `runs`, from that of a single run (see
    `rdp.curve.renyi_curve`).

    Args:
        orders: [orders], each in (1, inf).
        rho: [orders], >= 0, inf where there is no bound.

    Returns:
        (orders in increasing order, rho), each [orders]; rho is rounded up.

    Raises:
        InputError: not one rho >= 0 for every order above 1.
    """
    orders, rho = np.asarray(orders, dtype=float), np.asarray(rho, dtype=float)
    if (
        orders.ndim != 1
        or orders.shape != rho.shape
        or orders.size == 0
        or not (orders > 1.0).all()
    ):
        raise InputError(
            "a Rényi curve needs orders above 1 and one rho for each; take it from renyi_curve()"
        )
    if not (rho >= 0.0).all():
        raise InputError(
            "a Rényi curve has a negative or undefined rho; take it from renyi_curve()"
        )
    ascending = np.argsort(orders)
    orders, rho = orders[ascending], rho[ascending]
    selected = runs.curve(orders, rho) * _ROUNDING
    # Rényi divergences never fall with the order, so the bound of a larger order holds at a smaller
    # one.
    return orders, np.minimum.accumulate(selected[::-1])[::-1]


def selection_epsilon(orders: Array, rho: Array, runs: Runs, delta: float) -> tuple[float, float]:
    """Epsilon at delta of publishing the best run, from the Rényi curve of a single run.

    Args:
        orders: [orders], each in (1, inf).
        rho: [orders], >= 0, inf where there is no bound.
        delta: in [0, 1).

    Returns:
        (epsilon, best order); epsilon is inf where there is no bound.

    Raises:
        InputError: a delta out of range, or not one rho >= 0 for every order above 1.
    """
    return epsilon_from_curve(*selection_curve(orders, rho, runs), delta)
