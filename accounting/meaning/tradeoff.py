"""What a guarantee leaves to someone who guesses whether a unit was in the data.

Everything here follows from points (epsilon, delta) that hold together for both directions of the
adjacency, as an accountant's do: its delta is the larger of the two. Note the order:
`Accountant.profile` lists (delta, epsilon).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri

from accounting.accountant import Accountant, Counted, as_event, unsupported_reasons
from accounting.errors import CannotComputeError, require
from accounting.events import Gaussian
from accounting.meaning.conversion import delta_from_points, power_curve, trade_off_corners
from accounting.odds import Point, checked_points, odds, require_rates, true_positive_rate
from accounting.pld.composition import Composition
from accounting.rdp.curve import COARSE_ORDERS, delta_from_curve, epsilon_from_curve, renyi_curve
from accounting.schedules import NoiseSchedule, blended

Array = NDArray[np.floating[Any]]

SMALLEST_RATE = 1e-12  # false positive rate below which nothing is claimed
_SMALLEST_DELTA = 1e-14  # points below it cannot matter at that rate
# regret that is too large: absolutely, and relative to the advantage
_POOR_FIT, _POOR_SHARE = 0.01, 0.1
_TILTED_TO = (0.1, 1e-2, 1e-4, 1e-7, 1e-11, 1e-14)  # deltas where one composition each is sharpest
_ORDERS = (1.3, 2.0, 3.0, 6.0, 12.0, 24.0)  # for them, where no Rényi divergence is finite
_LARGEST_WINDOW = 2**20


class GaussianFit(NamedTuple):
    """The smallest mu whose Gaussian mechanism reveals at least as much, and how much more that is.

    Attributes:
        mu: no test whose false positive and false negative rates are both at least smallest_rate
            does better than against N(0, 1) and N(mu, 1); inf where the points do not show that for
            any mu.
        regret: the smallest shift of the points' trade-off curve, towards (0, 0) along both axes,
            that brings it below the Gaussian one; equally the largest difference between the
            chances of a right guess that they leave, over all prior probabilities.
        smallest_rate: an error rate in [0, 1/2); 0 where the fit is exact.
        note: why the fit is bad; empty if it is good.
    """

    mu: float
    regret: float
    smallest_rate: float
    note: str


def gaussian_fit(accountant: Accountant) -> GaussianFit:
    """mu of everything charged.

    Returns:
        an exact fit where all of it is unsampled Gaussian noise, else that of `gdp_mu`.
    """
    mus = [event.gaussian_mu(accountant.adjacency) for event, _ in accountant.events]
    if any(mu is None for mu in mus) or unsupported_reasons(
        accountant.events, accountant.adjacency
    ):
        return gdp_mu(profile_points(accountant))
    squares = [
        count * (mu or 0.0) ** 2 for (_, count), mu in zip(accountant.events, mus, strict=True)
    ]
    return GaussianFit(math.sqrt(math.fsum(squares)) * (1 + 1e-15), 0.0, 0.0, "")


def trade_off_curve(points: Iterable[Point], false_positive_rates: Sequence[float]) -> Array:
    """A lower bound, rounded down, on any test's false negative rate at given false positive rates.

    The largest of the straight lines that the points give, so it is convex and never rises: f of
    f-DP.

    Args:
        points: (epsilon, delta) with epsilon >= 0 and delta in [0, 1].
        false_positive_rates: [n], each in [0, 1].

    Returns:
        false negative rates [n], each in [0, 1].

    Raises:
        InputError: a rate outside [0, 1], or a point that is no guarantee.
    """
    require_rates(false_positive_rates)
    rates = np.asarray(false_positive_rates, dtype=float)
    best = np.zeros(rates.shape)
    for epsilon, delta in checked_points(points):
        slope = min(odds(epsilon), 1e308)
        rising = np.where(rates > 0.0, slope * np.minimum(rates, 2.0 / slope), 0.0)
        falling = math.exp(-epsilon) * (1.0 - delta - rates)
        best = np.maximum(best, np.maximum(1.0 - delta - rising, falling))
    return np.maximum(best * (1 - 1e-15) - 2e-16, 0.0)


def advantage(accountant: Accountant) -> float:
    """The largest (true positive rate - false positive rate) of any test: delta at epsilon 0, the
    total variation.

    Returns:
        an upper bound in [0, 1].
    """
    return accountant.delta(0.0)


def profile_points(accountant: Accountant, count: int = 40) -> list[Point]:
    """Points of everything charged, for a tight curve at rates from 1e-12 up.

    Evenly spread epsilons suit Gaussian mechanisms, whose mu is then met within 1 % with 40 points;
    a geometric series is added for those whose losses are tiny but for a long tail.

    Args:
        count: evenly spread epsilons, >= 4.

    Returns:
        about 3/2 `count` (epsilon, delta) points, delta rounded up.

    Raises:
        InputError: the count is below 4.
    """
    require(count >= 4, f"count={count!r} is too few for a curve; give at least 4")
    # At no rate above the smallest one is the curve steeper than 1 / rate.
    largest = min(-math.log(SMALLEST_RATE), accountant.epsilon(_SMALLEST_DELTA).upper)
    if largest == 0.0:
        return [(0.0, accountant.delta(0.0))]
    epsilons = np.union1d(
        np.linspace(0.0, largest, count), np.geomspace(1e-4 * largest, largest, count // 2)
    ).tolist()
    return list(zip(epsilons, _deltas(accountant, epsilons), strict=True))


def largest_true_positive_rate(accountant: Accountant, false_positive_rate: float) -> float:
    """The bound of `true_positive_rate` at one rate, close to the epsilon where it is smallest.

    Every epsilon gives a valid bound. The profile's points show where to look; a parabola through
    the best of them and its neighbours gives the epsilon that is looked at closely.

    Args:
        false_positive_rate: share of non-members accused, in [0, 1].

    Returns:
        a share of members in [0, 1].

    Raises:
        InputError: a rate outside [0, 1].
    """
    require_rates([false_positive_rate])
    points = profile_points(accountant)
    # Beyond the diagonal the bound comes from the mirrored lines: one axis of slopes, from -largest
    # to largest.
    bounds = [
        (epsilon, true_positive_rate(false_positive_rate, [(epsilon, delta)]))
        for epsilon, delta in points
    ]
    best = min(range(len(bounds)), key=lambda i: bounds[i][1])
    if not 0 < best < len(bounds) - 1:
        return bounds[best][1]
    tip = _tip_of_parabola(bounds[best - 1 : best + 2])
    return min(
        bounds[best][1], true_positive_rate(false_positive_rate, [(tip, accountant.delta(tip))])
    )


def _tip_of_parabola(three: list[tuple[float, float]]) -> float:
    (left, at_left), (centre, at_centre), (right, at_right) = three
    falls = (at_centre - at_left) / (centre - left)
    rises = (at_right - at_centre) / (right - centre)
    if not rises > falls:
        return centre
    share = -falls / (rises - falls)  # 0 half-way on the left, 1 half-way on the right
    return (left + centre) / 2 + min(1.0, max(0.0, share)) * (right - left) / 2


def _deltas(accountant: Accountant, epsilons: list[float]) -> list[float]:
    """Upper bounds on delta at many epsilons: from few compositions where single answers are
    costly.
    """
    adjacency = accountant.adjacency
    if unsupported_reasons(accountant.events, adjacency):
        return [1.0] * len(epsilons)
    mus = [event.gaussian_mu(adjacency) for event, _ in accountant.events]
    sampled = [
        one for one, mu in zip(accountant.events, mus, strict=True) if mu is None and one[1] > 0
    ]
    squared = math.fsum(
        n * mu * mu for (_, n), mu in zip(accountant.events, mus, strict=True) if mu is not None
    )
    if accountant.name == "prv" and sum(count for _, count in sampled) > 1 and squared < math.inf:
        if squared > 0.0:
            reach = 2.0 if adjacency == "replace-one" else 1.0
            sampled.append((Gaussian(reach / math.sqrt(squared) * (1 - 1e-14)), 1))
        with contextlib.suppress(CannotComputeError):
            return _composed_deltas(sampled, adjacency, epsilons)
    return [accountant.delta(epsilon) for epsilon in epsilons]


def _composed_deltas(events: Counted, adjacency: str, epsilons: list[float]) -> list[float]:
    """The larger one of both directions, each the least bound over tilts that are sharp nearby.

    Raises:
        CannotComputeError: no grid within the limits serves any tilt.
    """
    orders, rho = renyi_curve(as_event(events), adjacency, COARSE_ORDERS)
    schedule = blended(list(events), adjacency, upper=True)
    # Where each delta is reached, by its Rényi bound: at most there, so each tilt is tried from
    # further below, too.
    near, best = zip(*(epsilon_from_curve(orders, rho, delta) for delta in _TILTED_TO), strict=True)
    if near[-1] == math.inf:  # a failure probability: any tilt may serve anywhere
        near, best = (0.0,) * len(_TILTED_TO), _ORDERS
    releases = sum(count for _, count in events)
    width = _width(2 * float(rho[0]), max(best) - 1, releases)
    at, tail = np.asarray(epsilons), 1e-6 * _SMALLEST_DELTA / releases
    bounds: list[Array] = []
    for delta, order, after, before in zip(
        _TILTED_TO, best, (0.0, 0.0, *near), (*near[1:], math.inf), strict=False
    ):
        asked = np.nonzero((at >= after) & ((at <= before) | (before == 0.0)))[0]
        for side, composed in enumerate(
            _both_directions(schedule, adjacency, width, tail, order - 1, delta)
        ):
            if len(bounds) <= side:
                bounds.append(
                    np.asarray([delta_from_curve(orders, rho, epsilon) for epsilon in epsilons])
                )
            for i in asked:
                bounds[side][i] = min(bounds[side][i], composed.delta(float(at[i])))
    if not bounds:
        raise CannotComputeError("no grid within the limits serves any of the tilts")
    return np.max(bounds, axis=0).tolist()


def _both_directions(
    schedule: NoiseSchedule, adjacency: str, width: float, tail: float, tilt: float, delta: float
) -> list[Composition]:
    """The compositions of each direction at one tilt, on the first grid from `width` up that fits;
    [] if none does.
    """
    for interval in (width * 2.0**step for step in range(8)):
        with contextlib.suppress(CannotComputeError):
            grids = [node.loss_grid(adjacency, interval, tail) for node in schedule.nodes]
            sides = range(max(len(directions) for directions in grids))
            pmfs = [
                [each[min(side, len(each) - 1)].pessimistic() for each in grids] for side in sides
            ]
            return [
                Composition(one, schedule.terms, tilt, delta, True, _LARGEST_WINDOW) for one in pmfs
            ]
    return []


def _width(variance: float, tilt: float, releases: int) -> float:
    """A grid of losses that adds at most about 1e-3 to delta, relatively.

    A grid of width v adds v^2 / 6 to the variance of one release's loss (see `grid_refinement`).
    """
    widest = math.sqrt(12e-3 / releases * min(variance / 2, 1 / (tilt * (tilt + 1))))
    return 2.0 ** math.floor(math.log2(min(max(widest, 1e-12), 0.05)))


def gdp_mu(points: Iterable[Point], smallest_rate: float = SMALLEST_RATE) -> GaussianFit:
    """The smallest mu that covers the points wherever both error rates are at least smallest_rate.

    Between two corners the points' trade-off curve is straight and the Gaussian one convex, so that
    it is enough to compare them at the corners (and at the smallest rate). Below the smallest rate
    no mu need cover a sampled mechanism. Regret: Gomez, Kulynych, Kaissis, Calmon, Hayes, Balle and
    Honkela 2025 (arXiv 2503.10945), after Kaissis, Kolek, Balle, Hayes and Rueckert 2024 (arXiv
    2406.08918), against the curve of the points. With support functions (derived here): the largest
    (delta_mu(epsilon) - delta(epsilon)) / (1 + e^epsilon).

    Args:
        points: (epsilon, delta) with epsilon >= 0 and delta in [0, 1].
        smallest_rate: an error rate in (0, 1/2).

    Raises:
        InputError: a rate out of range, or a point that is no guarantee.
    """
    require(
        0.0 < smallest_rate < 0.5,
        f"smallest_rate={smallest_rate!r} is not in (0, 0.5); leave it at 1e-12",
    )
    given = checked_points(points)
    rates, powers = trade_off_corners(given)
    mu = -2 * float(ndtri(rates[-1]))
    if smallest_rate < rates[-1]:
        inner = np.nonzero(rates[:-1] > smallest_rate)[0]
        rates = np.append(smallest_rate, rates[inner])
        powers = np.append(true_positive_rate(smallest_rate, given), powers[inner])
        at = ndtri(rates)
        mu = max(
            mu,
            float(np.max(ndtri(np.minimum(powers * (1 + 2e-15), 1.0)) - at + 1e-14 * np.abs(at))),
        )
    if mu == math.inf:
        return GaussianFit(
            mu,
            float(rates[-1]),
            smallest_rate,
            "the points rule out no test with both error rates 0",
        )
    regret = _regret(mu, given)
    return GaussianFit(
        mu, regret, smallest_rate, _complaint(mu, regret, delta_from_points(given, 0.0))
    )


def _regret(mu: float, points: list[Point]) -> float:
    thresholds = np.linspace(mu / 2, mu / 2 + 9.0, 600)
    epsilons = np.append(mu * thresholds - mu * mu / 2, [epsilon for epsilon, _ in points])
    epsilons = np.unique(epsilons[(epsilons >= 0.0) & (epsilons < 700.0)])
    rates, powers = power_curve(points)
    implied = np.max(powers - np.exp(epsilons)[:, None] * rates, axis=1)
    gaussian = (
        ndtr(mu / 2 - epsilons / mu) - np.exp(epsilons + log_ndtr(-mu / 2 - epsilons / mu))
        if mu
        else 0.0
    )
    return max(0.0, float(np.max((gaussian - implied) / (1 + np.exp(epsilons)))))


def _complaint(mu: float, regret: float, total_variation: float) -> str:
    if regret <= min(_POOR_FIT, _POOR_SHARE * total_variation / 2) or regret < 1e-9:
        return ""
    return (
        f"poor fit: mu = {mu:.4g} overstates the chance of a right guess by up to {regret:.3g} "
        f"(from even odds it is {0.5 + total_variation / 2:.3g}); report the profile instead"
    )
