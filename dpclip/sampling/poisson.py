"""Poisson sampling: each unit joins each step with probability q.

It has exact integer thresholds: a unit joins a logical batch when its 64-bit word of the step's
stream is below floor(q 2^64), so that the realised rate is never above the q that is accounted, and
no float32 grid coarsens a small q.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import ClassVar

import numpy as np

from accounting import Event, PoissonGaussian
from dpclip.sampling.sampler import Sampler
from dpclip.sampling.schedule import Schedule
from dpclip.sampling.scheme import SCHEMES, Charges, Scheme, added_up


def poisson_rate(schedule: Schedule) -> Fraction:
    """Return q = B / N, exactly.

    Args:
        schedule: with the expected batch B and the units N.
    """
    return Fraction(schedule.expected_batch_size, schedule.units)


class PoissonSampler(Sampler):
    """Each unit joins with probability q, by a coin of its own."""

    @property
    def rate(self) -> Fraction:
        """q, the probability that a unit joins a step."""
        return poisson_rate(self.schedule)

    @property
    def threshold(self) -> int:
        """floor(q 2^64), computed in integers."""
        rate = self.rate
        return (rate.numerator << 64) // rate.denominator

    def draw(self, step: int, generation: int) -> np.ndarray:
        """Draw each unit with probability floor(q 2^64) / 2^64, by a coin of its own.

        Args:
            step: of the logical step, from 0.
            generation: which stream of randomness.

        Returns:
            indices of the units in the batch, ascending, [batch]; may be empty.
        """
        if self.threshold >= 1 << 64:
            return np.arange(self.population)
        words = self.key.stream("sample", step, generation).words(self.population)
        return np.flatnonzero(words < np.uint64(self.threshold))


@SCHEMES.register
class Poisson(Scheme):
    """Each unit joins each step with probability q; every step is an event of its own."""

    name: ClassVar[str] = "poisson"
    title: ClassVar[str] = "Poisson-subsampled Gaussian"
    sampler_title: ClassVar[str] = "Poisson"
    sampler: ClassVar[type[Sampler]] = PoissonSampler
    assumption: ClassVar[str] = (
        "Batches are Poisson samples: each unit joins each step independently with probability q, "
        "drawn from a cryptographic stream; empty batches are released and charged like any other."
    )

    def rate(self, schedule: Schedule) -> Fraction:
        """Return q = B / N.

        Args:
            schedule: the run's numbers.
        """
        return poisson_rate(schedule)

    def event(self, schedule: Schedule, noise_multiplier: float) -> Event:
        """Return a Poisson-subsampled Gaussian at rate q, rounded up to a float.

        Args:
            schedule: the run's numbers.
            noise_multiplier: sigma_eff of the step.
        """
        return PoissonGaussian(
            sample_rate=self.sample_rate(schedule), noise_multiplier=noise_multiplier
        )

    def spent(self, schedule: Schedule, charges: Charges) -> Counter[Event]:
        """Count every step's event by itself.

        Args:
            schedule: unused.
            charges: how many steps of each kind are on the ledger.
        """
        return added_up(charges)

    def whole(self, schedule: Schedule) -> tuple[Event, int]:
        """Return one step's event, and the planned steps.

        Args:
            schedule: the run's numbers.
        """
        return self.event(schedule, schedule.noise_multiplier), schedule.steps

    def after(self, schedule: Schedule, count: int) -> int:
        return count
