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
        """2 q."""
        return 2 * super().rate

    @cached_property
    def _half(self) -> np.ndarray:
        return self.key.stream("halves", 0, 0).words(self.population) & np.uint64(1)

    def draw(self, step: int, generation: int) -> np.ndarray:
        drawn = super().draw(step, generation)
        return drawn[self._half[drawn] == step % 2]


@SCHEMES.register
class Halves(Poisson):
    """Units are split once, at random, into two halves; step t draws from half t mod 2, at rate 2
    q.

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
        require_add_remove(self, schedule)
        if 2 * schedule.expected_batch_size > schedule.units:
            raise InputError(
                f"batch size {schedule.expected_batch_size} is more than half of N = "
                f"{schedule.units} units, and this clipping rule draws from one half of the data "
                f"at a time: choose at most {schedule.units // 2}"
            )

    def rate(self, schedule: Schedule) -> Fraction:
        return 2 * super().rate(schedule)

    def spent(self, schedule: Schedule, charges: Charges) -> Counter[Event]:
        halves: tuple[Counter[Event], Counter[Event]] = (Counter(), Counter())
        for charge, count in charges.items():
            halves[charge.half][charge.event] += count
        return halves[0] | halves[1]  # the larger count of each event

    def whole(self, schedule: Schedule) -> tuple[Event, int]:
        return self.event(schedule, schedule.noise_multiplier), -(-schedule.steps // 2)

    def after(self, schedule: Schedule, count: int) -> int:
        return min(2 * count, schedule.steps)
