"""Sampling without replacement, a fixed number of units at a time: its dominating pair (Zhu, Dong
and Wang 2022).

M releases the sum of m of n vectors of norm <= C, drawn uniformly, plus N(0, s^2 C^2); q = m/n.
Under replace-one write, in units of C, M(D) = (1-q) R + q P1 and M(D') = (1-q) R + q Q1, where R is
the law given that the replaced unit is not drawn. For k >= 1 and k' = 1 + (k-1)/q,

    M(D) - k M(D') = q (P1 - k' ((1-b) R + b Q1)),   b = k/k'    (Balle, Barthe and Gaboardi 2018,
    Theorem 2),

so by convexity H_k(M(D)||M(D')) <= q ((1-b) H_k'(P1||R) + b H_k'(P1||Q1)). Drawing the unit into a
sample without it in place of a uniformly chosen one turns R into P1 and moves each sum by at most
2, and so does replacing it: both divergences are at most that of N(2, s^2) from N(0, s^2) by joint
convexity. Hence H_k <= h(k) := q H_k'(N(2)||N(0)), which is that of (1-q) N(0) + q N(2) from N(0).
For k < 1, H_k(P||Q) = 1 - k + k H_1/k(Q||P) <= 1 - k + k h(1/k).

Both bounds are attained (all others at -C; the two directions), so their largest value over k is a
convex curve and
belongs to a pair: its positive losses are those of (1-q) N(0) + q N(2) from N(0), its negative ones
mirror them (a loss -l has as much P mass as l has Q mass), and the rest is at 0. It bounds every
neighbouring pair, and under
composition loosely so: no single pair has both halves. What is certainly attained is either half,
that is, Poisson sampling at rate q with noise s/2 under add-remove.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from accounting.errors import CannotComputeError
from accounting.mechanisms.loss_grid import LossGrid
from accounting.mechanisms.poisson_gaussian import add_remove_pair, poisson_delta

Array = NDArray[np.floating[Any]]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_REACH = 13.0  # standard deviations beyond a mode that are integrated


@lru_cache(maxsize=8)
def fixed_size_loss_grid(rate: float, sigma: float, interval: float, tail: float) -> LossGrid:
    """Privacy loss of the dominating pair of one release under replace-one; it is symmetric.

    Args:
        rate: drawn units / all units, in (0, 1].
        sigma: noise standard deviation / C.
        interval: width of the grid, in loss, > 0.
        tail: probability that may lie beyond the grid at each end, in (0, 1).

    Raises:
        CannotComputeError: there is no noise, or the grid would be too large.
    """
    if sigma < 1e-100:
        raise CannotComputeError(f"noise_multiplier={sigma!r} hides nothing")
    pair = replace(add_remove_pair(rate, sigma / 2), anchor=0.0)
    drawn, mirrored = pair.loss_grids(interval, tail)
    positive, negative = slice(-drawn.first, None), slice(0, -mirrored.first)
    down = np.concatenate([mirrored.down[negative], drawn.down[positive]])
    # the rest, at loss 0
    down[-mirrored.first] += (1 - rate) * math.erf(math.sqrt(0.5) / sigma) * (1 + 1e-14)
    return replace(
        drawn,
        first=mirrored.first,
        up=np.concatenate([mirrored.up[negative], drawn.up[positive]]),
        down=down,
        below=mirrored.below,
    )


def fixed_size_delta(rate: float, sigma: float, epsilon: float, upper: bool = True) -> float:
    """delta of one release under replace-one: h(e^epsilon).

    Args:
        rate: drawn units / all units, in (0, 1].
        sigma: noise standard deviation / C.
        epsilon: >= 0.
        upper: round up, else down.

    Returns:
        a probability in [0, 1].
    """
    return poisson_delta(rate, sigma / 2, epsilon, upper)


def fixed_size_renyi(rate: float, sigma: float, order: float) -> float:
    """Rényi divergence of the dominating pair of one release under replace-one, rounded up.

    Args:
        rate: drawn units / all units, in (0, 1].
        sigma: noise standard deviation / C.
        order: > 1.

    Returns:
        rho >= 0; inf without noise.
    """
    if sigma < 1e-100:
        return math.inf
    log_excess = _log_excess(rate, sigma / 2, order)
    return float(np.logaddexp(0.0, log_excess)) / (order - 1) * (1 + 1e-14)


@lru_cache(maxsize=65536)
def _log_excess(rate: float, sigma: float, order: float) -> float:
    """log(A - 1), where sigma is noise / 2C, rounded up.

    With the loss l > 0 of (1-q) N(0) + q N(1) from N(0) at x > 1/2, A - 1 is the integral of
    N(x; 0, sigma^2) (e^((a-1) l) - 1) (e^l - e^((1-a) l)): what the atom at 0 lacks is subtracted
    inside.
    """
    edges = _panel_edges(rate, sigma, order)
    half = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half) + half * _NODES[None, :]
    exponent = (x - 0.5) / sigma / sigma
    small = np.log1p(rate * np.expm1(np.minimum(exponent, 600.0)))
    loss = np.where(exponent > 600.0, math.log(rate) + exponent, small)
    log_density = -0.5 * (x / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
    growth = order * loss + np.log(-np.expm1((1 - order) * loss)) + np.log(-np.expm1(-order * loss))
    values = log_density + growth
    largest = float(np.max(values))
    return (
        largest
        + math.log(float(np.sum(np.exp(values - largest) * half * _WEIGHTS[None, :])))
        + 1e-12
    )


def _panel_edges(rate: float, sigma: float, order: float) -> Array:
    """Panels about one standard deviation wide around every mode, finer where the loss bends and
    where it is 0.
    """
    bend = max(
        0.5, sigma * sigma * (math.log1p(-rate) - math.log(rate)) + 0.5 if rate < 1.0 else 0.5
    )
    top, reach = max(order, 2.0) + 1.0, _REACH * sigma
    spans = [(0.5, top + reach)]
    if top / sigma > 400:
        spans = [(max(0.5, mode - reach), mode + reach) for mode in (0.5, 1.0, 2.0, order, bend)]
    edges: list[Array] = [
        np.linspace(low, high, max(2, math.ceil((high - low) / sigma) + 1)) for low, high in spans
    ]
    widths = sigma * sigma / order * 2.0 ** np.arange(-1, 60)
    widths = np.concatenate([[0.0], widths[widths < sigma]])
    edges += [0.5 + widths, bend - widths, bend + widths]
    merged = np.unique(np.concatenate(edges))
    # A panel that bridges a gap between two spans sees only what is negligible at both of them.
    return merged[(merged >= 0.5) & (merged <= max(high for _, high in spans))]
