"""Values that have crossed the privacy boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Receipt:
    """Proof that one step's event was written to the ledger before its sample was drawn.

    Attributes:
        step: index of the logical step, from 0.
        generation: which stream of randomness serves the step; a fresh one after a replay that could not
            be bit-identical.
        noise_multiplier: the sigma_eff that was charged, relative to the joint L2 sensitivity.
        position: the charge's position in the ledger.
        planned_steps: after how many planned steps as much has been spent as after this charge; None if it is more
            than the whole plan.
        budget_left: part of the budget that is not spent after this charge.
    """

    step: int
    generation: int
    noise_multiplier: float
    position: int
    planned_steps: int | None = None
    budget_left: float = 1.0


@dataclass(frozen=True)
class Released(Generic[T]):
    """A value that may leave the step, with the receipt of the charge that paid for it.

    Constructed in `dpclip.noise` only (a test holds the code base to it). Controllers, adaptive thresholds,
    post-processing and logs accept `Released` values and nothing else that was computed from private data.
    """

    value: T
    receipt: Receipt

    def map(self, function: Callable[[T], Any]) -> Released[Any]:
        """Post-processing: what is computed from a released value alone is as public as the value."""
        return replace(self, value=function(self.value))
