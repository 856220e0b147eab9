"""Drawing logical batches from the run's secret key.

Poisson sampling has exact integer thresholds: a unit joins a logical batch when its 64-bit word of the step's stream is
below floor(q 2^64), so that the realised rate is never above the q that is accounted, and no float32 grid coarsens a
small q.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dpclip.errors import BadInput
from dpclip.plan import Plan
from dpclip.randomness import SecretKey
from dpclip.schemes import steps_per_pass


@dataclass(frozen=True)
class Sampler(ABC):
    """Draws the logical batch of any step.

    Args:
        plan: the one plan object.
        population: units actually present; may differ from the public N of the plan.
        key: the run's secret.
    """

    plan: Plan
    population: int
    key: SecretKey

    @abstractmethod
    def draw(self, step: int, generation: int) -> np.ndarray:
        """Indices of the units in the batch, ascending, shape [batch]; may be empty."""

    def rows(self, step: int, generation: int, unit: int, rows: Sequence[int], most: int) -> list[int]:
        """At most `most` of one unit's rows, chosen uniformly from the step's own stream."""
        if len(rows) <= most:
            return list(rows)
        words = self.key.stream(f"rows/{unit}", step, generation).words(len(rows))
        return [rows[i] for i in sorted(np.argsort(words, kind="stable")[:most])]


class PoissonSampler(Sampler):
    """Each unit joins with probability q, by a coin of its own."""

    @property
    def threshold(self) -> int:
        """floor(q 2^64), computed in integers."""
        rate = self.plan.scheme.rate(self.plan)
        return (rate.numerator << 64) // rate.denominator

    def draw(self, step: int, generation: int) -> np.ndarray:
        if self.threshold >= 1 << 64:
            return np.arange(self.population)
        words = self.key.stream("sample", step, generation).words(self.population)
        return np.flatnonzero(words < np.uint64(self.threshold))


class HalvesSampler(PoissonSampler):
    """Poisson sampling of one half of the units at even steps and of the other at odd ones.

    Each unit's half is a fair secret coin, so that adding a unit moves no other one.
    """

    @cached_property
    def _half(self) -> np.ndarray:
        return self.key.stream("halves", 0, 0).words(self.population) & np.uint64(1)

    def draw(self, step: int, generation: int) -> np.ndarray:
        drawn = super().draw(step, generation)
        return drawn[self._half[drawn] == step % 2]


@dataclass(frozen=True)
class PassesSampler(Sampler):
    """Pass after pass, each a secret permutation of N slots taken in batches of B; the rest of a pass is left out.

    A pass is the same in every generation of randomness, so that repeating a step draws no unit anew.
    """

    def __post_init__(self) -> None:
        if self.population > self.plan.units:
            raise BadInput(
                f"{self.population} units are present but N = {self.plan.units}: this clipping rule gives every unit "
                "a slot of its own; raise --public-units, or choose another rule"
            )

    def draw(self, step: int, generation: int) -> np.ndarray:
        turn, position = divmod(step, steps_per_pass(self.plan))
        words = self.key.stream("pass", turn, 0).words(self.plan.units)
        slots = np.argsort(words, kind="stable")[: self.population]
        return np.flatnonzero(slots // self.plan.expected_batch_size == position)


_SAMPLERS: dict[str, type[Sampler]] = {
    "poisson": PoissonSampler, "filtered": PoissonSampler, "halves": HalvesSampler, "passes": PassesSampler,
}  # fmt: skip


def make_sampler(plan: Plan, population: int, key: SecretKey) -> Sampler:
    """The sampler that the plan's accounting is for."""
    return _SAMPLERS[plan.sampling](plan, population, key)
