"""The smallest noise, or the most steps, within a budget. The returned end is always the safe one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

from accounting.accountant import make_accountant
from accounting.errors import InvalidInput, require
from accounting.events import PoissonGaussian, SelfComposed, require_adjacency
from accounting.renyi import COARSE_ORDERS, renyi_epsilon

_SMALLEST, _LARGEST = 1e-3, 1e6
_TOLERANCE = 2e-4  # how far below the target the achieved epsilon may stay, relative
_MOST_STEPS = 2**40


@dataclass(frozen=True)
class Calibration:
    """A noise multiplier whose epsilon, as achieved by the named accountant, is within the target."""

    noise_multiplier: float
    epsilon: float
    delta: float
    steps: int
    sample_rate: float
    accountant: str
    adjacency: str


def calibrate_noise_multiplier(
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    *,
    adjacency: str,
    accountant: str = "prv",
) -> Calibration:
    """The smallest noise multiplier that keeps `steps` Poisson-sampled Gaussian releases within epsilon.

    Bisection on log sigma; the upper end is returned, so the achieved epsilon never exceeds the target and is
    normally within 1e-3 of it. Raises InvalidInput on impossible input or an unreachable budget.
    """
    _require_budget(epsilon, delta, sample_rate, adjacency)
    integral = isinstance(steps, Integral) and not isinstance(steps, bool)
    require(integral and steps >= 1, f"steps={steps!r} is not an integer >= 1; give the number of releases")

    def achieved(sigma: float) -> float:
        event = PoissonGaussian(sample_rate, sigma)
        return make_accountant(accountant, adjacency).quote(event, int(steps), delta).upper

    def cheap(sigma: float) -> float:
        event = SelfComposed(PoissonGaussian(sample_rate, sigma), int(steps))
        return renyi_epsilon(event, delta, adjacency, COARSE_ORDERS)[0]

    start = _renyi_bracket(cheap, epsilon, delta)
    sigma, spent = _bisect(achieved, epsilon, start)
    if not spent <= epsilon:
        raise AssertionError(f"calibration returned epsilon {spent!r} above its target {epsilon!r}")
    return Calibration(sigma, spent, delta, int(steps), sample_rate, accountant, adjacency)


def most_steps(
    epsilon: float,
    delta: float,
    sample_rate: float,
    noise_multiplier: float,
    *,
    adjacency: str,
    accountant: str = "prv",
) -> int:
    """The largest number of Poisson-sampled Gaussian releases that stays within epsilon; 0 if none does."""
    _require_budget(epsilon, delta, sample_rate, adjacency)
    event = PoissonGaussian(sample_rate, noise_multiplier)

    def fits(count: int) -> bool:
        return make_accountant(accountant, adjacency).quote(event, count, delta).upper <= epsilon

    low, high = 0, 1
    while fits(high):
        low, high = high, 4 * high
        if high > _MOST_STEPS:
            raise InvalidInput(f"more than {low} steps fit into epsilon={epsilon!r}; set the number of steps yourself")
    while high - low > 1:
        middle = math.isqrt(low * high) if low > 0 and high > 2 * low else (low + high) // 2
        middle = min(max(middle, low + 1), high - 1)
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _require_budget(epsilon: float, delta: float, sample_rate: float, adjacency: str) -> None:
    require(0.0 < epsilon < math.inf, f"epsilon={epsilon!r} is no budget; give a finite number above 0")
    require(0.0 < delta < 1.0, f"delta={delta!r} is not in (0, 1); give less than 1 / data set size")
    require(0.0 < sample_rate <= 1.0, f"sample_rate={sample_rate!r} is not in (0, 1]; give batch / data set size")
    require_adjacency(adjacency)


def _renyi_bracket(cheap: Callable[[float], float], epsilon: float, delta: float) -> float:
    """A noise multiplier near, and normally just above, the answer, by the Rényi bound alone."""
    low, high = _SMALLEST, 1.0
    while cheap(high) > epsilon:
        low, high = high, 4 * high
        if high > _LARGEST:
            raise InvalidInput(
                f"epsilon={epsilon!r} at delta={delta!r} needs a noise multiplier above {_LARGEST:g}; "
                "allow a larger epsilon, fewer steps or a smaller sample rate"
            )
    while high > 1.02 * low and high > _SMALLEST:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cheap(middle) > epsilon else (low, middle)
    return high


def _bisect(achieved: Callable[[float], float], epsilon: float, start: float) -> tuple[float, float]:
    """(a noise multiplier within epsilon and hardly larger than needed, its epsilon).

    A bracket is kept throughout: low always exceeds epsilon, high never does. The next point is where log
    epsilon would meet the target on a straight line in log sigma, kept well inside the bracket.
    """
    high, spent = start, achieved(start)
    while spent > epsilon:
        high *= 1.05
        require(high <= 2 * _LARGEST, f"epsilon={epsilon!r} is not reachable; allow a larger epsilon")
        spent = achieved(high)
    low, excess = high / 1.1, achieved(high / 1.1)
    while excess <= epsilon and low > _SMALLEST:
        high, spent = low, excess
        low /= 1.2
        excess = achieved(low)
    while high > (1 + 1e-7) * low and spent < epsilon * (1 - _TOLERANCE):
        middle = low * (high / low) ** _fraction(excess, spent, epsilon * (1 - _TOLERANCE / 2))
        found = achieved(middle)
        if found > epsilon:
            low, excess = middle, found
        else:
            high, spent = middle, found
    return high, spent


def _fraction(excess: float, spent: float, aim: float) -> float:
    """Where between low (0) and high (1) epsilon should meet the aim."""
    if spent <= 0.0 or not excess < math.inf or excess <= spent:
        return 0.5
    return min(0.95, max(0.05, math.log(excess / aim) / math.log(excess / spent)))
