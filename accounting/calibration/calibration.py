"""The smallest noise, the largest sample or the most steps within a budget. The returned end is
always the safe one.

A result meets its target as the named accountant computes it, and would not if it were 1e-3 (or one
step) less safe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from scipy.special import ndtri

from accounting.accountant import Accountant, booked, make_accountant
from accounting.calibration.bracketing import Search
from accounting.errors import require
from accounting.events import PoissonGaussian, SelfComposed, require_adjacency, require_count
from accounting.meaning.tradeoff import advantage, largest_true_positive_rate
from accounting.rdp.curve import COARSE_ORDERS, renyi_epsilon

_SMALLEST, _LARGEST = 1e-3, 2e6  # noise multipliers
_SMALLEST_RATE = 1e-15
_LOOSENESS = 1.13  # of the Rényi bound, typically: where the search for a tight one starts
_MOST_STEPS = 2**40


@dataclass(frozen=True)
class Calibration:
    """A noise multiplier and a sample rate whose epsilon, as computed by the accountant, is within
    the target.

    Attributes:
        noise_multiplier: noise standard deviation / L2 sensitivity of one unit.
        epsilon: what the accountant computes at `delta`, at most the target.
        delta: in (0, 1).
        steps: number of releases.
        sample_rate: probability that a unit is in a sample, in (0, 1].
        accountant: "prv" or "rdp".
        adjacency: the neighbouring relation.
    """

    noise_multiplier: float
    epsilon: float
    delta: float
    steps: int
    sample_rate: float
    accountant: str
    adjacency: str


class Target(Protocol):
    """What a calibration may aim at: any figure that grows with what is revealed."""

    @property
    def value(self) -> float:
        """What the figure must not exceed."""

    def achieved(self, accountant: Accountant) -> float:
        """An upper bound on the figure for everything charged, in the unit of `value`."""

    def as_mu(self, figure: float) -> float:
        """mu of the Gaussian mechanism with this figure: nearly inverse to the noise.

        Args:
            figure: in the unit of `value`.
        """


@dataclass(frozen=True)
class Advantage:
    """No test's true positive rate exceeds its false positive rate by more than this.

    Attributes:
        value: a difference of probabilities, in (1e-9, 1).
    """

    value: float

    def __post_init__(self) -> None:
        valid = 1e-9 < self.value < 1.0
        require(
            valid,
            f"advantage {self.value!r} is not in (1e-9, 1); 0.1 lets 55 % of guesses be right",
        )

    def achieved(self, accountant: Accountant) -> float:
        """delta at epsilon 0, in [0, 1]."""
        return advantage(accountant)

    def as_mu(self, figure: float) -> float:
        """2 Phi^-1((1 + advantage) / 2)."""
        return 2 * float(ndtri((1 + figure) / 2))


@dataclass(frozen=True)
class TruePositiveRate:
    """No test that accuses this share of non-members finds more than this share of members.

    Attributes:
        at_false_positive_rate: share of non-members accused, above 0 and below `value`.
        value: share of members found, below 1.
    """

    at_false_positive_rate: float
    value: float

    def __post_init__(self) -> None:
        require(
            0.0 < self.at_false_positive_rate < self.value < 1.0,
            f"a true positive rate of {self.value!r} at a false positive rate of "
            f"{self.at_false_positive_rate!r} is no target: a blind test finds the same share of "
            "both; give 0 < false positive rate < value < 1",
        )
        require(
            self.as_mu(self.value) > 1e-9,
            f"a true positive rate of {self.value!r} is a blind guess; allow more",
        )

    def achieved(self, accountant: Accountant) -> float:
        """The bound on the share of members found at that rate, in [0, 1]."""
        return largest_true_positive_rate(accountant, self.at_false_positive_rate)

    def as_mu(self, figure: float) -> float:
        """Phi^-1(true positive rate) - Phi^-1(false positive rate)."""
        return max(0.0, float(ndtri(min(1.0, figure))) - float(ndtri(self.at_false_positive_rate)))


@dataclass(frozen=True)
class TargetCalibration:
    """A noise multiplier whose figure, as computed by the accountant, is within the target's value.

    Attributes:
        noise_multiplier: noise standard deviation / L2 sensitivity of one unit.
        target: what was aimed at.
        achieved: the figure, in the unit of the target's value and at most that.
        steps: number of releases.
        sample_rate: probability that a unit is in a sample, in (0, 1].
        accountant: "prv" or "rdp".
        adjacency: the neighbouring relation.
    """

    noise_multiplier: float
    target: Target
    achieved: float
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
    """The smallest noise multiplier that keeps Poisson-sampled Gaussian releases within epsilon.

    Its epsilon never exceeds the target; 1e-3 less noise would exceed it.

    Args:
        epsilon: the budget, finite and > 0.
        delta: in (0, 1).
        sample_rate: probability that a unit is in a sample, in (0, 1].
        steps: number of releases, >= 1.
        accountant: "prv" or "rdp".

    Returns:
        a noise multiplier of at least 0.001, however large the budget.

    Raises:
        InputError: a value out of range, or a budget that no noise multiplier up to 2e6 meets.
    """
    _require_budget(epsilon, delta, adjacency)
    _require_rate(sample_rate)
    require_count(steps, "steps", 1)

    def achieved(sigma: float) -> float:
        event = PoissonGaussian(sample_rate, sigma)
        return make_accountant(accountant, adjacency).quote(event, int(steps), delta).upper

    def cheap(sigma: float) -> float:
        event = SelfComposed(PoissonGaussian(sample_rate, sigma), int(steps))
        return renyi_epsilon(event, delta, adjacency, COARSE_ORDERS)[0]

    goal = epsilon if accountant == "rdp" else _LOOSENESS * epsilon
    search = Search(1, _SMALLEST, _LARGEST)
    sigma, spent = search.edge(achieved, epsilon, *search.roughly(cheap, goal, 1.0))
    return Calibration(
        noise_multiplier=sigma,
        epsilon=spent,
        delta=delta,
        steps=int(steps),
        sample_rate=sample_rate,
        accountant=accountant,
        adjacency=adjacency,
    )


def calibrate_sample_rate(
    epsilon: float,
    delta: float,
    noise_multiplier: float,
    steps: int,
    *,
    adjacency: str,
    accountant: str = "prv",
) -> Calibration:
    """The largest sample rate that keeps Poisson-sampled Gaussian releases within epsilon.

    Its epsilon never exceeds the target; a rate 1e-3 larger would exceed it.

    Args:
        epsilon: the budget, finite and > 0.
        delta: in (0, 1).
        noise_multiplier: noise standard deviation / L2 sensitivity of one unit, > 0.
        steps: number of releases, >= 1.
        accountant: "prv" or "rdp".

    Returns:
        a sample rate of at most 1, however large the budget.

    Raises:
        InputError: a value out of range, or a budget that not even a rate of 1e-15 meets.
    """
    _require_budget(epsilon, delta, adjacency)
    require_count(steps, "steps", 1)
    require(
        noise_multiplier > 0.0,
        f"noise_multiplier={noise_multiplier!r} hides nothing; give a number above 0",
    )

    def achieved(rate: float) -> float:
        event = PoissonGaussian(rate, noise_multiplier)
        return make_accountant(accountant, adjacency).quote(event, int(steps), delta).upper

    def cheap(rate: float) -> float:
        event = SelfComposed(PoissonGaussian(rate, noise_multiplier), int(steps))
        return renyi_epsilon(event, delta, adjacency, COARSE_ORDERS)[0]

    whole = achieved(1.0)
    if whole <= epsilon:
        return Calibration(
            noise_multiplier=noise_multiplier,
            epsilon=whole,
            delta=delta,
            steps=int(steps),
            sample_rate=1.0,
            accountant=accountant,
            adjacency=adjacency,
        )
    goal = epsilon if accountant == "rdp" else _LOOSENESS * epsilon
    search = Search(-1, _SMALLEST_RATE, 1.0)
    rate, spent = search.edge(
        achieved, epsilon, *search.roughly(cheap, goal, min(1.0, 1 / math.sqrt(steps)))
    )
    return Calibration(
        noise_multiplier=noise_multiplier,
        epsilon=spent,
        delta=delta,
        steps=int(steps),
        sample_rate=rate,
        accountant=accountant,
        adjacency=adjacency,
    )


def calibrate_noise_multiplier_for(
    target: Target, sample_rate: float, steps: int, *, adjacency: str, accountant: str = "prv"
) -> TargetCalibration:
    """The smallest noise multiplier that keeps Poisson-sampled Gaussian releases within a target.

    1e-3 less noise would miss it.

    Args:
        target: `Advantage`, `TruePositiveRate` or anything like them.
        sample_rate: probability that a unit is in a sample, in (0, 1].
        steps: number of releases, >= 1.
        accountant: "prv" or "rdp".

    Returns:
        a noise multiplier of at least 0.001, however lax the target.

    Raises:
        InputError: a value out of range, or a target that no noise multiplier up to 2e6 meets.
    """
    require_adjacency(adjacency)
    _require_rate(sample_rate)
    require_count(steps, "steps", 1)

    def figure(sigma: float) -> float:
        return target.achieved(
            booked([(PoissonGaussian(sample_rate, sigma), int(steps))], adjacency, accountant)
        )

    # A first guess: q sqrt(T (e^(1/sigma^2) - 1)) is mu in the limit of many steps (Bu et al. 2020,
    # arXiv 1911.11607).
    mu = target.as_mu(target.value) / (2.0 if adjacency == "replace-one" else 1.0)
    guess = (
        math.sqrt(steps) / mu
        if sample_rate == 1.0
        else math.log1p((mu / sample_rate) ** 2 / steps) ** -0.5
    )
    search = Search(1, _SMALLEST, _LARGEST, target.as_mu)
    sigma, achieved = search.edge(figure, target.value, min(_LARGEST, max(_SMALLEST, guess)), 1.0)
    return TargetCalibration(
        noise_multiplier=sigma,
        target=target,
        achieved=achieved,
        steps=int(steps),
        sample_rate=sample_rate,
        accountant=accountant,
        adjacency=adjacency,
    )


def most_steps(
    epsilon: float,
    delta: float,
    sample_rate: float,
    noise_multiplier: float,
    *,
    adjacency: str,
    accountant: str = "prv",
) -> int:
    """The largest number of Poisson-sampled Gaussian releases that stays within epsilon.

    Args:
        epsilon: the budget, finite and > 0.
        delta: in (0, 1).
        sample_rate: probability that a unit is in a sample, in (0, 1].
        noise_multiplier: noise standard deviation / L2 sensitivity of one unit, >= 0.
        accountant: "prv" or "rdp".

    Returns:
        a count; 0 if not even one release fits.

    Raises:
        InputError: a value out of range, or a budget that 2^40 releases do not use up.
    """
    _require_budget(epsilon, delta, adjacency)
    _require_rate(sample_rate)
    event = PoissonGaussian(sample_rate, noise_multiplier)

    def spent(count: int) -> float:
        return make_accountant(accountant, adjacency).quote(event, count, delta).upper

    def cheap(count: float) -> float:
        return renyi_epsilon(SelfComposed(event, round(count)), delta, adjacency, COARSE_ORDERS)[0]

    if spent(1) > epsilon:
        return 0
    search = Search(-1, 1.0, float(_MOST_STEPS))
    start, slope = search.roughly(cheap, epsilon, 16.0)
    return search.last_count(spent, epsilon, start, slope)


def _require_budget(epsilon: float, delta: float, adjacency: str) -> None:
    require(
        0.0 < epsilon < math.inf, f"epsilon={epsilon!r} is no budget; give a finite number above 0"
    )
    require(
        0.0 < delta < 1.0, f"delta={delta!r} is not in (0, 1); give less than 1 / data set size"
    )
    require_adjacency(adjacency)


def _require_rate(sample_rate: float) -> None:
    require(
        0.0 < sample_rate <= 1.0,
        f"sample_rate={sample_rate!r} is not in (0, 1]; give batch / data set size",
    )
