"""Certified bounds on epsilon and delta, from above and from below, by composing privacy-loss
distributions.

Every direction of the dominating pairs (remove a unit, add a unit) is composed and the larger
result is taken after composition. Everything that is cut off or rounded is charged; see
`composition` and `loss_grid`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from accounting.errors import CannotComputeError
from accounting.events import Composed, Event, Gaussian, SelfComposed, unsupported_reason
from accounting.mechanisms.gaussian import gaussian_delta, gaussian_epsilon, invert_profile
from accounting.pld.grid_refinement import Bounds, Query, over_directions
from accounting.rdp.curve import COARSE_ORDERS, failures, renyi_curve, renyi_delta, renyi_epsilon

Counted = Sequence[tuple[Event, int]]
Steps = list[tuple[Event, int]]

_ABSOLUTE = 2e-6  # how wide the bounds on epsilon may be near 0
_LARGE_EPSILON = 50.0  # a first guess where there is no other


def pld_epsilon(events: Counted, delta: float, adjacency: str) -> Bounds:
    """Bounds on epsilon at delta, normally within 0.1 % of each other.

    Args:
        events: (event, count) pairs, fixed in advance.
        delta: in (0, 1).

    Raises:
        CannotComputeError: the distribution cannot be computed; the message says why.
    """
    if delta <= 0.0:
        raise CannotComputeError("delta = 0 is out of reach of a discretised distribution")
    mu, sampled = _parts(events, adjacency)
    if failures(_as_event(sampled), adjacency) * (1 - 1e-9) > delta:
        return Bounds(math.inf, math.inf)
    if not sampled:
        return Bounds(gaussian_epsilon(delta, mu, upper=False), gaussian_epsilon(delta, mu))
    steps = _with_gaussian(mu, sampled, adjacency)
    rough, order = renyi_epsilon(_as_event(steps), delta, adjacency, orders=COARSE_ORDERS)
    if rough == 0.0:
        return Bounds(0.0, 0.0)
    single = _single(steps, adjacency)
    if single is not None:
        low, high = (_inverted(single, delta, rough, upper) for upper in (False, True))
        return Bounds(low, min(high, rough))
    if not rough < math.inf:
        # no Rényi bound (a failure probability, say): start anywhere
        rough, order = _LARGE_EPSILON, 1.5
    found = over_directions(
        Query(steps, adjacency, order - 1, delta, rough, delta=delta, absolute=_ABSOLUTE)
    )
    return Bounds(found.lower, min(rough, found.upper) if rough != _LARGE_EPSILON else found.upper)


def pld_delta(events: Counted, epsilon: float, adjacency: str) -> Bounds:
    """Bounds on delta at epsilon.

    Args:
        events: (event, count) pairs, fixed in advance.
        epsilon: >= 0.

    Raises:
        CannotComputeError: the distribution cannot be computed; the message says why.
    """
    mu, sampled = _parts(events, adjacency)
    if not sampled:
        return Bounds(gaussian_delta(epsilon, mu, upper=False), gaussian_delta(epsilon, mu))
    steps = _with_gaussian(mu, sampled, adjacency)
    single = _single(steps, adjacency)
    if single is not None and epsilon < math.inf:
        return Bounds(single(epsilon, False), single(epsilon, True))
    orders, rho = renyi_curve(_as_event(steps), adjacency, orders=COARSE_ORDERS)
    rough = renyi_delta(_as_event(steps), epsilon, adjacency, orders=COARSE_ORDERS)
    if rough <= 0.0 or not epsilon < math.inf:
        return Bounds(0.0, rough)
    with np.errstate(invalid="ignore"):
        exponent = (orders - 1) * (rho - epsilon) - np.log(orders)
    order = float(orders[np.argmin(np.where(np.isfinite(exponent), exponent, math.inf))])
    near = max(epsilon, 1e-3)
    found = over_directions(Query(steps, adjacency, order - 1, 1e-2 * rough, near, epsilon=epsilon))
    return Bounds(found.lower, min(rough, found.upper))


def attained_lower(events: Counted, lower: float, delta: float, adjacency: str) -> float:
    """What is certain if some dominating pairs are not attained: the largest bound of a part that
    is.

    Args:
        lower: the lower bound on the epsilon of the dominating pairs.
        delta: in (0, 1).

    Returns:
        a lower bound on epsilon, >= 0.

    Raises:
        CannotComputeError: the distribution of a part cannot be computed.
    """
    strange = [
        (event, count)
        for event, count in events
        if event.lower_bound_event(adjacency) != (event, adjacency)
    ]
    if not strange:
        return lower
    plain = [(event, count) for event, count in events if (event, count) not in strange]
    best = pld_epsilon(plain, delta, adjacency).lower if plain else 0.0
    for event, count in strange:
        substitute, relation = event.lower_bound_event(adjacency)
        best = max(best, pld_epsilon([(substitute, count)], delta, relation).lower)
    return min(best, lower)


def cheap_lower(events: Counted, delta: float, adjacency: str) -> float:
    """A lower bound on epsilon without any grid: that of the costliest release with a closed form,
    alone.

    Args:
        events: (event, count) pairs.
        delta: in [0, 1).

    Returns:
        epsilon >= 0; 0 where nothing is known.
    """
    best = 0.0
    for event, count in events:
        if event.lower_bound_event(adjacency) != (event, adjacency):
            continue
        mu = event.gaussian_mu(adjacency)
        if count > 0 and mu is not None and mu < math.inf:
            best = max(best, gaussian_epsilon(delta, mu * (1 - 1e-14), upper=False))
        single = _single([(event, 1)], adjacency) if count > 0 and mu is None else None
        if single is not None:
            guess = renyi_epsilon(event, delta, adjacency, COARSE_ORDERS)[0]
            alone = _inverted(single, delta, guess, upper=False)
            best = max(best, alone if alone < math.inf else 0.0)
    return best


def _parts(events: Counted, adjacency: str) -> tuple[float, Steps]:
    """mu of all unsampled Gaussians together, and the other releases; CannotComputeError where
    there is no bound.
    """
    squared, sampled = 0.0, []
    for event, count in events:
        reason = unsupported_reason(event, adjacency)
        if reason is not None:
            raise CannotComputeError(reason)
        mu = event.gaussian_mu(adjacency)
        if mu is None:
            sampled.append((event, count))
        elif count > 0:
            squared += count * mu * mu
    if not squared < math.inf:
        raise CannotComputeError("a release has no noise, so it hides nothing")
    return math.sqrt(squared) * (1 + 1e-15), [
        (event, count) for event, count in sampled if count > 0
    ]


def _with_gaussian(mu: float, sampled: Steps, adjacency: str) -> Steps:
    if mu == 0.0:
        return sampled
    reach = 2.0 if adjacency == "replace-one" else 1.0
    return [*sampled, (Gaussian(reach / mu * (1 - 1e-15)), 1)]


def _single(steps: Steps, adjacency: str) -> Callable[[float, bool], float] | None:
    """The closed-form profile, if there is one release and it has one."""
    (event, count), *others = steps
    if others or count != 1 or event.delta(1.0, adjacency) is None:
        return None
    return lambda epsilon, upper: event.delta(epsilon, adjacency, upper) or 0.0


def _inverted(
    profile: Callable[[float, bool], float], delta: float, guess: float, upper: bool
) -> float:
    return invert_profile(lambda epsilon: profile(epsilon, upper), delta, min(guess, 1e300), upper)


def _as_event(steps: Steps) -> Event:
    return Composed(tuple(SelfComposed(event, count) for event, count in steps))
