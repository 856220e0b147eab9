"""Drawing logical batches from the run's secret key."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dpclip.noise.keystream import SecretKey
from dpclip.sampling.schedule import Schedule


@dataclass(frozen=True)
class Sampler(ABC):
    """Draws the logical batch of any step.

    Args:
        schedule: the numbers that sampling and accounting share.
        population: units actually present; may differ from the public N of the schedule.
        key: the run's secret.
    """

    schedule: Schedule
    population: int
    key: SecretKey

    @abstractmethod
    def draw(self, step: int, generation: int) -> np.ndarray:
        """Indices of the units in the batch, ascending, shape [batch]; may be empty."""

    def rows(
        self, step: int, generation: int, unit: int, rows: Sequence[int], most: int
    ) -> list[int]:
        """At most `most` of one unit's rows, chosen uniformly from the step's own stream."""
        if len(rows) <= most:
            return list(rows)
        words = self.key.stream(f"rows/{unit}", step, generation).words(len(rows))
        return [rows[i] for i in sorted(np.argsort(words, kind="stable")[:most])]
