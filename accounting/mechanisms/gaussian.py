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
    """delta of mu-GDP at epsilon, evaluated in log space.

    Args:
        epsilon: >= 0.
        mu: >= 0; inf where everything is revealed.
        upper: round up, else down.

    Returns:
        a probability in [0, 1].
    """
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
    """The smallest epsilon at which mu-GDP gives delta, by bisection.

    Args:
        delta: in [0, 1).
        mu: >= 0.
        upper: from above, else from below.

    Returns:
        epsilon >= 0; inf at delta = 0 if mu > 0, and at mu = inf.
    """
    return invert_profile(
        lambda epsilon: gaussian_delta(epsilon, mu, upper), delta, mu * mu / 2 + mu, upper
    )


def invert_profile(
    delta_at: Callable[[float], float], delta: float, guess: float, upper: bool = True
) -> float:
    """The smallest epsilon >= 0 with delta_at(epsilon) <= delta, by bisection.

    Args:
        delta_at: a profile, which never increases.
        delta: in [0, 1].
        guess: epsilon >= 0 where to start looking.
        upper: from above, else from below.

    Returns:
        epsilon; inf if none is found, if the guess is inf, and at delta = 0 unless 0 meets it.
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
