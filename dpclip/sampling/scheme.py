"""How a run draws its batches, and what all its steps cost together: a scheme is one file and one
line.

Most rules let a unit's presence move one step's release, with a fresh coin: Poisson batches,
composed step by step. Error feedback carries a sample's trace into later steps, so it needs a
scheme whose proof allows for that (docs/explanation/error-feedback.md).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from accounting import Event
from accounting.filters.renyi import RenyiFilter
from dpclip.errors import InputError
from dpclip.registry import Registry
from dpclip.sampling.sampler import Sampler
from dpclip.sampling.schedule import Schedule


@dataclass(frozen=True)
class Charge:
    """What composition needs to know of a step on the ledger.

    Attributes:
        event: what it costs by itself.
        half: step mod 2.
        generation: of its randomness; more than one means that steps were repeated with fresh
            noise.
    """

    event: Event
    half: int
    generation: int


Charges = Mapping[Charge, int]  # with the number of steps of each kind


class Scheme(ABC):
    """Everything about a plan that depends on how batches are drawn.

    Attributes:
        title: the mechanism, for the statement.
        sampler_title: how batches are drawn, for the statement.
        sampler: draws them.
        assumption: what the accounting takes for granted, in a sentence.
        kind: of the guarantee.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    sampler_title: ClassVar[str]
    sampler: ClassVar[type[Sampler]]
    assumption: ClassVar[str]
    kind: ClassVar[str] = "worst-case"

    def filter(self, schedule: Schedule) -> RenyiFilter | None:
        """What admits steps whose noise is chosen from what was released; None where all noise is
        planned.
        """
        return None

    def certificate(self, accountant: str) -> str:
        """What the guarantee comes from."""
        return f"accountant {accountant}"

    def preferred_noise(self, schedule: Schedule, wish: float) -> float:
        """The noise of a step whose rule wishes for less (-1) or more (1) than planned; here it is
        not asked.
        """
        return schedule.noise_multiplier

    def noise_multiplier(self, schedule: Schedule, fixed: float) -> float:
        """The noise of a plan that would need `fixed` if every step had the same."""
        return fixed

    def check(self, schedule: Schedule) -> None:
        """Refuse plans that this scheme cannot carry out or account for."""
        return None

    @abstractmethod
    def rate(self, schedule: Schedule) -> Fraction:
        """Probability that a given unit is in a given step that draws from its part of the data."""

    @abstractmethod
    def event(self, schedule: Schedule, noise_multiplier: float) -> Event:
        """What one step costs by itself; a ledger read without its plan adds these up, which is
        never too little.
        """

    @abstractmethod
    def spent(self, schedule: Schedule, charges: Charges) -> Counter[Event]:
        """What the charged steps cost together."""

    @abstractmethod
    def whole(self, schedule: Schedule) -> tuple[Event, int]:
        """What all planned steps cost together."""

    @abstractmethod
    def after(self, schedule: Schedule, count: int) -> int:
        """After how many planned steps `count` of the whole's events have been spent."""

    def participations(self, schedule: Schedule) -> int | None:
        """Most steps that draw any one unit; None if that is not bounded."""
        return None

    def sample_rate(self, schedule: Schedule) -> float:
        """`rate` as a float that is not below it."""
        exact = self.rate(schedule)
        nearest = float(exact)
        return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, 1.0)


SCHEMES: Registry[Scheme] = Registry("sampling", "dpclip.schemes")


def added_up(charges: Charges) -> Counter[Event]:
    """Every step's event by itself."""
    total: Counter[Event] = Counter()
    for charge, count in charges.items():
        total[charge.event] += count
    return total


def require_add_remove(scheme: Scheme, schedule: Schedule) -> None:
    """Refuse other adjacencies, for which this scheme has no proof."""
    if schedule.private and schedule.adjacency != "add-remove":
        raise InputError(
            f"adjacency {schedule.adjacency} has no proof with {scheme.sampler_title} batches, "
            "which this clipping rule needs: choose add-remove, or another clipping rule"
        )
