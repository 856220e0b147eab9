"""Laplace noise on a bounded sum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accounting.events.base import EVENTS, Event, require_noise_multiplier
from accounting.mechanisms.gaussian_mu import unsampled_mu

if TYPE_CHECKING:
    from accounting.mechanisms.loss_grid import DiscretizableLoss


@EVENTS.register
@dataclass(frozen=True)
class Laplace(Event):
    """One release with independent Laplace noise on every coordinate, without sampling.

    Attributes:
        noise_multiplier: scale of the noise / L1 sensitivity of one unit, >= 0; a replaced unit
            moves the sum by twice that sensitivity.
    """

    kind: ClassVar[str] = "laplace"
    noise_multiplier: float

    def __post_init__(self) -> None:
        require_noise_multiplier(self.noise_multiplier)

    def renyi(self, order: float, adjacency: str) -> float:
        """Mironov 2017 (arXiv 1702.07476), Proposition 6; see `laplace_renyi`."""
        from accounting.mechanisms.laplace import laplace_renyi

        reach = self._reach(adjacency)
        return math.inf if math.isinf(reach) else laplace_renyi(reach, order)

    def delta(self, epsilon: float, adjacency: str, upper: bool = True) -> float | None:
        """1 - e^((epsilon - reach)/2), 0 from epsilon = reach on; None without noise."""
        from accounting.mechanisms.laplace import laplace_delta

        reach = self._reach(adjacency)
        return None if math.isinf(reach) else laplace_delta(reach, epsilon, upper)

    def loss_grid(
        self, adjacency: str, interval: float, tail: float
    ) -> tuple[DiscretizableLoss, ...]:
        """One direction: the pair is symmetric."""
        from accounting.mechanisms.laplace import laplace_loss_grid

        return (laplace_loss_grid(self._reach(adjacency), interval, tail),)

    def _reach(self, adjacency: str) -> float:
        """The epsilon of one release at delta = 0: distance / scale, rounded up."""
        return unsampled_mu(self.noise_multiplier, adjacency)
