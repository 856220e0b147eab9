"""Rényi differential privacy of the events, and its conversion to (epsilon, delta).

Every event knows its own divergence; here they are added up on a grid of orders. Everything is
rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.errors import InputError, require, require_delta
from accounting.events import Event, flatten, require_adjacency, unsupported_reason
from accounting.schedules import blended

Array = NDArray[np.floating[Any]]

_LARGEST_ORDER = 2.0**18
_GROWTH = 1.12
_CHUNK = 12  # orders computed between two looks at whether larger ones can matter


def _integers_up(start: float, stop: float) -> list[float]:
    orders: list[float] = []
    while start <= stop:
        orders.append(float(round(start)))
        start = max(start + 1, start * _GROWTH)
    return orders


DEFAULT_ORDERS: tuple[float, ...] = tuple(
    sorted(
        {
            *(1.0 + np.logspace(-5, -2, 25)).tolist(),
            *(round(1.01 + 0.01 * step, 2) for step in range(99)),
            *(round(2.0 + 0.1 * step, 1) for step in range(81)),
            *(float(order) for order in range(11, 65)),
            *_integers_up(64, 16384),
        }
    )
)
# A sparser grid for searches that end in a tighter accountant: every subset of orders is a valid
# bound.
COARSE_ORDERS: tuple[float, ...] = tuple(
    sorted(
        {
            *(1.0 + np.logspace(-5, -0.5, 15)).tolist(),
            *(1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0),
            *(float(order) for order in range(7, 33)),
            *_integers_up(33, 16384),
        }
    )
)


def renyi_divergence(event: Event, order: float, adjacency: str) -> float:
    """Rényi divergence of one event at one order, rounded up.

    rho(a) = log E_Q[(P/Q)^a] / (a - 1). Composite events add up.

    Args:
        order: in (1, inf).

    Returns:
        rho >= 0; inf where there is no bound.

    Raises:
        InputError: an order that is not in (1, inf), or an unknown adjacency.
    """
    require_adjacency(adjacency)
    require(
        1.0 < order < math.inf, f"Rényi order {order!r} is not in (1, inf); give an order above 1"
    )
    if unsupported_reason(event, adjacency) is not None:
        return math.inf
    if failures(event, adjacency) > 0.0:
        return math.inf
    total = math.fsum(count * part.renyi(float(order), adjacency) for part, count in flatten(event))
    return _up(total)


def failures(event: Event, adjacency: str) -> float:
    """Probability that some release gives everything away, rounded up.

    Returns:
        a probability in [0, 1].
    """
    each = [(part.failure_probability_under(adjacency), count) for part, count in flatten(event)]
    log_kept = math.fsum(count * math.log1p(-min(failing, 1 - 2**-53)) for failing, count in each)
    return min(1.0, -math.expm1(log_kept) * (1 + 1e-12))


def renyi_curve(
    event: Event, adjacency: str, orders: Sequence[float] | None = None
) -> tuple[Array, Array]:
    """Rényi divergences of an event on a grid of orders.

    Args:
        orders: each in (1, inf); `DEFAULT_ORDERS` if left out.

    Returns:
        (orders, rho), each [orders]; rho >= 0 is rounded up, inf where there is no bound.

    Raises:
        InputError: no orders, one that is not in (1, inf), or an unknown adjacency.
    """
    require_adjacency(adjacency)
    grid = DEFAULT_ORDERS if orders is None else tuple(float(order) for order in orders)
    require(
        len(grid) > 0 and all(1.0 < order < math.inf for order in grid),
        "a Rényi curve needs orders in (1, inf); leave out orders for the default grid",
    )
    total = np.zeros(len(grid))
    if unsupported_reason(event, adjacency) is not None:
        return np.asarray(grid), total + math.inf
    if failures(event, adjacency) > 0.0:
        return np.asarray(grid), total + math.inf
    return np.asarray(grid), _sum_of_curves(event, adjacency, grid)


def _sum_of_curves(event: Event, adjacency: str, grid: tuple[float, ...]) -> Array:
    """rho of all releases together, given that none gives everything away."""
    total = np.zeros(len(grid))
    nodes, terms, _ = blended(flatten(event), adjacency, upper=True)
    curves = [curve_of(node, grid, adjacency) for node in nodes]
    for term in terms:
        total += term.count * mixed_curve(
            np.asarray(grid), [(weight, curves[i]) for i, weight in term.weights]
        )
    return total * (1 + 1e-15)


def mixed_curve(orders: Array, parts: Sequence[tuple[float, Array]]) -> Array:
    """Rényi curve of a mechanism that tells which of several it is: the moments e^((a-1) rho) are
    averaged.

    Args:
        orders: [orders], each > 1.
        parts: (weight, rho [orders]) pairs; the weights are probabilities that sum to 1.

    Returns:
        rho [orders], rounded up.
    """
    if len(parts) == 1:
        return parts[0][1]
    logs = [math.log(weight) + (orders - 1) * rho for weight, rho in parts]
    # The weights sum to 1 only up to rounding.
    return np.logaddexp.reduce(logs) / (orders - 1) * (1 + 1e-15) + 1e-11 / (orders - 1)


def epsilon_from_curve(orders: Array, rho: Array, delta: float) -> tuple[float, float]:
    """The smallest epsilon a Rényi curve implies at delta, rounded up and never below 0.

    min over a of rho + log((a-1)/a) - (log delta + log a) / (a-1) (Canonne, Kamath and Steinke
    2020, Proposition 12; Balle et al. 2020, Theorem 21), and 0 where delta^2 >= 1 - e^(-rho)
    (Bretagnolle and Huber, through the Kullback-Leibler divergence, which no rho is below).

    Args:
        orders: [orders], each > 1.
        rho: [orders], >= 0, inf where there is no bound.
        delta: in [0, 1).

    Returns:
        (epsilon, the order it comes from); epsilon is inf where there is no bound.

    Raises:
        InputError: a delta out of range, or not one rho >= 0 for every order.
    """
    require_delta(delta)
    orders, rho = _checked_curve(orders, rho)
    free = np.nonzero(delta * delta >= -np.expm1(-rho) * (1 + 1e-12))[0]
    if free.size:
        return 0.0, float(orders[free[0]])
    if delta == 0.0:
        return math.inf, float(orders[-1])
    slack = np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    epsilon = rho + slack
    best = int(np.argmin(epsilon))
    # The two terms may cancel: the allowance is on their size, not on the difference.
    rounding = 1e-14 * (abs(rho[best]) + abs(slack[best]))
    return max(0.0, _up(float(epsilon[best] + rounding))), float(orders[best])


def delta_from_curve(orders: Array, rho: Array, epsilon: float) -> float:
    """The smallest delta a Rényi curve implies at epsilon, rounded up and never above 1.

    min over a of exp((a-1)(rho - epsilon)) (1 - 1/a)^a / (a-1), and sqrt(1 - e^(-rho)) (the bound
    on the total variation distance, which no delta exceeds).

    Args:
        orders: [orders], each > 1.
        rho: [orders], >= 0, inf where there is no bound.
        epsilon: >= 0.

    Raises:
        InputError: a negative epsilon, or not one rho >= 0 for every order.
    """
    require(
        epsilon >= 0.0, f"epsilon={epsilon!r} is not a number >= 0; give a non-negative epsilon"
    )
    orders, rho = _checked_curve(orders, rho)
    if epsilon == math.inf:
        return 0.0 if bool(np.any(np.isfinite(rho))) else 1.0
    exponent = (orders - 1) * (rho - epsilon) + orders * np.log1p(-1 / orders) - np.log(orders - 1)
    rounding = 1e-14 * (orders - 1) * (rho + epsilon)
    log_delta = float(np.min(np.where(np.isfinite(rho), exponent + rounding, math.inf)))
    total_variation = math.sqrt(max(0.0, float(-np.expm1(-np.min(rho)))))
    return min(1.0, max(_up(math.exp(min(log_delta, 0.0))), 5e-324), _up(total_variation))


def renyi_epsilon(
    event: Event, delta: float, adjacency: str, orders: Sequence[float] | None = None
) -> tuple[float, float]:
    """The smallest epsilon an event's Rényi curve implies at delta, failures included.

    The grid grows upwards while its last order is the best one. Without orders, a coarse grid is
    searched first and the default grid only around its best order.

    Args:
        delta: in [0, 1).
        orders: in increasing order, each in (1, inf).

    Returns:
        (epsilon >= 0, best order); epsilon is inf where there is no bound.

    Raises:
        InputError: a delta out of range, or an unknown adjacency.
    """
    require_adjacency(adjacency)
    require_delta(delta)
    delta = given_success(delta, failures(event, adjacency))
    if unsupported_reason(event, adjacency) is not None or delta < 0.0:
        return math.inf, DEFAULT_ORDERS[0]
    grid, rho = _searched(
        event, delta, adjacency, COARSE_ORDERS if orders is None else tuple(orders)
    )
    epsilon, order = epsilon_from_curve(grid, rho, delta)
    if orders is None and 0.0 < epsilon < math.inf:
        best = int(np.searchsorted(grid, order))
        low, high = grid[max(0, best - 2)], grid[min(grid.size - 1, best + 2)]
        near = np.asarray([a for a in DEFAULT_ORDERS if low <= a <= high])
        values = _sum_of_curves(event, adjacency, tuple(near.tolist()))
        grid, rho = _merged(np.append(grid, near), np.append(rho, values))
        epsilon, order = epsilon_from_curve(grid, rho, delta)
    while order == grid[-1] and 0.0 < epsilon < math.inf and delta > 0 and order < _LARGEST_ORDER:
        more = _integers_up(math.ceil(order * _GROWTH), min(order * 4, _LARGEST_ORDER * _GROWTH))
        grid, rho = _merged(
            np.append(grid, more), np.append(rho, _sum_of_curves(event, adjacency, tuple(more)))
        )
        epsilon, order = epsilon_from_curve(grid, rho, delta)
    return epsilon, order


def renyi_delta(
    event: Event, epsilon: float, adjacency: str, orders: Sequence[float] | None = None
) -> float:
    """The smallest delta an event's Rényi curve implies at epsilon, failures included.

    Args:
        epsilon: >= 0.
        orders: each in (1, inf); `DEFAULT_ORDERS` if left out.

    Returns:
        a probability in [0, 1], rounded up.
    """
    failing = failures(event, adjacency)
    if unsupported_reason(event, adjacency) is not None or failing >= 1.0:
        return 1.0
    grid = DEFAULT_ORDERS if orders is None else tuple(orders)
    rest = delta_from_curve(np.asarray(grid), _sum_of_curves(event, adjacency, grid), epsilon)
    return min(1.0, (failing + (1 - failing) * rest) * (1 + 1e-12)) if failing > 0.0 else rest


def given_success(delta: float, failing: float) -> float:
    """The delta left if nothing is given away: delta' in delta = F + (1 - F) delta'.

    Args:
        delta: in [0, 1).
        failing: F, the probability that something is given away, in [0, 1].

    Returns:
        delta', rounded down; negative if F uses delta up.
    """
    if failing <= 0.0:
        return delta
    return (delta - failing) / (1 - failing) * (1 - 1e-12) if failing < min(1.0, delta) else -1.0


def _searched(
    event: Event, delta: float, adjacency: str, orders: tuple[float, ...]
) -> tuple[Array, Array]:
    """The part of the curve that can matter for epsilon: rho never falls, and epsilon(a) >= rho(a)
    - 1/(a-1).
    """
    grid, rho, best = np.zeros(0), np.zeros(0), math.inf
    for start in range(0, len(orders), _CHUNK):
        part = np.asarray(orders[start : start + _CHUNK])
        values = _sum_of_curves(event, adjacency, orders[start : start + _CHUNK])
        grid, rho = np.append(grid, part), np.append(rho, values)
        best = min(best, epsilon_from_curve(part, values, delta)[0])
        if best == 0.0 or values[-1] - 1 / (part[-1] - 1) > best:
            break
    return grid, rho


def _merged(orders: Array, rho: Array) -> tuple[Array, Array]:
    ascending = np.argsort(orders, kind="stable")
    return orders[ascending], rho[ascending]


def _checked_curve(orders: Array, rho: Array) -> tuple[Array, Array]:
    orders, rho = np.asarray(orders, dtype=float), np.asarray(rho, dtype=float)
    if orders.shape != rho.shape or orders.size == 0 or np.isnan(rho).any() or (rho < 0).any():
        raise InputError(
            "a Rényi curve needs one rho >= 0 for every order; take it from renyi_curve()"
        )
    return orders, rho


@lru_cache(maxsize=4096)
def curve_of(event: Event, orders: tuple[float, ...], adjacency: str) -> Array:
    """Rényi divergences of one release of a primitive event, kept for the next question.

    Args:
        orders: each in (1, inf).

    Returns:
        rho [orders], shared by all callers: not to be written to.
    """
    return np.asarray([event.renyi(order, adjacency) for order in orders])


def _up(value: float) -> float:
    return math.nextafter(value * (1 + 4e-16), math.inf) if value > 0 else value
