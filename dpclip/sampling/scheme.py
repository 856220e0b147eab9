"""How a run draws its batches, and what all its steps cost together.

A scheme is one file and one line. Most rules let a unit's presence move one step's release, with a
fresh coin: Poisson batches, composed step by step. Error feedback carries a sample's trace into
later steps, so it needs a scheme whose proof allows for that (docs/explanation/error-feedback.md).
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
        """Make the filter that admits steps whose noise is chosen from what was released.

        Args:
            schedule: the run's numbers; its `noise_multiplier` is the planned one.

        Returns:
            a fresh filter; None where all noise is planned.
        """
        return None

    def certificate(self, accountant: str) -> str:
        """Say what the guarantee comes from.

        Args:
            accountant: name of the accountant, "prv" for example.
        """
        return f"accountant {accountant}"

    def preferred_noise(self, schedule: Schedule, wish: float) -> float:
        """Choose the noise of a step by the rule's wish; here the wish is not asked for.

        Args:
            schedule: the run's numbers.
            wish: less noise than planned (-1) or more (1).

        Returns:
            sigma_eff of the step, over the joint L2 sensitivity.
        """
        return schedule.noise_multiplier

    def noise_multiplier(self, schedule: Schedule, fixed: float) -> float:
        """Return the noise of a plan that would need `fixed` if every step had the same.

        Args:
            schedule: the run's numbers.
            fixed: sigma_eff that meets the target with equal noise in every step.

        Returns:
            sigma_eff of the plan; `fixed` unless overridden.
        """
        return fixed

    def check(self, schedule: Schedule) -> None:
        """Refuse plans that this scheme cannot carry out or account for; none unless overridden.

        Args:
            schedule: the run's numbers.

        Raises:
            InputError: such a plan.
        """
        return None

    @abstractmethod
    def rate(self, schedule: Schedule) -> Fraction:
        """Return the probability that a unit is in a step that draws from its part of the data.

        Args:
            schedule: the run's numbers.

        Returns:
            exactly, in (0, 1].
        """

    @abstractmethod
    def event(self, schedule: Schedule, noise_multiplier: float) -> Event:
        """Return what one step costs by itself.

        A ledger read without its plan adds these up, which is never too little.

        Args:
            schedule: the run's numbers.
            noise_multiplier: sigma_eff of the step, over the joint L2 sensitivity.
        """

    @abstractmethod
    def spent(self, schedule: Schedule, charges: Charges) -> Counter[Event]:
        """Add up what the charged steps cost together.

        Args:
            schedule: the run's numbers.
            charges: how many steps of each kind are on the ledger.

        Returns:
            how often each event is to be composed.
        """

    @abstractmethod
    def whole(self, schedule: Schedule) -> tuple[Event, int]:
        """Return what all planned steps cost together.

        Args:
            schedule: the run's numbers.

        Returns:
            an event, and how often it is to be composed.
        """

    @abstractmethod
    def after(self, schedule: Schedule, count: int) -> int:
        """Return after how many planned steps `count` of the whole's events have been spent.

        Args:
            schedule: the run's numbers.
            count: events, at most as many as `whole` says.
        """

    def participations(self, schedule: Schedule) -> int | None:
        """Count the most steps that draw any one unit.

        Args:
            schedule: the run's numbers.

        Returns:
            the count, or None if it is not bounded.
        """
        return None

    def sample_rate(self, schedule: Schedule) -> float:
        """Return `rate` as a float that is not below it.

        Args:
            schedule: the run's numbers.
        """
        exact = self.rate(schedule)
        nearest = float(exact)
        return nearest if Fraction(nearest) >= exact else math.nextafter(nearest, 1.0)


SCHEMES: Registry[Scheme] = Registry("sampling", "dpclip.schemes")


def added_up(charges: Charges) -> Counter[Event]:
    """Count every step's event by itself.

    Args:
        charges: how many steps of each kind are on the ledger.
    """
    total: Counter[Event] = Counter()
    for charge, count in charges.items():
        total[charge.event] += count
    return total


def require_add_remove(scheme: Scheme, schedule: Schedule) -> None:
    """Refuse other adjacencies, for which this scheme has no proof.

    Args:
        scheme: named in the message.
        schedule: the run's numbers.

    Raises:
        InputError: a private run with another adjacency than add-remove.
    """
    if schedule.private and schedule.adjacency != "add-remove":
        raise InputError(
            f"adjacency {schedule.adjacency} has no proof with {scheme.sampler_title} batches, "
            "which this clipping rule needs: choose add-remove, or another clipping rule"
        )
