"""The numbers that sampling and accounting depend on, fixed before the first sample is drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from accounting import Adjacency


@dataclass(frozen=True)
class Schedule:
    """How often, how many and how noisily.

    Attributes:
        units: number of privacy units N, a public number.
        expected_batch_size: expected units a logical batch, the divisor of the released sum.
        steps: planned logical steps, an integer chosen first.
        noise_multiplier: sigma_eff of one step, noise standard deviation over L2 sensitivity; 0
            without privacy.
        delta: the delta of the guarantee.
        target_epsilon: the budget; infinity trains without privacy.
        adjacency: neighbouring relation.
    """

    units: int
    expected_batch_size: int
    steps: int
    noise_multiplier: float
    delta: float
    target_epsilon: float
    adjacency: Adjacency = "add-remove"

    @property
    def private(self) -> bool:
        """Whether the run promises anything."""
        return math.isfinite(self.target_epsilon)
