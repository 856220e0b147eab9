"""The exact privacy profile of unsampled Gaussians (Balle and Wang 2018, arXiv 1805.06530, Theorem
8).

delta(eps) = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) with mu = sqrt(sum of 1 /
noise_multiplier^2).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy.special import log_ndtr


def gaussian_delta(epsilon: float, mu: float, upper: bool = True) -> float:
    """delta of mu-GDP at epsilon, rounded up (or down); evaluated in log space. mu = inf: 1."""
    if mu == 0.0:
        return 0.0
    if math.isinf(mu) or math.isinf(epsilon):
        return 0.0 if math.isinf(epsilon) and not math.isinf(mu) else 1.0
    first = float(log_ndtr(mu / 2 - epsilon / mu))
    second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    gap = min(0.0, second - first)
    rounding = 1e-14 * (1 + abs(first) + abs(epsilon))
    change = -math.expm1(gap) + (rounding if upper else -rounding)
    return min(1.0, math.exp(first) * max(0.0, change))


def gaussian_epsilon(delta: float, mu: float, upper: bool = True) -> float:
    """The smallest epsilon >= 0 at which mu-GDP gives delta, from above (or below), by
    bisection.
    """
    return invert_profile(
        lambda epsilon: gaussian_delta(epsilon, mu, upper), delta, mu * mu / 2 + mu, upper
    )


def invert_profile(
    delta_at: Callable[[float], float], delta: float, guess: float, upper: bool = True
) -> float:
    """The smallest epsilon >= 0 with delta_at(epsilon) <= delta, from above (or below), by
    bisection.

    delta_at never increases; guess: where to start looking. inf if no such epsilon is found.
    """
    if delta_at(0.0) <= delta:
        return 0.0
    low, high = 0.0, guess
    if delta == 0.0 or math.isinf(high):
        return math.inf
    while delta_at(high) > delta:
        low, high = high, 2 * high + 1e-300
        if high > 1e300:
            return math.inf
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high if upper else low
