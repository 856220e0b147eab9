"""Gaussian releases over batches that partition the data, epoch after epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accounting.errors import require
from accounting.events.base import EVENTS, Event, require_count, require_noise_multiplier
from accounting.events.gaussian import PoissonGaussian
from accounting.mechanisms.gaussian_mu import gaussian_renyi, unsampled_mu

if TYPE_CHECKING:
    from accounting.mechanisms.loss_grid import DiscretizableLoss


@EVENTS.register
@dataclass(frozen=True)
class FixedBatchesGaussian(Event):
    """All Gaussian releases of several epochs in which every unit is in one batch, shuffled or in a
    fixed order.

    No amplification by sampling is claimed.

    Attributes:
        epochs: how often each unit takes part, at most; an integer >= 0.
        noise_multiplier: noise standard deviation of a release / L2 sensitivity of one unit, >= 0.
        stable_batches: the batch of a unit depends on nothing but itself, so that adding a unit
            moves no other one.
    """

    kind: ClassVar[str] = "fixed-batches-gaussian"
    epochs: int
    noise_multiplier: float
    stable_batches: bool = False

    def __post_init__(self) -> None:
        require_count(
            self.epochs, "epochs", 0, "give the number of times each unit takes part, rounded up"
        )
        require_noise_multiplier(self.noise_multiplier)
        object.__setattr__(self, "epochs", int(self.epochs))
        require(
            isinstance(self.stable_batches, bool),
            f"stable_batches={self.stable_batches!r} is not true or false; say whether batches "
            "ignore other units",
        )

    def unsupported_reason(self, adjacency: str) -> str | None:
        """A reason under add-remove, unless adding a unit leaves the others where they are."""
        if adjacency != "add-remove" or self.stable_batches:
            return None
        return (
            "adding a unit moves the others between batches, which add-remove accounting does not "
            "cover; ask under zero-out or replace-one, or assign batches by the unit alone and set "
            "stable_batches"
        )

    def gaussian_mu(self, adjacency: str) -> float | None:
        """sqrt(epochs) * sensitivity / noise: only `epochs` releases depend on the unit, each as a
        Gaussian.
        """
        if self.unsupported_reason(adjacency) is not None:
            return None
        if self.epochs == 0:
            return 0.0
        return math.sqrt(self.epochs) * unsampled_mu(self.noise_multiplier, adjacency) * (1 + 1e-15)

    def renyi(self, order: float, adjacency: str) -> float:
        """order mu^2 / 2, the divergence of one Gaussian with this mu."""
        return gaussian_renyi(self.gaussian_mu(adjacency), order)

    def loss_grid(
        self, adjacency: str, interval: float, tail: float
    ) -> tuple[DiscretizableLoss, ...]:
        """The losses of one unsampled Gaussian with the same mu."""
        from accounting.errors import CannotComputeError

        reason = self.unsupported_reason(adjacency)
        if reason is not None or self.epochs == 0:
            raise CannotComputeError(reason or "nothing was released")
        sigma = self.noise_multiplier / math.sqrt(self.epochs) * (1 - 1e-15)
        return PoissonGaussian(1.0, sigma).loss_grid(adjacency, interval, tail)
