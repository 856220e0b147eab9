"""Balls in bins: each unit is in one of T batches of an epoch, uniformly (Chua et al. 2025, arXiv
2412.16802).

The dominating pair of an epoch is P = mean over t of N(e_t, s^2 I_T) against Q = N(0, s^2 I_T), in
both directions (Choquette-Choo et al. 2024, arXiv 2410.06266). With W = P/Q = (Y_1 + ... + Y_T) / T
for independent lognormal Y_t = exp((2 x_t - 1)/(2 s^2)) the Rényi moments are, exactly (both
derived here),

remove: E_Q[W^a] = a! [x^a] (sum_k E[Y^k] x^k / k!)^T / T^a at integer a, E[Y^k] = exp(k (k-1) / (2
s^2)); between integers log E_Q[W^a] is at most its chord, being convex in a, and it is 0 at a = 1;

add: E_Q[W^(1-a)] = integral over u of e^(u b) E[exp(-Y e^u / T)]^T du / Gamma(b) with b = a - 1,
which is x^(-b) = integral of l^(b-1) e^(-l x) dl / Gamma(b).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from accounting.interval import Interval

Array = NDArray[np.floating[Any]]

_LARGEST_ORDER = 192
_SEED = 20_250_117  # of the simulation: the same question has the same answer
_LARGEST_DRAWS = 6 * 10**7  # normal variates of one direction: a few seconds
_MOST_SAMPLES = 2**21
_LEAST_HITS = 40.0  # samples times delta below which nothing useful can be verified
_GRID = 96  # values of epsilon that are tried


def allocation_renyi(bins: int, sigma: float, order: float) -> float:
    """Rényi divergence of one epoch, the larger direction, rounded up.

    Args:
        bins: batches of an epoch, >= 1.
        sigma: noise standard deviation / L2 sensitivity of one unit.
        order: > 1.

    Returns:
        rho >= 0; inf above order 192 and without noise.
    """
    if sigma < 1e-100 or order > _LARGEST_ORDER:
        return math.inf
    moments = _remove_moments(bins, sigma)
    low = math.floor(order)
    share = order - low
    remove = (1 - share) * float(moments[low]) + share * float(
        moments[min(low + 1, _LARGEST_ORDER)]
    )
    # Divergences never fall with the order, and the integral is well-behaved from b = 1 on.
    b = max(order - 1, 1.0)
    add = _add_moment(bins, sigma, b) / b
    return max(remove / (order - 1), add) * (1 + 1e-12) + 1e-12 / (order - 1)


@lru_cache(maxsize=32)
def _remove_moments(bins: int, sigma: float) -> Array:
    """log E_Q[W^a] for a = 0 .. the largest order, by powers of a power series in log space."""
    k = np.arange(_LARGEST_ORDER + 1, dtype=float)
    series = k * (k - 1) / (2 * sigma) / sigma - gammaln(k + 1)
    power, factor, left = np.where(k == 0, 0.0, -math.inf), series, bins
    while left:
        power = _product(power, factor) if left & 1 else power
        left >>= 1
        factor = _product(factor, factor) if left else factor
    return np.maximum(power + gammaln(k + 1) - k * math.log(bins), 0.0)


def _product(first: Array, second: Array) -> Array:
    """Logs of the coefficients of a product of two power series."""
    result = np.empty_like(first)
    for n in range(first.size):
        terms = first[: n + 1] + second[n::-1]
        largest = float(np.max(terms))
        result[n] = (
            largest + math.log(float(np.sum(np.exp(terms - largest))))
            if largest > -math.inf
            else -math.inf
        )
    return result


@lru_cache(maxsize=32)
def _log_transform(bins: int, sigma: float) -> tuple[Array, Array]:
    """(u, T log E[exp(-Y e^u / T)]) on an even grid of u that reaches far beyond what matters."""
    spread = 1 / sigma
    # W^-b is largest where all T coordinates are small together: that far to the left the grid must
    # reach.
    deepest = _LARGEST_ORDER * spread / bins
    z = np.arange(-14.0 - deepest, 12.0, 0.02)
    log_weights = -0.5 * z * z + math.log(0.02 / math.sqrt(2 * math.pi))
    weights = np.exp(log_weights)
    log_y = z * spread - spread * spread / 2 - math.log(bins)
    u = np.arange(-60.0, 60.0 + spread * (spread + 14 + deepest), min(0.05, 0.1 * spread + 0.01))
    return u, bins * np.array(
        [_log_expectation(np.exp(np.minimum(log_y + v, 700.0)), weights, log_weights) for v in u]
    )


def _log_expectation(exponent: Array, weights: Array, log_weights: Array) -> float:
    """log of the weighted sum of e^-exponent; all digits of what it lacks to 1 are kept."""
    missing = float(weights @ -np.expm1(-exponent))
    if missing < 0.5:
        return math.log1p(-missing)
    terms = log_weights - exponent
    largest = float(np.max(terms))
    return largest + math.log(float(np.sum(np.exp(terms - largest))))


def _add_moment(bins: int, sigma: float, b: float) -> float:
    """log E_Q[W^-b], b > 0, or the unsampled release's where that is smaller (joint convexity)."""
    unsampled = b * (b + 1) / (2 * sigma) / sigma
    u, log_transform = _log_transform(bins, sigma)
    values = u * b + log_transform
    peak = int(np.argmax(values))
    # The range must hold the integrand; what lies beneath it is bounded by a geometric series.
    if values[0] > values[peak] - 30 or values[-1] > values[peak] - 30:
        return unsampled
    total = float(np.sum(np.exp(values - values[peak]))) * (u[1] - u[0])
    return min(
        unsampled, float(values[peak]) + math.log(total) - float(gammaln(b)) + 1e-9 * min(1.0, b)
    )


def simulated_epsilon(bins: int, sigma: float, count: int, delta: float) -> Interval | None:
    """Epsilon at delta of several epochs by Monte Carlo.

    X = (1 - e^(eps - L))+ lies in [0, 1]; for n samples with mean m, the true mean exceeds u > m
    with n KL(m, u) >= log(1/b) with probability at most b (Hoeffding 1963). All values of a grid of
    epsilons, fixed beforehand, are bounded in both directions with b = beta / (2 * grid), so that
    with probability 1 - beta all bounds hold, also the one that is chosen afterwards. beta = delta
    / 20 is added to delta: a run whose accountant errs reveals at most everything (as in Wang,
    Mahloujifar, Wu, Jia and Mittal 2023, arXiv 2304.01244).

    Args:
        bins: batches of an epoch, >= 1.
        sigma: noise standard deviation / L2 sensitivity of one unit.
        count: number of epochs, >= 1.
        delta: in (0, 1).

    Returns:
        an interval without a lower end; None without noise, or where the affordable number of
        samples verifies nothing.
    """
    samples = min(_MOST_SAMPLES, _LARGEST_DRAWS // (bins * count))
    if samples * delta < _LEAST_HITS or sigma < 1e-100:
        return None
    beta = delta / 20
    # beyond the unsampled release's loss at any such delta
    largest = count * (1 / sigma / sigma / 2 + 12 / sigma)
    grid = np.concatenate([[0.0], np.geomspace(1e-3, max(largest, 2e-3), _GRID - 1)])
    means = np.maximum(
        *(_mean_divergences(bins, sigma, count, samples, sign, grid) for sign in (1, -1))
    )
    log_b = math.log(2 * _GRID / beta)
    passed = [
        i for i, mean in enumerate(means) if _upper(float(mean), log_b / samples) + beta <= delta
    ]
    if not passed:
        return None
    plain = float(grid[int(np.argmax(means <= delta))])
    note = (
        f"Monte Carlo with {samples} samples a direction; a failure probability of {beta:.2g} is "
        "part of delta"
    )
    return Interval("monte-carlo", None, plain, float(grid[passed[0]]), note)


def _mean_divergences(
    bins: int, sigma: float, count: int, samples: int, sign: int, grid: Array
) -> Array:
    """Mean of (1 - e^(eps - L))+ for every eps, under P (sign 1) or under Q with the loss negated
    (sign -1).
    """
    generator = np.random.Generator(np.random.Philox([_SEED, sign + 1]))
    total, done = np.zeros(grid.size), 0
    block = max(1, min(samples, 2**22 // bins))
    while done < samples:
        size = min(block, samples - done)
        loss = np.zeros(size)
        for _ in range(count):
            x = generator.normal(0.0, sigma, (size, bins))
            if sign > 0:
                x[:, 0] += 1.0
            exponent = (2 * x - 1) / (2 * sigma) / sigma
            largest = exponent.max(axis=1)
            loss += largest + np.log(np.exp(exponent - largest[:, None]).mean(axis=1))
        loss *= sign
        total += [float(np.sum(-np.expm1(np.minimum(epsilon - loss, 0.0)))) for epsilon in grid]
        done += size
    return total / samples


def _upper(mean: float, budget: float) -> float:
    """The largest u with KL(mean, u) <= budget, from above (bisection)."""
    low, high = mean, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _divergence(mean, middle) <= budget else (low, middle)
    return high


def _divergence(m: float, u: float) -> float:
    first = m * math.log(m / u) if m > 0.0 else 0.0
    return first + ((1 - m) * math.log((1 - m) / (1 - u)) if u < 1.0 else math.inf)
