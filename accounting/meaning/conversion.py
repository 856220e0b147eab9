"""From one statement of privacy to another: other adjacencies, groups of units, Gaussian and
concentrated DP.

A profile is given by points (epsilon, delta), each of them a valid guarantee, or as a function. A
mechanism with such points is f-DP for f(x) = max over the points of 1 - delta - e^epsilon x,
mirrored at the diagonal (Dong, Roth and Su 2019, arXiv 1905.02383, Section 2). A test that accuses
a share x under one neighbour accuses at most 1 - f(x) under the next, so along a chain of k
neighbours the largest true positive rate is 1 - f applied k times (their Theorem 2.14): nothing
better follows from the points. Replacing a unit is a chain of two, out and in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.errors import require, require_delta
from accounting.events import (
    ApproximateDP,
    Composed,
    Event,
    FixedBatchesGaussian,
    Gaussian,
    Laplace,
    MixtureGaussian,
    NonPrivate,
    PoissonGaussian,
    PureDP,
    SelfComposed,
    Unsupported,
)
from accounting.mechanisms.gaussian import gaussian_delta
from accounting.odds import Point, checked_points
from accounting.rdp.curve import epsilon_from_curve

Array = NDArray[np.floating[Any]]

_LARGEST = 700.0  # e^epsilon is a double up to here
_SLACK = 1 + 1e-12  # covers the rounding of a curve's corners


def mu_from_epsilon_delta(epsilon: float, delta: float, upper: bool = True) -> float:
    """mu of the Gaussian mechanism whose delta at epsilon is exactly this.

    Only for a Gaussian mechanism: any other one may be (epsilon, delta)-DP without being mu-GDP for
    this mu.

    Args:
        epsilon: finite and >= 0.
        delta: in (0, 1).
        upper: round up, else down.
    """
    require(
        0.0 <= epsilon < math.inf,
        f"epsilon={epsilon!r} is not a finite number >= 0; give a guarantee's epsilon",
    )
    require(0.0 < delta < 1.0, f"delta={delta!r} is not in (0, 1); give a guarantee's delta")
    low, high = 0.0, 1.0
    while gaussian_delta(epsilon, high, upper=not upper) < delta:
        low, high = high, 2 * high
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        # Rounding delta down makes mu larger, and the other way round.
        low, high = (
            (low, middle)
            if gaussian_delta(epsilon, middle, upper=not upper) >= delta
            else (middle, high)
        )
    return high if upper else low


def zcdp_from_mu(mu: float) -> float:
    """rho of the zero-concentrated DP of any mu-GDP mechanism, mu^2 / 2, rounded up (Bun and
    Steinke 2016, arXiv 1605.02065).

    Raises:
        InputError: mu is no number >= 0.
    """
    require(mu >= 0.0, f"mu={mu!r} is not a number >= 0; give the mu of a mu-GDP mechanism")
    return mu * mu / 2 * (1 + 4e-16)


def mu_from_zcdp(rho: float) -> float:
    """mu of the Gaussian mechanism that is rho-zCDP: sqrt(2 rho), rounded up.

    Only for a Gaussian mechanism: zero-concentrated DP in general implies no mu-GDP.

    Raises:
        InputError: rho is no number >= 0.
    """
    require(rho >= 0.0, f"rho={rho!r} is not a number >= 0; give the rho of a rho-zCDP mechanism")
    return math.sqrt(2 * rho) * (1 + 4e-16)


def epsilon_from_zcdp(rho: float, delta: float) -> float:
    """Epsilon at delta of any rho-zCDP mechanism, through its Rényi divergences order * rho,
    rounded up.

    Args:
        rho: finite and >= 0.
        delta: in [0, 1); at 0 epsilon is inf unless rho is 0.

    Raises:
        InputError: a value out of range.
    """
    require(
        0.0 <= rho < math.inf,
        f"rho={rho!r} is not a finite number >= 0; give the rho of a rho-zCDP mechanism",
    )
    orders = 1.0 + np.logspace(-8, 8, 4001)
    return epsilon_from_curve(orders, orders * rho * (1 + 1e-15), delta)[0]


def trade_off_corners(points: Iterable[Point]) -> tuple[Array, Array]:
    """The corners of 1 - f, from false positive rate 0 to the rate x = f(x).

    1 - f is a concave, broken line above which no test lies; beyond the last corner it is the
    mirror image.

    Args:
        points: (epsilon, delta) with epsilon >= 0 and delta in [0, 1].

    Returns:
        (false positive rates, largest true positive rates), each [corners], in [0, 1].

    Raises:
        InputError: a point that is no guarantee.
    """
    given = [*_telling(points), (0.0, 1.0)]
    equal = max((1.0 - delta) / (1.0 + math.exp(epsilon)) for epsilon, delta in given)
    slopes = np.exp(np.asarray([epsilon for epsilon, _ in given]))
    starts = np.asarray([delta for _, delta in given])
    here = int(np.lexsort((slopes, starts))[0])  # the lowest line at rate 0, the flattest of those
    corners = [(0.0, float(starts[here]))]
    while True:
        flatter = np.nonzero(slopes < slopes[here])[0]
        crossing = (starts[flatter] - starts[here]) / (slopes[here] - slopes[flatter])
        if not flatter.size or not float(np.min(crossing)) < equal:
            break
        nearest = np.nonzero(crossing == np.min(crossing))[0]
        at = float(crossing[nearest[0]])
        corners.append((at, float(starts[here]) + float(slopes[here]) * at))
        here = int(flatter[nearest[np.argmin(slopes[flatter[nearest]])]])
    corners.append((equal, 1.0 - equal))
    rates, powers = np.asarray(corners).T
    return rates, np.minimum(powers, 1.0)


def power_curve(points: Iterable[Point]) -> tuple[Array, Array]:
    """The largest true positive rate as a function of the false positive rate, from 0 to 1.

    Args:
        points: as in `trade_off_corners`.

    Returns:
        (rates, powers) at the corners of this broken line, each [corners]; powers are rounded up.
    """
    rate, power = trade_off_corners(points)
    rates = np.concatenate([rate, 1.0 - power[-2::-1], [1.0]])
    powers = np.concatenate([power, 1.0 - rate[-2::-1], [1.0]])
    return rates, np.minimum(powers * _SLACK, 1.0)


def delta_from_points(points: Iterable[Point], epsilon: float) -> float:
    """The smallest delta at epsilon that the points imply together, rounded up.

    Args:
        points: as in `trade_off_corners`.
        epsilon: >= 0.
    """
    require(
        epsilon >= 0.0, f"epsilon={epsilon!r} is not a number >= 0; give a non-negative epsilon"
    )
    rate, power = power_curve(points)
    return _delta_of(rate, power, epsilon)


def epsilon_from_points(points: Iterable[Point], delta: float) -> float:
    """The smallest epsilon >= 0 at delta that the points imply together, rounded up.

    Args:
        points: as in `trade_off_corners`.
        delta: in [0, 1).

    Returns:
        epsilon; inf if the points imply none.
    """
    require_delta(delta)
    return _epsilon_of(*power_curve(points), delta)


def group_privacy(epsilon: float, delta: float, units: int) -> Point:
    """(epsilon, delta) of several units at once, from that of one.

    k epsilon and delta (1 + e^epsilon + ... + e^((k-1) epsilon)), by P <= e^epsilon R + delta along
    a chain of k neighbours. With a whole profile `group_points` gives less.

    Args:
        epsilon: >= 0; above 700 it counts as inf.
        delta: in [0, 1].
        units: k, an integer >= 1.

    Raises:
        InputError: a value out of range.
    """
    _require_units(units)
    ((epsilon, delta),) = _telling([(epsilon, delta)]) or [(math.inf, delta)]
    if units == 1 or epsilon == math.inf:
        return epsilon, delta
    if delta == 0.0 or units * epsilon > _LARGEST:
        return units * epsilon * (1 + 4e-16), 0.0 if delta == 0.0 else 1.0
    growth = math.fsum(math.exp(j * epsilon) for j in range(units))
    return units * epsilon * (1 + 4e-16), min(1.0, delta * growth * (1 + 1e-12))


def group_points(points: Iterable[Point], units: int) -> list[Point]:
    """The profile of several units at once, under the same adjacency.

    Args:
        points: those of one unit, as in `trade_off_corners`.
        units: an integer >= 1.

    Returns:
        (epsilon, delta) points, rounded up.
    """
    _require_units(units)
    rate, power = power_curve(points)
    group_rate, group_power = rate, power
    for _ in range(units - 1):
        group_rate, group_power = _after(rate, power, group_rate, group_power)
    return _points_of(group_rate, group_power)


def group_event(event: Event, units: int) -> Event:
    """The event whose guarantee for one unit is that of `event` for several units at once, under
    the same adjacency.

    Unsampled noise: the sum moves k times as far. A Poisson sample of k units of which j take part
    moves the sum by at most j C, so the mixture of shifts 0..k with weights Binomial(k, q)
    dominates, and is attained when all contributions are equal (Ganesh 2024, arXiv 2401.10294). For
    add-remove and zero-out derived here, for replace-one in `mixture_gaussian`:

    Given the other units, the ratio P/Q at noise x is L = sum over subsets J of w_J e^(v_J x / s^2
    - |v_J|^2 / 2 s^2), |v_J| <= |J|. Divergences in both directions are expectations of convex
    functions of L, and E[L] = 1, so only E(L - c)+ matters. Write L* for the same with one
    coordinate and shifts |J|: all its terms rise together, so for every c there are c_J with sum c
    and (L* - c)+ = sum (L*_J - c_J)+. Now E(L - c)+ <= sum E(L_J - c_J)+, and each L_J is a
    lognormal of mean 1 that spreads no more than L*_J, so the sum is at most E(L* - c)+.

    Other sampled events have no such theorem here: they become `Unsupported`. `group_points` works
    for their profile.

    Args:
        units: k, an integer >= 1.
    """
    _require_units(units)
    if units == 1 or isinstance(event, NonPrivate | Unsupported):
        return event
    if isinstance(event, SelfComposed):
        return SelfComposed(group_event(event.event, units), event.count)
    if isinstance(event, Composed):
        return Composed(tuple(group_event(part, units) for part in event.events))
    if isinstance(event, PoissonGaussian) and 0.0 < event.sample_rate < 1.0:
        return MixtureGaussian.accumulated(event.sample_rate, units, event.noise_multiplier)
    if isinstance(event, Gaussian | PoissonGaussian | Laplace | FixedBatchesGaussian):
        return replace(event, noise_multiplier=math.nextafter(event.noise_multiplier / units, 0.0))
    if isinstance(event, PureDP):
        return PureDP(units * event.epsilon * (1 + 4e-16), event.adjacency)
    if isinstance(event, ApproximateDP):
        epsilon, delta = group_privacy(event.epsilon, event.failure_probability, units)
        if delta < 1.0:
            return ApproximateDP(epsilon, delta, event.adjacency)
    reason = (
        f"no theorem for {units} units at once is known here; convert one unit's profile with "
        "group_points()"
    )
    return Unsupported(f"{event.kind} of a group", reason)


def replace_one_from_add_remove(points: Iterable[Point]) -> list[Point]:
    """The profile under replace-one from points that hold under add-remove (or zero-out).

    Generic, and loose where an event has a theorem of its own: ask the accountant under replace-one
    instead.

    Args:
        points: as in `trade_off_corners`.
    """
    return group_points(points, 2)


def replace_one_epsilon(epsilon_at: Callable[[float], float], delta: float) -> float:
    """Replace-one epsilon at delta from an add-remove profile.

    (e, d) gives (2 e, d (1 + e^e)). Any guess g works that turns out at least as large as e =
    epsilon_at(delta / (1 + e^g)): then d (1 + e^e) <= delta, so 2 e is valid, and e is the next
    guess.

    Args:
        epsilon_at: delta -> epsilon.
        delta: in (0, 1).

    Returns:
        epsilon; inf if none is found.
    """
    require(
        0.0 < delta < 1.0, f"delta={delta!r} is not in (0, 1); give less than 1 / data set size"
    )
    best, guess = math.inf, 1.5 * epsilon_at(delta) + 0.1
    for _ in range(10):
        if not guess < 600.0:
            break
        found = epsilon_at(delta / (1 + math.exp(guess)) * (1 - 1e-12))
        if found > guess:
            guess = 2 * found - guess
            continue
        best = min(best, 2 * found)
        if guess - found <= 1e-3 * found:
            break
        guess = found
    return best


def replace_one_delta(delta_at: Callable[[float], float], epsilon: float) -> float:
    """Replace-one delta at epsilon from an add-remove profile.

    Args:
        delta_at: epsilon -> delta.
        epsilon: >= 0.

    Returns:
        a probability in [0, 1], rounded up.
    """
    require(
        epsilon >= 0.0, f"epsilon={epsilon!r} is not a number >= 0; give a non-negative epsilon"
    )
    return min(
        1.0, delta_at(epsilon / 2) * (1 + math.exp(min(epsilon / 2, _LARGEST))) * (1 + 1e-12)
    )


def _telling(points: Iterable[Point]) -> list[Point]:
    """The points that say something about tests with a false positive rate above 1e-300."""
    return [(epsilon, delta) for epsilon, delta in checked_points(points) if epsilon <= _LARGEST]


def _require_units(units: int) -> None:
    require(
        isinstance(units, int) and not isinstance(units, bool) and units >= 1,
        f"units={units!r} is not an integer >= 1; give the size of the group",
    )


def _after(rate: Array, power: Array, inner_rate: Array, inner_power: Array) -> tuple[Array, Array]:
    """Corners of power(inner(.)): those of the inner curve, and where it reaches a corner of the
    outer one.
    """
    rising = np.nonzero(np.diff(inner_power) > 0)[0]
    kept = np.append(rising, rising[-1] + 1) if rising.size else np.asarray([0])
    between = rate[(rate > inner_power[kept[0]]) & (rate < inner_power[kept[-1]])]
    added = np.interp(between, inner_power[kept], inner_rate[kept])
    rates = np.unique(np.concatenate([inner_rate, added]))
    reached = np.interp(np.interp(rates, inner_rate, inner_power), rate, power)
    return rates, np.minimum(reached * _SLACK, 1.0)


def _delta_of(rate: Array, power: Array, epsilon: float) -> float:
    if epsilon > _LARGEST:
        return float(power[0])
    return min(1.0, max(0.0, float(np.max(power - math.exp(epsilon) * rate))) + 4e-16)


def _epsilon_of(rate: Array, power: Array, delta: float) -> float:
    if power[0] > delta:
        return math.inf
    positive = rate > 0.0
    steepest = float(np.max((power[positive] - delta) / rate[positive]))
    return max(0.0, math.log(steepest) + 1e-12) if steepest > 0.0 else 0.0


def _points_of(rate: Array, power: Array) -> list[Point]:
    """A point for every piece of the curve that rises at least as fast as the diagonal."""
    points = []
    for run, rise in zip(np.diff(rate).tolist(), np.diff(power).tolist(), strict=True):
        if run > 0.0 and rise >= run:
            epsilon = math.log(rise / run)
            points.append((epsilon, _delta_of(rate, power, epsilon)))
    return [*points, (0.0, _delta_of(rate, power, 0.0))]
