"""How a run draws its batches, and what all its steps cost together. A new scheme is a class and one registry line.

Most rules let a unit's presence move one step's release, with a fresh coin: Poisson batches, composed step by step.
Error feedback carries a sample's trace into later steps, so it needs a scheme whose proof allows for that
(docs/explanation/error-feedback.md).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, ClassVar

from accounting import Event, Gaussian, InvalidInput, PoissonGaussian
from accounting.filters import RenyiFilter
from dpclip.errors import BadInput

if TYPE_CHECKING:
    from dpclip.plan import Plan


NOISE_RANGE = (0.95, 1.25)
"""The least and the most noise that a rule may choose, over the planned noise. A filter works at an order that suits
the least of it, so every per cent below 1 costs steps."""


_MOST_NOISE = 1e6


@dataclass(frozen=True)
class Charge:
    """What composition needs to know of a step on the ledger.

    Attributes:
        event: what it costs by itself.
        half: step mod 2.
        generation: of its randomness; more than one means that steps were repeated with fresh noise.
    """

    event: Event
    half: int
    generation: int


Charges = Mapping[Charge, int]  # with the number of steps of each kind


class Scheme(ABC):
    """Everything about a plan that depends on how batches are drawn; `plan` is always the plan itself."""

    name: ClassVar[str]
    title: ClassVar[str]
    sampler: ClassVar[str]
    assumption: ClassVar[str]
    kind: ClassVar[str] = "worst-case"
    """Of the guarantee."""

    def filter(self, plan: Plan) -> RenyiFilter | None:
        """What admits steps whose noise is chosen from what was released; None where all noise is planned."""
        return None

    def certificate(self, plan: Plan) -> str:
        """What the guarantee comes from."""
        return f"accountant {plan.accountant}"

    def wished(self, plan: Plan, wish: float) -> float:
        """The noise of a step whose rule wishes for less (-1) or more (1) than planned; here it is not asked."""
        return plan.noise_multiplier

    def noise_multiplier(self, plan: Plan, fixed: float) -> float:
        """The noise of a plan that would need `fixed` if every step had the same."""
        return fixed

    def check(self, plan: Plan) -> None:
        """Refuse plans that this scheme cannot carry out or account for."""
        return None

    @abstractmethod
    def rate(self, plan: Plan) -> Fraction:
        """Probability that a given unit is in a given step that draws from its part of the data."""

    @abstractmethod
    def event(self, plan: Plan, noise_multiplier: float) -> Event:
        """What one step costs by itself; a ledger read without its plan adds these up, which is never too little."""

    @abstractmethod
    def spent(self, plan: Plan, charges: Charges) -> Counter[Event]:
        """What the charged steps cost together."""

    @abstractmethod
    def whole(self, plan: Plan) -> tuple[Event, int]:
        """What all planned steps cost together."""

    @abstractmethod
    def after(self, plan: Plan, count: int) -> int:
        """After how many planned steps `count` of the whole's events have been spent."""

    def participations(self, plan: Plan) -> int | None:
        """Most steps that draw any one unit; None if that is not bounded."""
        return None


class Poisson(Scheme):
    """Each unit joins each step with probability q; every step is an event of its own."""

    name: ClassVar[str] = "poisson"
    title: ClassVar[str] = "Poisson-subsampled Gaussian"
    sampler: ClassVar[str] = "Poisson"
    assumption: ClassVar[str] = (
        "Batches are Poisson samples: each unit joins each step independently with probability q, drawn from a "
        "cryptographic stream; empty batches are released and charged like any other."
    )

    def rate(self, plan: Plan) -> Fraction:
        return Fraction(plan.expected_batch_size, plan.units)

    def event(self, plan: Plan, noise_multiplier: float) -> Event:
        return PoissonGaussian(sample_rate=plan.sample_rate, noise_multiplier=noise_multiplier)

    def spent(self, plan: Plan, charges: Charges) -> Counter[Event]:
        return added_up(charges)

    def whole(self, plan: Plan) -> tuple[Event, int]:
        return plan.event(), plan.steps

    def after(self, plan: Plan, count: int) -> int:
        return count


class Filtered(Poisson):
    """Poisson batches, with each step's noise chosen from what was released, within `NOISE_RANGE` of the planned noise.

    Composing the noise that happened to be chosen would prove nothing. A Rényi filter, fixed with the plan, admits each
    step before its batch is drawn, and always keeps enough for the rest of the run at the most noise. What is promised
    is the budget, whatever was spent of it.
    """

    name: ClassVar[str] = "filtered"
    title: ClassVar[str] = "Poisson-subsampled Gaussian, its noise chosen step by step under a privacy filter"
    kind: ClassVar[str] = "filter budget"

    def filter(self, plan: Plan) -> RenyiFilter | None:
        if not plan.private:
            return None
        least, most = (by * plan.noise_multiplier for by in NOISE_RANGE)
        releases = 2 * plan.steps  # steps that have to be repeated with fresh noise are charged again
        return RenyiFilter.planned(
            plan.target_epsilon, plan.delta, plan.adjacency, plan.sample_rate, least, releases,
            reserve=(self.event(plan, most), plan.steps),
        )  # fmt: skip

    def certificate(self, plan: Plan) -> str:
        return "preset budget of a Rényi filter"

    def wished(self, plan: Plan, wish: float) -> float:
        most = NOISE_RANGE[1] if wish > 0 else 1 / NOISE_RANGE[0]
        return plan.noise_multiplier * most ** max(-1.0, min(1.0, wish))

    def noise_multiplier(self, plan: Plan, fixed: float) -> float:
        """The least that the filter's orders afford in every step; a few per cent more than `fixed`."""
        low, high = fixed, 2 * fixed
        while not self._affords(plan, high):
            low, high = high, 2 * high
            if high > _MOST_NOISE:
                raise BadInput(
                    f"epsilon = {plan.target_epsilon:g} leaves a privacy filter no budget at any of its orders: plan "
                    "with a larger epsilon, or choose a rule or mode with fixed noise (rl:mode=B)"
                )
        while high > low * (1 + 1e-4):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._affords(plan, middle) else (middle, high)
        return high

    def _affords(self, plan: Plan, noise: float) -> bool:
        least = NOISE_RANGE[0] * noise
        try:
            book = RenyiFilter.planned(
                plan.target_epsilon, plan.delta, plan.adjacency, plan.sample_rate, least, plan.steps
            )
        except InvalidInput:
            return False
        return book.can_afford(self.event(plan, noise), plan.steps)


class Halves(Poisson):
    """Units are split once, at random, into two halves; step t draws from half t mod 2, at rate 2 q.

    A unit's coin at step t may move the releases of steps t and t + 1, and no later one: each pair is one
    Poisson-sampled Gaussian, and both halves' pairs compose in parallel.
    """

    name: ClassVar[str] = "halves"
    title: ClassVar[str] = "Poisson-subsampled Gaussian on alternating halves (pairs of steps)"
    sampler: ClassVar[str] = "Poisson on alternating halves"
    assumption: ClassVar[str] = (
        "Units are split once into two halves by fair secret coins; step t draws each unit of half (t mod 2) "
        "independently with probability 2q. A unit moves the releases of the step that draws it and of the next one."
    )

    def check(self, plan: Plan) -> None:
        _only_add_remove(self, plan)
        if 2 * plan.expected_batch_size > plan.units:
            raise BadInput(
                f"batch size {plan.expected_batch_size} is more than half of N = {plan.units} units, and this clipping "
                f"rule draws from one half of the data at a time: choose at most {plan.units // 2}"
            )

    def rate(self, plan: Plan) -> Fraction:
        return 2 * super().rate(plan)

    def spent(self, plan: Plan, charges: Charges) -> Counter[Event]:
        halves: tuple[Counter[Event], Counter[Event]] = (Counter(), Counter())
        for charge, count in charges.items():
            halves[charge.half][charge.event] += count
        return halves[0] | halves[1]  # the larger count of each event

    def whole(self, plan: Plan) -> tuple[Event, int]:
        return plan.event(), -(-plan.steps // 2)

    def after(self, plan: Plan, count: int) -> int:
        return min(2 * count, plan.steps)


class Passes(Scheme):
    """Pass after pass over the shuffled data in batches of B; a unit is drawn at most once a pass.

    No amplification by sampling is claimed: the releases of the whole run are one Gaussian whose sensitivity, over all
    steps that a unit may move, the rule states. It is spent at the first step. A run that has to repeat steps with
    fresh noise spends it again.
    """

    name: ClassVar[str] = "passes"
    title: ClassVar[str] = "one Gaussian over the whole run (bounded participation, no amplification)"
    sampler: ClassVar[str] = "shuffled passes"
    assumption: ClassVar[str] = (
        "Each pass assigns units to N slots by a secret permutation and takes the slots in batches of fixed size, so "
        "that a unit is drawn at most once a pass; N is fixed, whoever takes part."
    )

    def check(self, plan: Plan) -> None:
        _only_add_remove(self, plan)

    def rate(self, plan: Plan) -> Fraction:
        return Fraction(1)

    def event(self, plan: Plan, noise_multiplier: float) -> Event:
        return Gaussian(noise_multiplier)

    def spent(self, plan: Plan, charges: Charges) -> Counter[Event]:
        """Each generation continues one path of a run: its energy is within the whole run's (docs)."""
        return Counter(event for event, _ in {(charge.event, charge.generation) for charge in charges})

    def whole(self, plan: Plan) -> tuple[Event, int]:
        return plan.event(), 1

    def after(self, plan: Plan, count: int) -> int:
        return 1

    def participations(self, plan: Plan) -> int:
        return -(-plan.steps // steps_per_pass(plan))


def added_up(charges: Charges) -> Counter[Event]:
    """Every step's event by itself."""
    total: Counter[Event] = Counter()
    for charge, count in charges.items():
        total[charge.event] += count
    return total


def steps_per_pass(plan: Plan) -> int:
    """Full batches in a pass; what is left over waits for another pass."""
    return plan.units // plan.expected_batch_size


def _only_add_remove(scheme: Scheme, plan: Plan) -> None:
    if plan.private and plan.adjacency != "add-remove":
        raise BadInput(
            f"adjacency {plan.adjacency} has no proof with {scheme.sampler} batches, which this clipping rule needs: "
            "choose add-remove, or another clipping rule"
        )


_SCHEMES: dict[str, Scheme] = {scheme.name: scheme for scheme in (Poisson(), Filtered(), Halves(), Passes())}


def scheme_of(name: str) -> Scheme:
    """A scheme by the name that a rule or a plan gives.

    Raises:
        BadInput: unknown; the known ones are listed.
    """
    if name not in _SCHEMES:
        raise BadInput(f"sampling {name!r} is unknown: choose one of {', '.join(_SCHEMES)}")
    return _SCHEMES[name]
