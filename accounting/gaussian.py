"""The exact privacy profile of unsampled Gaussians (Balle and Wang 2018, arXiv 1805.06530, Theorem 8).

delta(eps) = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) with mu = sqrt(sum of 1 / noise_multiplier^2).
"""

from __future__ import annotations

import math

from scipy.special import log_ndtr


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta of mu-GDP at epsilon, rounded up; evaluated in log space."""
    if mu == 0.0:
        return 0.0
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    gap = min(0.0, second - first)
    rounding = 1e-14 * (1 + abs(first) + abs(epsilon))
    return min(1.0, math.exp(first) * (-math.expm1(gap) + rounding))


def gaussian_epsilon(delta: float, mu: float) -> float:
    """The smallest epsilon >= 0 at which mu-GDP gives delta, from above (bisection, upper end)."""
    if gaussian_delta(0.0, mu) <= delta:
        return 0.0
    if delta == 0.0:
        return math.inf
    low, high = 0.0, mu * mu / 2 + mu
    while gaussian_delta(high, mu) > delta:
        low, high = high, 2 * high + 1e-300
        if high > 1e300:
            return math.inf
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if gaussian_delta(middle, mu) > delta else (low, middle)
    return high
