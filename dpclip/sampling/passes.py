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
    """Count the full batches in a pass; what is left over waits for another pass.

    Args:
        schedule: with the expected batch B and the units N.

    Returns:
        N / B, rounded down.
    """
    return schedule.units // schedule.expected_batch_size


@dataclass(frozen=True)
class PassesSampler(Sampler):
    """Pass after pass, each a secret permutation of N slots taken in batches of B.

    The rest of a pass is left out. A pass is the same in every generation of randomness, so that
    repeating a step draws no unit anew.

    Raises:
        InputError: more units are present than there are slots.
    """

    def __post_init__(self) -> None:
        if self.population > self.schedule.units:
            raise InputError(
                f"{self.population} units are present but N = {self.schedule.units}: this clipping "
                "rule gives every unit a slot of its own; raise --public-units, or choose another "
                "rule"
            )

    def draw(self, step: int, generation: int) -> np.ndarray:
        """Take the units in the B slots whose turn it is.

        Args:
            step: of the logical step, from 0.
            generation: unused; a repeated step draws the same units.

        Returns:
            indices of the units in the batch, ascending, [batch]; at most B.
        """
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
        """Refuse plans without a proof.

        Args:
            schedule: the run's numbers.

        Raises:
            InputError: another adjacency than add-remove.
        """
        require_add_remove(self, schedule)

    def rate(self, schedule: Schedule) -> Fraction:
        """Return 1: no amplification by sampling is claimed.

        Args:
            schedule: unused.
        """
        return Fraction(1)

    def event(self, schedule: Schedule, noise_multiplier: float) -> Event:
        """Return a Gaussian without sampling.

        Args:
            schedule: unused.
            noise_multiplier: sigma_eff, over the sensitivity of all steps together.
        """
        return Gaussian(noise_multiplier)

    def spent(self, schedule: Schedule, charges: Charges) -> Counter[Event]:
        """Count one event for each generation.

        Each generation continues one path of a run: its energy is within the whole run's (docs).

        Args:
            schedule: unused.
            charges: how many steps of each kind are on the ledger.
        """
        return Counter(
            event for event, _ in {(charge.event, charge.generation) for charge in charges}
        )

    def whole(self, schedule: Schedule) -> tuple[Event, int]:
        """Return one Gaussian, once, for the whole run.

        Args:
            schedule: the run's numbers.
        """
        return self.event(schedule, schedule.noise_multiplier), 1

    def after(self, schedule: Schedule, count: int) -> int:
        """Return 1: all is spent at the first step.

        Args:
            schedule: unused.
            count: unused.
        """
        return 1

    def participations(self, schedule: Schedule) -> int:
        """Count the passes that the run begins: a unit is drawn at most once in each.

        Args:
            schedule: the run's numbers.
        """
        return -(-schedule.steps // steps_per_pass(schedule))
