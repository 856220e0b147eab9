"""Moments of the Poisson-sampled Gaussian in log space, without cancellation.

A(a) = E_{x ~ N(0, s^2)} [(1 + u(x))^a] with u(x) = q (e^((2x-1)/(2 s^2)) - 1) and E[u] = 0. What is
computed is log(A - 1), from sums of positive terms only, so that a divergence of 1e-12 keeps its
digits.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Array = NDArray[np.floating[Any]]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_REACH = 13.0  # standard deviations kept around each mode: beyond them lies less than 1e-36 of it


@lru_cache(maxsize=65536)
def log_moment_excess(rate: float, noise_multiplier: float, order: float) -> float:
    """log(A - 1), rounded up.

    Args:
        rate: q, in (0, 1).
        noise_multiplier: s, > 0.
        order: a > 1.
    """
    if order == math.floor(order) and order <= 2**20:
        return _binomial(rate, noise_multiplier, int(order))
    return _quadrature(rate, noise_multiplier, order)


def _binomial(rate: float, noise_multiplier: float, order: int) -> float:
    """A - 1 = sum over k >= 2 of C(a, k) (1-q)^(a-k) q^k (e^((k^2-k)/(2 s^2)) - 1): every term
    positive.

    The same sum without the exponential is 1, and the terms k = 0, 1 vanish (arXiv 1908.10530,
    section 3.3).
    """
    k, choose = _log_binomials(order)
    growth = k * (k - 1) / (2 * noise_multiplier) / noise_multiplier
    log_growth = np.where(growth > 40, growth, np.log(np.expm1(np.minimum(growth, 40))))
    terms = choose + k * math.log(rate) + (order - k) * math.log1p(-rate) + log_growth
    rounding = 1e-15 * (8 + float(gammaln(order + 1)) + float(np.max(np.abs(terms))))
    largest = float(np.max(terms))
    return largest + math.log(float(np.sum(np.exp(terms - largest)))) + rounding


@lru_cache(maxsize=256)
def _log_binomials(order: int) -> tuple[Array, Array]:
    """(k, log C(order, k)) for k = 2 .. order."""
    k = np.arange(2, order + 1, dtype=float)
    return k, gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)


@lru_cache(maxsize=65536)
def log_replaced_excess(rate: float, noise_multiplier: float, order: float) -> float:
    """log(A - 1) for (1-q) N(0) + q N(1) against (1-q) N(0) + q N(-1), rounded up.

    Args:
        rate: q, in (0, 1).
        noise_multiplier: s, > 0.
        order: a > 1.
    """
    edges = _panel_edges(rate, noise_multiplier, order, mirrored=True)
    x, weights = _nodes(edges)
    log_p, log_q = (_log_sampled(sign * x, rate, noise_multiplier) for sign in (1.0, -1.0))
    return _log_integral(
        _log_normal(x, noise_multiplier) + log_q + log_bend(log_p - log_q, order), weights
    )


def _quadrature(rate: float, noise_multiplier: float, order: float) -> float:
    """A - 1 = E[(1+u)^a - 1 - a u], an integral of a non-negative function (derived: E[u] = 0)."""
    x, weights = _nodes(_panel_edges(rate, noise_multiplier, order))
    bend = log_bend(_log_sampled(x, rate, noise_multiplier), order)
    return _log_integral(_log_normal(x, noise_multiplier) + bend, weights)


def _nodes(edges: Array) -> tuple[Array, Array]:
    """Gauss-Legendre nodes and weights of every panel."""
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half) + half * _NODES[None, :], half * _WEIGHTS[None, :]


def _log_normal(x: Array, noise_multiplier: float) -> Array:
    return -0.5 * (x / noise_multiplier) ** 2 - math.log(noise_multiplier * math.sqrt(2 * math.pi))


def _log_integral(log_values: Array, weights: Array) -> float:
    largest = float(np.max(log_values))
    return largest + math.log(float(np.sum(np.exp(log_values - largest) * weights))) + 1e-12


def _log_sampled(x: Array, rate: float, noise_multiplier: float) -> Array:
    """log of the density ratio ((1-q) N(0, s^2) + q N(1, s^2)) / N(0, s^2)."""
    exponent = (x - 0.5) / noise_multiplier / noise_multiplier
    u = np.maximum(rate * np.expm1(np.minimum(exponent, 700.0)), -rate)
    return np.where(exponent > 700.0, math.log(rate) + exponent, np.log1p(u))


def log_bend(log_ratio: Array, order: float) -> Array:
    """log((1+u)^a - 1 - a u); the form is chosen by the size of u to keep all digits.

    Args:
        log_ratio: log(1+u), any shape.
        order: a > 1.

    Returns:
        the logs, of the same shape; -inf where u = 0.
    """
    u = np.expm1(np.minimum(log_ratio, 700.0))
    power = (order - 1) * log_ratio
    share = (order - 1) * -np.expm1(-np.maximum(log_ratio, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        below = np.log(np.expm1(np.minimum(order * log_ratio, 0.0)) - order * np.minimum(u, 0.0))
        direct = log_ratio + np.log(np.expm1(np.minimum(power, 40.0)) - share)
        large = log_ratio + power + np.log1p(-(1 + share) * np.exp(-np.maximum(power, 40.0)))
        small = np.log(_bend_series(u, order))
    bent = np.where(log_ratio < 0.0, below, np.where(power > 40.0, large, direct))
    return np.where(order * np.abs(u) < 0.1, small, bent)


def _bend_series(u: Array, order: float) -> Array:
    """(1+u)^a - 1 - a u by its binomial series, for a |u| < 0.1 (other entries are not used)."""
    u = np.where(order * np.abs(u) < 0.1, u, 0.0)
    total = np.ones_like(u)
    for k in range(16, 2, -1):
        total = 1 + (order - k + 1) / k * u * total
    return order * (order - 1) / 2 * u * u * total


def _panel_edges(
    rate: float, noise_multiplier: float, order: float, mirrored: bool = False
) -> Array:
    """Panels about one standard deviation wide around every mode, finer around the crossover z0."""
    s = noise_multiplier
    z0 = s * s * (math.log1p(-rate) - math.log(rate)) + 0.5
    top, bottom = (2 * max(order, 2.0), -1.0) if mirrored else (max(order, 2.0), 0.0)
    reach = _REACH * s
    modes = (0.0, 1.0, 2.0, order, z0, *((-1.0, 2 * order - 1, -z0) if mirrored else ()))
    # Between far-away modes a piece of the integrand is a Gaussian of width s cut off at z0.
    one_span = top / s <= 400
    spans = (
        [(bottom - reach, top + reach)]
        if one_span
        else [(mode - reach, mode + reach) for mode in modes]
    )
    edges: list[Array] = [
        np.linspace(low, high, max(2, math.ceil((high - low) / s) + 1)) for low, high in spans
    ]
    # log(1 + u) bends over a width of s^2 at z0: panels grow from there.
    widths = s * s * 2.0 ** np.arange(-1, 40)
    widths = np.concatenate([[0.0], widths[widths < s]])
    edges += [
        bend + side for bend in ((z0, -z0) if mirrored else (z0,)) for side in (-widths, widths)
    ]
    merged = np.unique(np.concatenate(edges))
    # A panel that bridges a gap between two spans sees only what is negligible at both of them.
    return merged[
        (merged >= min(low for low, _ in spans)) & (merged <= max(high for _, high in spans))
    ]
