"""Poisson sampling with exact integer thresholds, and physical micro-batches.

A unit joins a logical batch when its 64-bit word of the step's stream is below floor(q 2^64): the realised
rate is never above the q that is accounted, and no float32 grid coarsens a small q.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dpclip.plan import Plan
from dpclip.randomness import SecretKey


@dataclass(frozen=True)
class PoissonSampler:
    """Draws the logical batch of any step from the secret key.

    Args:
        plan: gives q = B / N as exact integers.
        population: rows actually present; may differ from the public N of the plan.
    """

    plan: Plan
    population: int
    key: SecretKey

    @property
    def threshold(self) -> int:
        """floor(q 2^64), computed in integers."""
        return (self.plan.expected_batch_size << 64) // self.plan.units

    def draw(self, step: int, generation: int) -> np.ndarray:
        """Indices of the units in the batch, ascending, shape [batch]; may be empty."""
        if self.threshold >= 1 << 64:
            return np.arange(self.population)
        words = self.key.stream("sample", step, generation).words(self.population)
        return np.flatnonzero(words < np.uint64(self.threshold))

    def rows(self, step: int, generation: int, unit: int, rows: Sequence[int], most: int) -> list[int]:
        """At most `most` of one unit's rows, chosen uniformly from the step's own stream."""
        if len(rows) <= most:
            return list(rows)
        words = self.key.stream(f"rows/{unit}", step, generation).words(len(rows))
        return [rows[i] for i in sorted(np.argsort(words, kind="stable")[:most])]


def micro_batches(units: Sequence[int], row_counts: Sequence[int], physical_batch_size: int) -> Iterator[list[int]]:
    """Split a logical batch into runs of units whose rows fit the physical batch; a unit is never split.

    A pure performance knob: the sum over the micro-batches does not depend on the split, up to rounding.
    """
    chunk: list[int] = []
    held = 0
    for unit, count in zip(units, row_counts, strict=True):
        if chunk and held + count > physical_batch_size:
            yield chunk
            chunk, held = [], 0
        chunk.append(unit)
        held += count
    if chunk:
        yield chunk
