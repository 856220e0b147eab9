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
        """Draw a step's logical batch.

        Args:
            step: of the logical step, from 0.
            generation: which stream of randomness serves the step.

        Returns:
            indices of the units in the batch, ascending, shape [batch]; may be empty.
        """

    def rows(
        self, step: int, generation: int, unit: int, rows: Sequence[int], most: int
    ) -> list[int]:
        """Choose at most `most` of one unit's rows, uniformly, from the step's own stream.

        Args:
            step: of the logical step, from 0.
            generation: which stream of randomness serves the step.
            unit: the unit's index.
            rows: the unit's rows.
            most: rows that a unit may bring.

        Returns:
            rows in their order, min(most, len(rows)) of them.
        """
        if len(rows) <= most:
            return list(rows)
        words = self.key.stream(f"rows/{unit}", step, generation).words(len(rows))
        return [rows[i] for i in sorted(np.argsort(words, kind="stable")[:most])]
