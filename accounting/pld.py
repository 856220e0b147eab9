"""A certified upper bound on epsilon and delta by composing privacy-loss distributions.

Both directions (remove a unit, add a unit) are composed and the larger result is taken after composition.
The composition is an FFT of exponentially tilted masses (tilt: derived here; it makes the round-off relative
to delta instead of absolute). Everything that is cut off or rounded is added to delta:
truncated one-step tails, the composed tail beyond the window, and a bound on the FFT's round-off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from accounting.composition import Composition
from accounting.discretise import LossPmf, Refused, poisson_gaussian_pmfs
from accounting.events import Composed, Event, Gaussian, PoissonGaussian, SelfComposed, obstacle
from accounting.gaussian import gaussian_delta, gaussian_epsilon
from accounting.renyi import COARSE_ORDERS, delta_from_curve, renyi_curve, renyi_epsilon

Counted = Sequence[tuple[Event, int]]
Steps = list[tuple[PoissonGaussian, int]]
Parts = list[tuple[LossPmf, int]]

Ask = Callable[[Composition], tuple[float, float]]  # (the answer, the epsilon it was read at)

LARGEST_KINDS = 512


def pld_epsilon(events: Counted, delta: float) -> float:
    """Upper bound on epsilon at delta in (0, 1) under add-remove (or zero-out) adjacency.

    events: (event, count) pairs, fixed in advance. Raises Refused, with the reason, where the
    distribution cannot be computed; the bound is otherwise within about 0.1 % of the truth.
    """
    if delta <= 0.0:
        raise Refused("delta = 0 is out of reach of a discretised distribution")
    mu, sampled = _parts(events)
    if not sampled:
        return gaussian_epsilon(delta, mu)
    steps = _with_gaussian(mu, sampled)
    rough, order = renyi_epsilon(_as_event(steps), delta, orders=COARSE_ORDERS)
    if not rough < math.inf:
        raise Refused("the Rényi bound is infinite")
    if rough == 0.0:
        return 0.0

    def ask(composition: Composition) -> tuple[float, float]:
        found = composition.epsilon(delta)
        return found, found

    return min(rough, _larger_side(steps, rough, order - 1, delta, ask))


def pld_delta(events: Counted, epsilon: float) -> float:
    """Upper bound on delta at epsilon >= 0 under add-remove (or zero-out) adjacency; may raise Refused."""
    mu, sampled = _parts(events)
    if not sampled:
        return gaussian_delta(epsilon, mu)
    steps = _with_gaussian(mu, sampled)
    orders, rho = renyi_curve(_as_event(steps), orders=COARSE_ORDERS)
    rough = delta_from_curve(orders, rho, epsilon)
    if not 0.0 < rough < 1.0 or not 0.0 < epsilon < math.inf:
        return rough
    order = float(orders[np.argmin((orders - 1) * (rho - epsilon) - np.log(orders))])

    def ask(composition: Composition) -> tuple[float, float]:
        return composition.delta(epsilon), epsilon

    return min(rough, _larger_side(steps, epsilon, order - 1, 1e-2 * rough, ask))


def _parts(events: Counted) -> tuple[float, Steps]:
    """mu of all unsampled Gaussians together, and the sampled releases; Refused where there is no bound."""
    squared, sampled = 0.0, []
    for event, count in events:
        reason = obstacle(event)
        if reason is not None:
            raise Refused(reason)
        if count == 0 or (isinstance(event, PoissonGaussian) and event.sample_rate == 0.0):
            continue
        assert isinstance(event, Gaussian | PoissonGaussian)
        if event.noise_multiplier < 1e-100:
            raise Refused(f"noise_multiplier={event.noise_multiplier!r} hides nothing")
        if isinstance(event, PoissonGaussian) and event.sample_rate < 1.0:
            sampled.append((event, count))
        else:
            squared += count / event.noise_multiplier**2
    if len(sampled) > LARGEST_KINDS:
        raise Refused(f"{len(sampled)} different releases (limit {LARGEST_KINDS})")
    return math.sqrt(squared) * (1 + 1e-15), sampled


def _with_gaussian(mu: float, sampled: Steps) -> Steps:
    return [*sampled, (PoissonGaussian(1.0, 1 / mu * (1 - 1e-15)), 1)] if mu > 0 else sampled


def _as_event(steps: Steps) -> Event:
    return Composed(tuple(SelfComposed(event, count) for event, count in steps))


def _larger_side(steps: Steps, epsilon: float, tilt: float, target: float, ask: Ask) -> float:
    """The larger of the two directions' bounds; the add direction is refined only while it is the larger."""
    remove = _converged(steps, 0, epsilon, tilt, target, ask, 0.0)
    return max(remove, _converged(steps, 1, epsilon, tilt, target, ask, remove))


def _converged(steps: Steps, side: int, epsilon: float, tilt: float, target: float, ask: Ask, enough: float) -> float:
    """One direction's bound on finer and finer grids, until a finer grid gains too little (or is refused).

    A grid of width v adds about T v^2 (t+1) / 12 to epsilon at tilt t (derived here: a split adds about
    v^2/6 to the variance of one step's loss). The best tilt is the slope of -log delta at the answer.
    """
    total = sum(count for _, count in steps)
    interval, best = _grid_width(epsilon, total, tilt), math.inf
    for _attempt in range(14):
        try:
            composition = Composition(_discretised(steps, interval, target)[side], tilt, target)
        except Refused:
            if best < math.inf or interval > 1.0:
                break
            interval *= 2
            continue
        found, at = ask(composition)
        if min(best, found) <= enough or best - found <= _tolerance(found):
            return min(best, found)
        best = min(best, found)
        tilt = composition.slope(at) if at < math.inf else tilt / 2
        interval = min(interval / 2, max(interval / 64, _grid_width(min(at, epsilon), total, tilt)))
    if best == math.inf:
        raise Refused("the distribution needs more grid points than the limit, or delta is too small for it")
    return best


def _grid_width(epsilon: float, total: int, tilt: float) -> float:
    width = min(0.05, math.sqrt(6 * _tolerance(epsilon) / (total * (tilt + 1))))
    return 2.0 ** math.floor(math.log2(width))  # few distinct values: neighbouring questions share their grid


def _discretised(steps: Steps, interval: float, target: float) -> tuple[Parts, Parts]:
    """One-step distributions of the (remove, add) direction."""
    tail = 1e-7 * target / sum(count for _, count in steps)
    if tail < 1e-280:
        raise Refused(f"delta={target!r} is out of reach of double precision")
    tail = 10.0 ** (3 * math.floor(math.log10(tail) / 3))  # few distinct values: neighbouring questions share
    pairs = [
        (poisson_gaussian_pmfs(step.sample_rate, step.noise_multiplier, interval, tail), count) for step, count in steps
    ]
    return [(pair[0], count) for pair, count in pairs], [(pair[1], count) for pair, count in pairs]


def _tolerance(epsilon: float) -> float:
    return 2e-4 * epsilon + 1e-6
