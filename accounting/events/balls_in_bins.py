"""An epoch of Gaussian releases over random batches of which each unit is in exactly one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accounting.events.base import EVENTS, Event, require_count, require_noise_multiplier
from accounting.mechanisms.gaussian_mu import unsampled_mu

if TYPE_CHECKING:
    from accounting.interval import Interval


@EVENTS.register
@dataclass(frozen=True)
class BallsInBinsGaussian(Event):
    """One epoch of Gaussian releases; each unit takes part in one of them, chosen uniformly at
    random.

    The choice is independent of all other units and fresh in every epoch (one event is one epoch);
    batches have random sizes. Not the same as shuffling.

    Attributes:
        bins: releases of an epoch, an integer >= 1.
        noise_multiplier: noise standard deviation of a release / L2 sensitivity of one unit, >= 0.
    """

    kind: ClassVar[str] = "balls-in-bins-gaussian"
    bins: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        require_count(self.bins, "bins", 1, "give the number of batches in an epoch")
        require_noise_multiplier(self.noise_multiplier)
        object.__setattr__(self, "bins", int(self.bins))

    def unsupported_reason(self, adjacency: str) -> str | None:
        """A reason under replace-one with several bins: both units have a random place, and no
        dominating pair is known here.
        """
        if adjacency != "replace-one" or self.bins == 1:
            return None
        return (
            "balls in bins is accounted for under add-remove and zero-out only; ask under one of "
            "these"
        )

    def gaussian_mu(self, adjacency: str) -> float | None:
        """mu of an unsampled release if there is one bin, else None."""
        return unsampled_mu(self.noise_multiplier, adjacency) if self.bins == 1 else None

    def renyi(self, order: float, adjacency: str) -> float:
        """The larger direction of the dominating pair; see `allocation_renyi`."""
        from accounting.mechanisms.balls_in_bins import allocation_renyi

        if self.unsupported_reason(adjacency) is not None:
            return math.inf
        if self.bins == 1:
            return order * unsampled_mu(self.noise_multiplier, adjacency) ** 2 / 2 * (1 + 1e-15)
        return allocation_renyi(self.bins, self.noise_multiplier, order)

    def verified_epsilon(self, count: int, delta: float, adjacency: str) -> Interval | None:
        """Epsilon by Monte Carlo, with its failure probability in delta; None where there is one
        bin or no theorem, or where too many samples would be needed.
        """
        from accounting.mechanisms.balls_in_bins import simulated_epsilon

        if self.unsupported_reason(adjacency) is not None or self.bins == 1:
            return None
        return simulated_epsilon(self.bins, self.noise_multiplier, count, delta)
