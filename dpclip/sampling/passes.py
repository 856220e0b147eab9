"""Shuffled passes in batches of fixed size, without amplification by sampling."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np

from accounting import Event, Gaussian
from dpclip.errors import InputError
from dpclip.sampling.sampler import Sampler
from dpclip.sampling.schedule import Schedule
from dpclip.sampling.scheme import SCHEMES, Charges, Scheme, require_add_remove


def steps_per_pass(schedule: Schedule) -> int:
    """Full batches in a pass; what is left over waits for another pass."""
    return schedule.units // schedule.expected_batch_size


@dataclass(frozen=True)
class PassesSampler(Sampler):
    """Pass after pass, each a secret permutation of N slots taken in batches of B; the rest of a
    pass is left out.

    A pass is the same in every generation of randomness, so that repeating a step draws no unit
    anew.
    """

    def __post_init__(self) -> None:
        if self.population > self.schedule.units:
            raise InputError(
                f"{self.population} units are present but N = {self.schedule.units}: this clipping "
                "rule gives every unit a slot of its own; raise --public-units, or choose another "
                "rule"
            )

    def draw(self, step: int, generation: int) -> np.ndarray:
        turn, position = divmod(step, steps_per_pass(self.schedule))
        words = self.key.stream("pass", turn, 0).words(self.schedule.units)
        slots = np.argsort(words, kind="stable")[: self.population]
        return np.flatnonzero(slots // self.schedule.expected_batch_size == position)


@SCHEMES.register
class Passes(Scheme):
    """Pass after pass over the shuffled data in batches of B; a unit is drawn at most once a pass.

    No amplification by sampling is claimed: the releases of the whole run are one Gaussian whose
    sensitivity, over all steps that a unit may move, the rule states. It is spent at the first
    step. A run that has to repeat steps with fresh noise spends it again.
    """

    name: ClassVar[str] = "passes"
    title: ClassVar[str] = (
        "one Gaussian over the whole run (bounded participation, no amplification)"
    )
    sampler_title: ClassVar[str] = "shuffled passes"
    sampler: ClassVar[type[Sampler]] = PassesSampler
    assumption: ClassVar[str] = (
        "Each pass assigns units to N slots by a secret permutation and takes the slots in batches "
        "of fixed size, so that a unit is drawn at most once a pass; N is fixed, whoever takes "
        "part."
    )

    def check(self, schedule: Schedule) -> None:
        require_add_remove(self, schedule)

    def rate(self, schedule: Schedule) -> Fraction:
        return Fraction(1)

    def event(self, schedule: Schedule, noise_multiplier: float) -> Event:
        return Gaussian(noise_multiplier)

    def spent(self, schedule: Schedule, charges: Charges) -> Counter[Event]:
        """Each generation continues one path of a run: its energy is within the whole run's
        (docs).
        """
        return Counter(
            event for event, _ in {(charge.event, charge.generation) for charge in charges}
        )

    def whole(self, schedule: Schedule) -> tuple[Event, int]:
        return self.event(schedule, schedule.noise_multiplier), 1

    def after(self, schedule: Schedule, count: int) -> int:
        return 1

    def participations(self, schedule: Schedule) -> int:
        return -(-schedule.steps // steps_per_pass(schedule))
