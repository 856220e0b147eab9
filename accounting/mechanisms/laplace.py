"""The Laplace mechanism: its privacy loss, its profile and its Rényi divergence.

With y = L1 sensitivity / scale, P = Lap(0, 1/y) and Q = Lap(1, 1/y) on a line where the sensitivity
is 1. The loss is y with P mass 1/2, -y with P mass e^(-y)/2, and in between it has the P density
e^((l - y)/2) / 4. The pair is symmetric, and 1 - H_k(P||Q) = min(1, k, sqrt(k) e^(-y/2)) =: m_y(k).

Vectors (derived here): spreading the same L1 distance over several coordinates reveals less. For
two of them, y = y1 + y2, the profile has E[m_y1(k e^(-L))] in place of m_y(k), with L the loss of
the second under P. Write z = log k and m = e^((z-y)/2). For |z| >= y it is m_y(k) itself, min(1,
k). Otherwise m_y(k) = m, and the expectation
is elementary: m_y1 is 1 for L < c = z - y1 and k e^(-L) for L > d = z + y1, and as L ranges over
[-y2, y2] it is m (1 + y2/2), m (1 + (y2-c)/4), m (1 + (y2+d)/4) or m (1 + (d-c)/4) if L passes
neither, c, d or both. That is at least m; more coordinates follow by induction. Less than the whole
distance is no worse, since m_y(k) falls with y.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from accounting.errors import CannotComputeError
from accounting.mechanisms.dominating_pair import LARGEST_PMF
from accounting.mechanisms.loss_grid import LossGrid, loss_grid_from_atoms

_ROUNDING = 1e-14  # relative, of a handful of elementary functions


def laplace_delta(reach: float, epsilon: float, upper: bool = True) -> float:
    """delta = 1 - e^((epsilon - y)/2) of one release, 0 from epsilon = y on.

    Args:
        reach: y, L1 sensitivity / scale of the noise, finite.
        epsilon: >= 0.
        upper: round up, else down.

    Returns:
        a probability in [0, 1].
    """
    value = -math.expm1(min(0.0, (epsilon - reach) / 2))
    # The two terms of the exponent may cancel: the allowance is on their size.
    allowance = (
        1e-15 * (epsilon + reach) * math.exp(min(0.0, (epsilon - reach) / 2))
        if epsilon < reach
        else 0.0
    )
    return (
        min(1.0, value * (1 + _ROUNDING) + allowance)
        if upper
        else max(0.0, value * (1 - _ROUNDING) - allowance)
    )


def laplace_renyi(reach: float, order: float) -> float:
    """Rényi divergence of one release, rounded up (Mironov 2017, arXiv 1702.07476, Proposition 6).

    A = (a e^((a-1) y) + (a-1) e^(-a y)) / (2a - 1); A - 1 is a sum of two positive terms, since
    those of first order cancel: (a g((a-1) y) + (a-1) g(-a y)) / (2a - 1) with g(t) = e^t - 1 - t.

    Args:
        reach: y, L1 sensitivity / scale of the noise, finite.
        order: > 1.

    Returns:
        rho in [0, y].
    """
    up, down = (order - 1) * reach, -order * reach
    if up > 600.0:
        log_moment = (
            up
            + math.log(order / (2 * order - 1))
            + math.log1p((order - 1) / order * math.exp(down - up))
        )
    else:
        log_moment = math.log1p((order * _bend(up) + (order - 1) * _bend(down)) / (2 * order - 1))
    return min(reach, log_moment / (order - 1) * (1 + _ROUNDING))


def laplace_loss_grid(reach: float, interval: float, tail: float) -> LossGrid:
    """Privacy loss of one release; both ends are kept exactly.

    A density proportional to e^(l/2) has the same P mass and Q mass as its whole P mass at its
    middle.

    Args:
        reach: y, L1 sensitivity / scale of the noise.
        interval: width of the grid, in loss, > 0.
        tail: probability charged for rounding; nothing is cut off.

    Raises:
        CannotComputeError: the grid would be too large.
    """
    if not 2 * reach / interval < LARGEST_PMF:
        raise CannotComputeError(
            f"one release would need {2 * reach / interval:.3g} grid points (limit {LARGEST_PMF})"
        )
    cells = max(1, math.ceil(2 * reach / interval))
    edges = np.maximum(-interval * np.arange(cells, -1, -1.0), -2 * reach)  # losses, counted from y
    masses = 0.5 * np.exp(edges[1:] / 2) * -np.expm1((edges[:-1] - edges[1:]) / 2)
    losses = [*((edges[1:] + edges[:-1]) / 2).tolist(), 0.0, -2 * reach]
    return replace(
        loss_grid_from_atoms(
            losses, [*masses.tolist(), 0.5, 0.5 * math.exp(-reach)], 0.0, interval, tail
        ),
        offset=reach,
    )


def _bend(t: float) -> float:
    """e^t - 1 - t, without cancellation."""
    if abs(t) > 0.5:
        return math.expm1(t) - t
    total = 1.0
    for k in range(16, 2, -1):
        total = 1.0 + t / k * total
    return t * t / 2 * total
