"""Alternating halves of the units: what error feedback needs where batches are Poisson samples."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from functools import cached_property
from typing import ClassVar

import numpy as np

from accounting import Event
from dpclip.errors import InputError
from dpclip.sampling.poisson import Poisson, PoissonSampler
from dpclip.sampling.sampler import Sampler
from dpclip.sampling.schedule import Schedule
from dpclip.sampling.scheme import SCHEMES, Charges, require_add_remove


class HalvesSampler(PoissonSampler):
    """Poisson sampling of one half of the units at even steps and of the other at odd ones.

    Each unit's half is a fair secret coin, so that adding a unit moves no other one.
    """

    @property
    def rate(self) -> Fraction:
        """2 q, of the half that a step draws from."""
        return 2 * super().rate

    @cached_property
    def _half(self) -> np.ndarray:
        return self.key.stream("halves", 0, 0).words(self.population) & np.uint64(1)

    def draw(self, step: int, generation: int) -> np.ndarray:
        """Draw from the half whose turn it is.

        Args:
            step: of the logical step, from 0; even steps draw from half 0.
            generation: which stream of randomness; the halves are the same in all of them.

        Returns:
            indices of the units in the batch, ascending, [batch]; may be empty.
        """
        drawn = super().draw(step, generation)
        return drawn[self._half[drawn] == step % 2]


@SCHEMES.register
class Halves(Poisson):
    """Units are split once, at random, in halves; step t draws from half t mod 2, at rate 2 q.

    A unit's coin at step t may move the releases of steps t and t + 1, and no later one: each pair
    is one Poisson-sampled Gaussian, and both halves' pairs compose in parallel.
    """

    name: ClassVar[str] = "halves"
    title: ClassVar[str] = "Poisson-subsampled Gaussian on alternating halves (pairs of steps)"
    sampler_title: ClassVar[str] = "Poisson on alternating halves"
    sampler: ClassVar[type[Sampler]] = HalvesSampler
    assumption: ClassVar[str] = (
        "Units are split once into two halves by fair secret coins; step t draws each unit of half "
        "(t mod 2) independently with probability 2q. A unit moves the releases of the step that "
        "draws it and of the next one."
    )

    def check(self, schedule: Schedule) -> None:
        """Refuse plans without a proof, or with too large batches.

        Args:
            schedule: the run's numbers.

        Raises:
            InputError: another adjacency than add-remove, or B above N / 2.
        """
        require_add_remove(self, schedule)
        if 2 * schedule.expected_batch_size > schedule.units:
            raise InputError(
                f"batch size {schedule.expected_batch_size} is more than half of N = "
                f"{schedule.units} units, and this clipping rule draws from one half of the data "
                f"at a time: choose at most {schedule.units // 2}"
            )

    def rate(self, schedule: Schedule) -> Fraction:
        """Return 2 q, the probability that a unit is in a step that draws from its half.

        Args:
            schedule: the run's numbers.
        """
        return 2 * super().rate(schedule)

    def spent(self, schedule: Schedule, charges: Charges) -> Counter[Event]:
        """Take the costlier half of each event: the halves compose in parallel.

        Args:
            schedule: unused.
            charges: how many steps of each kind are on the ledger.

        Returns:
            how often each event is to be composed.
        """
        halves: tuple[Counter[Event], Counter[Event]] = (Counter(), Counter())
        for charge, count in charges.items():
            halves[charge.half][charge.event] += count
        return halves[0] | halves[1]  # the larger count of each event

    def whole(self, schedule: Schedule) -> tuple[Event, int]:
        """Return one step's event, and the pairs of steps that the run begins.

        Args:
            schedule: the run's numbers.

        Returns:
            the event, and steps / 2, rounded up.
        """
        return self.event(schedule, schedule.noise_multiplier), -(-schedule.steps // 2)

    def after(self, schedule: Schedule, count: int) -> int:
        """Return 2 `count`, and no more than the planned steps.

        Args:
            schedule: the run's numbers.
            count: pairs of steps.
        """
        return min(2 * count, schedule.steps)
