"""The Poisson-sampled Gaussian: its dominating pairs, their privacy loss and their Rényi
divergence.

Add-remove and zero-out: P = (1-q) N(0, s^2) + q N(1, s^2) against Q = N(0, s^2), in both
directions.

Replace-one: P against (1-q) N(0, s^2) + q N(-1, s^2). For replaced contributions v, u with |v|, |u|
<= 1 the divergence E_0[(q e^(l_v) - a q e^(l_u) - (a-1)(1-q))+], l_v = (v.x - |v|^2/2)/s^2, is the
price of a spread option. It grows with the variance of either leg (convexity) and falls with their
covariance (the mixed derivative is negative), for every a > 0; so it is largest at |v| = |u| = 1, v
= -u (derived here).
"""

from __future__ import annotations

import math
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.errors import CannotComputeError
from accounting.mechanisms.dominating_pair import Pair
from accounting.mechanisms.gaussian import gaussian_delta
from accounting.mechanisms.gaussian_mu import unsampled_mu
from accounting.mechanisms.loss_grid import LossGrid
from accounting.mechanisms.poisson_gaussian_moments import log_moment_excess, log_replaced_excess

Array = NDArray[np.floating[Any]]


@lru_cache(maxsize=8)
def poisson_loss_grid(
    rate: float, sigma: float, adjacency: str, interval: float, tail: float
) -> tuple[LossGrid, ...]:
    """Privacy loss of one release.

    Args:
        rate: q, in (0, 1].
        sigma: noise standard deviation / L2 sensitivity of one unit.
        interval: width of the grid, in loss, > 0.
        tail: probability that may lie beyond the grid at each end, in (0, 1).

    Returns:
        (remove, add) directions, or one direction under replace-one.

    Raises:
        CannotComputeError: there is no noise, or the grid would be too large.
    """
    if sigma < 1e-100:
        raise CannotComputeError(f"noise_multiplier={sigma!r} hides nothing")
    if adjacency == "replace-one":
        return (_replace_pair(rate, sigma).loss_grids(interval, tail)[0],)
    return add_remove_pair(rate, sigma).loss_grids(interval, tail)


def add_remove_pair(rate: float, sigma: float) -> Pair:
    """(1-q) N(0) + q N(1) against N(0), with the infimum of the loss on the grid.

    Args:
        rate: q, in (0, 1].
        sigma: noise standard deviation / L2 sensitivity of one unit, > 0.
    """
    p = ((1.0 - rate, 0.0), (rate, 1.0)) if rate < 1.0 else ((1.0, 1.0),)

    def where(values: Array) -> Array:
        if rate == 1.0:
            return sigma * sigma * values + 0.5
        with np.errstate(divide="ignore", invalid="ignore"):
            low = np.log(np.maximum(np.exp(np.minimum(values, 0.0)) - (1 - rate), 0.0) / rate)
            middle = np.log1p(np.maximum(np.expm1(np.minimum(values, 50.0)) / rate, -1.0))
            high = (
                values - math.log(rate) + np.log1p((rate - 1) * np.exp(-np.maximum(values, 30.0)))
            )
        exponent = np.where(values < -0.5, low, np.where(values > 40.0, high, middle))
        exponent = np.where(values <= math.log1p(-rate), -math.inf, exponent)
        return sigma * sigma * exponent + 0.5

    loss = partial(_sampled_loss, rate=rate, sigma=sigma)
    return Pair(
        sigma, p, ((1.0, 0.0),), loss, where, anchor=math.log1p(-rate) if rate < 1.0 else 0.0
    )


def _sampled_loss(x: Array, rate: float, sigma: float) -> Array:
    """log of the density ratio ((1-q) N(0, s^2) + q N(1, s^2)) / N(0, s^2) at each x."""
    exponent = (x - 0.5) / sigma / sigma
    if rate == 1.0:
        return exponent
    inside = np.log1p(rate * np.expm1(np.minimum(exponent, 600.0)))
    return np.where(exponent > 600.0, math.log(rate) + exponent, inside)


def _replace_pair(rate: float, sigma: float) -> Pair:
    def loss(x: Array) -> Array:
        return _sampled_loss(x, rate, sigma) - _sampled_loss(-x, rate, sigma)

    def where(values: Array) -> Array:
        # With y = e^(x/s^2) and A = e^(-1/(2 s^2)) the loss is that of a quadratic in y, whose root
        # is x = s^2 (loss/2 + asinh((1-q) sinh(loss/2) / (q A))).
        half = values / 2
        log_scale = (
            (math.log1p(-rate) if rate < 1.0 else -math.inf) - math.log(rate) + 0.5 / sigma / sigma
        )
        size = np.abs(half)
        with np.errstate(divide="ignore"):
            log_sinh = np.where(
                size > 20.0, size - math.log(2.0), np.log(np.sinh(np.minimum(size, 20.0)))
            )
            argument = log_scale + log_sinh
            root = np.where(
                argument > 300.0,
                argument + math.log(2.0),
                np.arcsinh(np.exp(np.minimum(argument, 300.0))),
            )
        return sigma * sigma * (half + np.sign(half) * root)

    p = ((1.0 - rate, 0.0), (rate, 1.0)) if rate < 1.0 else ((1.0, 1.0),)
    return Pair(sigma, p, tuple((weight, -mean) for weight, mean in p), loss, where)


def poisson_delta(rate: float, sigma: float, epsilon: float, upper: bool = True) -> float:
    """delta of one release under add-remove.

    Remove: q d(log(1 + (e^eps - 1)/q)), with d the profile of the unsampled release; add: c d(log(q
    e^eps / c)), c = 1 - e^eps (1-q), and 0 where c <= 0.

    Args:
        rate: q, in (0, 1].
        sigma: noise standard deviation / L2 sensitivity of one unit.
        epsilon: >= 0.
        upper: round up, else down.

    Returns:
        a probability in [0, 1].
    """
    mu = unsampled_mu(sigma, "add-remove")
    high = epsilon - math.log(rate) + math.log1p((rate - 1) * math.exp(-epsilon))
    inner = high if epsilon > 1.0 else math.log1p(math.expm1(epsilon) / rate)
    remove = rate * gaussian_delta(inner, mu, upper)
    kept = rate - math.expm1(min(epsilon, 700.0)) * (1 - rate)  # c
    if kept <= 0.0:
        return remove
    return max(remove, kept * gaussian_delta(math.log(rate) + epsilon - math.log(kept), mu, upper))


def poisson_renyi(rate: float, sigma: float, order: float, adjacency: str) -> float:
    """Rényi divergence of one release, rounded up.

    The remove direction is the larger one at every order (Mironov, Talwar and Zhang 2019, arXiv
    1908.10530).

    Args:
        rate: q, in [0, 1].
        sigma: noise standard deviation / L2 sensitivity of one unit.
        order: > 1.

    Returns:
        rho >= 0; inf without noise, unless the rate is 0.
    """
    if rate == 0.0:
        return 0.0
    if sigma < 1e-100:
        return math.inf
    if adjacency == "replace-one":
        return _replace_one(rate, sigma, order)
    return _add_remove(rate, sigma, order)


def _add_remove(rate: float, sigma: float, order: float) -> float:
    if rate == 1.0:
        return _up(order / (2 * sigma) / sigma)
    # log A = log(1 + (A - 1)); logaddexp keeps all digits of a tiny A - 1.
    return _up(float(np.logaddexp(0.0, log_moment_excess(rate, sigma, order))) / (order - 1))


def _replace_one(rate: float, sigma: float, order: float) -> float:
    """The exact moment of the dominating pair (see above), which is symmetric."""
    if rate == 1.0:
        return _up(2 * order / sigma / sigma)
    return _up(float(np.logaddexp(0.0, log_replaced_excess(rate, sigma, order))) / (order - 1))


def _up(value: float) -> float:
    return math.nextafter(value * (1 + 4e-16), math.inf) if value > 0 else value
