"""What is known of a release that is only known to be (epsilon, delta)-DP.

It is dominated, in both directions, by one that gives everything away with probability delta and
otherwise answers a yes-no question truthfully with probability e^eps / (1 + e^eps) (Kairouz, Oh and
Viswanath 2015, arXiv 1311.0776).
Proof: k -> H_k(P||Q) is convex and falling, 1 at k = 0, at most delta at e^eps, and at most
1 - e^(-eps) + e^(-eps) delta at e^(-eps), by H_k(P||Q) = 1 - k + k H_1/k(Q||P). So it lies below
the broken line through these points that is delta from e^eps on, which is the curve of that
release: its loss is +inf, eps or -eps. The pair is symmetric.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.special import gammaln

from accounting.errors import CannotComputeError
from accounting.interval import Interval
from accounting.mechanisms.dominating_pair import LARGEST_PMF
from accounting.mechanisms.gaussian import invert_profile
from accounting.mechanisms.loss_grid import LossGrid, loss_grid_from_atoms

_ROUNDING = 1e-14  # relative, of a handful of elementary functions
_MOST_RELEASES = 2**20  # terms of the exact composition


def response_delta(stated: float, failure: float, epsilon: float, upper: bool = True) -> float:
    """delta of one (stated, failure)-DP release, in the worst case.

    Args:
        stated: epsilon of the statement, finite and >= 0.
        failure: delta of the statement, in [0, 1).
        epsilon: >= 0.
        upper: round up, else down.

    Returns:
        a probability in [0, 1].
    """
    gap = epsilon - stated
    lost = -math.expm1(min(gap, 0.0)) / (1 + math.exp(-stated))
    allowance = 1e-15 * (epsilon + stated) * math.exp(min(gap, 0.0)) if gap < 0.0 else 0.0
    sign = 1.0 if upper else -1.0
    value = failure + (1 - failure) * max(0.0, lost + sign * allowance)
    return min(1.0, value * (1 + sign * _ROUNDING))


def response_renyi(stated: float, order: float) -> float:
    """Rényi divergence of a release that is (stated, 0)-DP, in the worst case, rounded up.

    A - 1 = (e^((a-1) eps) - 1) (e^eps - e^((1-a) eps)) / (1 + e^eps), with positive factors.

    Args:
        stated: epsilon of the statement, finite and >= 0.
        order: > 1.

    Returns:
        rho in [0, stated].
    """
    if stated == 0.0:
        return 0.0
    log_excess = (
        (order - 1) * stated
        + math.log(-math.expm1((1 - order) * stated))
        + math.log(-math.expm1(-order * stated))
        - math.log1p(math.exp(-stated))
    )
    return min(stated, (float(np.logaddexp(0.0, log_excess)) / (order - 1)) * (1 + 2 * _ROUNDING))


def response_loss_grid(stated: float, failure: float, interval: float, tail: float) -> LossGrid:
    """Privacy loss of one (stated, failure)-DP release, in the worst case.

    Args:
        stated: epsilon of the statement, finite and >= 0.
        failure: delta of the statement, in [0, 1); mass at +inf.
        interval: width of the grid, in loss, > 0.
        tail: probability charged for rounding; nothing is cut off.

    Raises:
        CannotComputeError: the grid would be too large.
    """
    if not 2 * stated / interval < LARGEST_PMF:
        raise CannotComputeError(
            f"one release would need {2 * stated / interval:.3g} grid points (limit {LARGEST_PMF})"
        )
    truth = (1 - failure) / (1 + math.exp(-stated))
    lie = (1 - failure) / (1 + math.exp(min(stated, 700.0)))
    # On a grid through the larger loss, which is what matters.
    cells = loss_grid_from_atoms([0.0, -2 * stated], [truth, lie], failure, interval, tail)
    return replace(cells, offset=stated)


def response_epsilon(stated: float, failure: float, count: int, delta: float) -> Interval | None:
    """Epsilon at delta of several (stated, failure)-DP releases (arXiv 1311.0776, Theorem 3.3).

    Args:
        stated: epsilon of each statement, finite and >= 0.
        failure: delta of each statement, in [0, 1).
        count: number of releases, >= 1.
        delta: in [0, 1).

    Returns:
        both ends, equal up to rounding; None if there are more than 2^20 releases. They are inf
        where the failures alone exceed delta, and at delta = 0 if anything is revealed, where the
        lower one proves nothing.
    """
    if count > _MOST_RELEASES:
        return None
    failures = -math.expm1(count * math.log1p(-failure))
    lies = np.arange(count + 1)
    losses = (count - 2 * lies) * stated
    log_truth, log_lie = -math.log1p(math.exp(-stated)), -math.log1p(math.exp(-stated)) - stated
    chosen = gammaln(count + 1) - gammaln(lies + 1) - gammaln(count - lies + 1)
    masses = np.exp(chosen + (count - lies) * log_truth + lies * log_lie)
    rounding = 1e-14 * (1 + float(gammaln(count + 1)) + count * stated)

    def delta_at(epsilon: float, sign: float) -> float:
        beyond = losses > epsilon
        total = float(masses[beyond] @ -np.expm1(epsilon - losses[beyond])) * (1 + sign * rounding)
        return (failures + (1 - failures) * max(0.0, total)) * (1 + sign * 1e-12)

    ends = [
        math.inf
        if failures * (1 + sign * 1e-12) > delta
        else invert_profile(lambda e, sign=sign: delta_at(e, sign), delta, count * stated, sign > 0)  # type: ignore[misc]
        for sign in (-1.0, 1.0)
    ]
    lower, upper = ends[0] * (1 - 1e-12), ends[1] * (1 + 1e-12)
    return Interval("exact", lower, upper, upper)
