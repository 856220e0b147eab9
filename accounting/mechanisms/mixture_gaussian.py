"""Gaussian mixtures: a unit adds a vector of norm <= c_i with probability p_i, and noise N(0, s^2)
is added.

Add-remove and zero-out: P = sum p_i N(c_i, s^2) against Q = N(0, s^2), in both directions
(Choquette-Choo, Ganesh, Steinke and Thakurta 2023, arXiv 2310.15526). Replace-one: P against sum
p_i N(-c_i, s^2). Both derived here as for
one Poisson sample: with contributions v_i, u_j the divergence is E_0[(sum p_i e^(l_v_i) - a sum p_j
e^(l_u_j))+] (or with one of the sums replaced by 1). It is convex in every leg; the mixed
derivative of two legs of the same sum is positive, that of legs of different sums negative. So it
grows with every |v_i|, |u_j| and every v_i.v_j, u_i.u_j, and falls with v_i.u_j: it is largest with
all v_i on one ray, all u_j on the opposite one, and full norms.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.errors import CannotComputeError
from accounting.mechanisms.dominating_pair import Mixture, Pair, log_likelihood_ratio
from accounting.mechanisms.loss_grid import LossGrid
from accounting.mechanisms.poisson_gaussian_moments import log_bend

Array = NDArray[np.floating[Any]]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_REACH = 13.0  # standard deviations beyond a mode that are integrated
_MOST_PANELS = 4000
_TABLE, _TABLE_REACH = 4096, 40.0


@lru_cache(maxsize=8)
def mixture_loss_grid(
    sizes: tuple[float, ...],
    chances: tuple[float, ...],
    sigma: float,
    adjacency: str,
    interval: float,
    tail: float,
) -> tuple[LossGrid, ...]:
    """Privacy loss of one release.

    Args:
        sizes: norms in units of C, each >= 0.
        chances: the probability of each, summing to 1.
        sigma: noise standard deviation / C.
        interval: width of the grid, in loss, > 0.
        tail: probability that may lie beyond the grid at each end, in (0, 1).

    Returns:
        (remove, add) directions, or one direction under replace-one.

    Raises:
        CannotComputeError: there is no noise, or the grid would be too large.
    """
    if sigma < 1e-100:
        raise CannotComputeError(f"noise_multiplier={sigma!r} hides nothing")
    pair = _pair(_components(sizes, chances), sigma, adjacency)
    directions = pair.loss_grids(interval, tail)
    return directions[:1] if adjacency == "replace-one" else directions


def _components(sizes: tuple[float, ...], chances: tuple[float, ...]) -> Mixture:
    """(probability, size) of what can happen, equal sizes together."""
    total: dict[float, float] = {}
    for size, chance in zip(sizes, chances, strict=True):
        if chance > 0.0:
            total[size] = total.get(size, 0.0) + chance
    return tuple((chance, size) for size, chance in sorted(total.items()))


def _pair(mixture: Mixture, sigma: float, adjacency: str) -> Pair:
    mirrored = adjacency == "replace-one"
    unsampled = next((chance for chance, size in mixture if size == 0.0), 0.0)
    lowest = math.log(unsampled) if unsampled > 0.0 and not mirrored else -math.inf

    def loss(x: Array) -> Array:
        ahead = log_likelihood_ratio(mixture, sigma, x)
        return ahead - log_likelihood_ratio(mixture, sigma, -x) if mirrored else ahead

    def slope(x: Array) -> Array:
        ahead = _mean_size(mixture, sigma, x)
        return (ahead + _mean_size(mixture, sigma, -x) if mirrored else ahead) / sigma / sigma

    largest = max(size for _, size in mixture)
    table = np.linspace(-largest - _TABLE_REACH * sigma, largest + _TABLE_REACH * sigma, _TABLE)
    known = np.maximum.accumulate(loss(table))

    def where(values: Array) -> Array:
        # Newton's method inside the cell of the table that holds the answer.
        after = np.clip(np.searchsorted(known, values), 1, _TABLE - 1)
        low, high = table[after - 1], table[after]
        x = np.clip(np.interp(values, known, table), low, high)
        for _ in range(12):
            excess = loss(x) - values
            low, high = np.where(excess < 0, x, low), np.where(excess > 0, x, high)
            with np.errstate(divide="ignore", invalid="ignore"):
                step = x - excess / slope(x)
            x = np.where(
                (step > low) & (step < high), step, np.where(excess == 0.0, x, (low + high) / 2)
            )
        return np.where(values <= lowest, -math.inf, x)

    q = tuple((chance, -size) for chance, size in mixture) if mirrored else ((1.0, 0.0),)
    return Pair(sigma, mixture, q, loss, where, anchor=lowest if lowest > -math.inf else 0.0)


def _mean_size(mixture: Mixture, sigma: float, x: Array) -> Array:
    """E[size | x]: the derivative of the log-likelihood ratio times sigma^2."""
    exponents = [
        math.log(chance) + size * (2 * x - size) / (2 * sigma) / sigma for chance, size in mixture
    ]
    largest = np.maximum.reduce(exponents)
    weights = [np.exp(exponent - largest) for exponent in exponents]
    total = sum(weight * size for weight, (_, size) in zip(weights, mixture, strict=True))
    return np.asarray(total / sum(weights))


@lru_cache(maxsize=65536)
def mixture_renyi(
    sizes: tuple[float, ...], chances: tuple[float, ...], sigma: float, order: float, adjacency: str
) -> float:
    """Rényi divergence of the dominating pair, the larger direction, rounded up.

    Args:
        sizes: norms in units of C, each >= 0, one of positive probability above 0.
        chances: the probability of each, summing to 1.
        sigma: noise standard deviation / C.
        order: > 1.

    Returns:
        rho >= 0; inf without noise, or where the integral needs too many nodes.
    """
    if sigma < 1e-100:
        return math.inf
    mixture, mirrored = _components(sizes, chances), adjacency == "replace-one"
    largest, least = mixture[-1][1], mixture[0][1]
    remove = (-largest if mirrored else 0.0, 2 * order * largest if mirrored else order * largest)
    add = ((1 - order) * least, largest)
    sides = [(remove, 1.0)] if mirrored else [(remove, 1.0), (add, -1.0)]
    worst = 0.0
    for (low, high), sign in sides:
        points = _panels(
            low - _REACH * sigma, high + _REACH * sigma, min(sigma, sigma * sigma / largest)
        )
        if points is None:
            return math.inf
        x, weights = points
        log_p = log_likelihood_ratio(mixture, sigma, x)
        log_q = log_likelihood_ratio(mixture, sigma, -x) if mirrored else np.zeros_like(x)
        base = log_q if sign > 0 else log_p
        values = -0.5 * (x / sigma) ** 2 + base + log_bend(sign * (log_p - log_q), order)
        peak = float(np.max(values))
        log_excess = peak + math.log(float(np.sum(np.exp(values - peak) * weights)))
        log_excess += 1e-11 - math.log(sigma * math.sqrt(2 * math.pi))
        worst = max(worst, float(np.logaddexp(0.0, log_excess)) / (order - 1))
    return math.nextafter(worst * (1 + 4e-16), math.inf)


def _panels(low: float, high: float, width: float) -> tuple[Array, Array] | None:
    """Gauss-Legendre nodes and weights of panels of at most this width; None if there would be too
    many.
    """
    count = math.ceil((high - low) / width)
    if count > _MOST_PANELS:
        return None
    edges = np.linspace(low, high, count + 1)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half) + half * _NODES[None, :], half * _WEIGHTS[None, :]
