"""A Gaussian release over a sample of fixed size."""

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
class WithoutReplacementGaussian(Event):
    """One Gaussian release over a sample of fixed size, drawn uniformly without replacement.

    Only under replace-one: the data set size is public and stays.

    Attributes:
        dataset_size: number of units, an integer >= 1.
        batch_size: number of units drawn, from 1 to dataset_size.
        noise_multiplier: noise standard deviation / L2 sensitivity C of one unit, that is, the
            largest norm one unit adds; replaced units are 2C apart.
    """

    kind: ClassVar[str] = "without-replacement-gaussian"
    dataset_size: int
    batch_size: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        require_count(self.dataset_size, "dataset_size", 1, "give the number of units")
        require_count(self.batch_size, "batch_size", 1, "give the number of units in each batch")
        require(
            self.batch_size <= self.dataset_size,
            f"batch_size={self.batch_size!r} exceeds dataset_size={self.dataset_size!r}; draw at "
            "most all units",
        )
        require_noise_multiplier(self.noise_multiplier)
        object.__setattr__(self, "dataset_size", int(self.dataset_size))
        object.__setattr__(self, "batch_size", int(self.batch_size))

    @property
    def sample_rate(self) -> float:
        """batch_size / dataset_size, rounded up, in (0, 1]."""
        return min(1.0, math.nextafter(self.batch_size / self.dataset_size, 1.0))

    def unsupported_reason(self, adjacency: str) -> str | None:
        """A reason under every adjacency but replace-one."""
        if adjacency == "replace-one":
            return None
        return (
            "sampling a fixed number of units is accounted for under replace-one only, not under "
            f"{adjacency}: the data set size has to stay, and a unit that is left out makes room "
            "for another one"
        )

    def lower_bound_event(self, adjacency: str) -> tuple[Event, str]:
        """One half of the dominating pair: all other units at -C."""
        if adjacency != "replace-one" or self.batch_size == self.dataset_size:
            return self, adjacency
        rate = math.nextafter(self.batch_size / self.dataset_size, 0.0)
        return PoissonGaussian(rate, self.noise_multiplier / 2 * (1 + 1e-15)), "add-remove"

    def gaussian_mu(self, adjacency: str) -> float | None:
        """mu of the unsampled Gaussian if the batch is the whole data set, else None."""
        whole = self.batch_size == self.dataset_size and adjacency == "replace-one"
        return unsampled_mu(self.noise_multiplier, adjacency) if whole else None

    def renyi(self, order: float, adjacency: str) -> float:
        """The exact moment of the dominating pair; see `fixed_size_renyi`."""
        from accounting.mechanisms.without_replacement import fixed_size_renyi

        if adjacency != "replace-one":
            return math.inf
        if self.batch_size == self.dataset_size:
            return gaussian_renyi(self.gaussian_mu(adjacency), order)
        return fixed_size_renyi(self.sample_rate, self.noise_multiplier, order)

    def delta(self, epsilon: float, adjacency: str, upper: bool = True) -> float | None:
        """q d(log(1 + (e^epsilon - 1)/q)) with d the profile of a Gaussian with mu = 2 /
        noise_multiplier.
        """
        from accounting.mechanisms.without_replacement import fixed_size_delta

        if adjacency != "replace-one":
            return None
        return fixed_size_delta(self.sample_rate, self.noise_multiplier, epsilon, upper)

    def loss_grid(
        self, adjacency: str, interval: float, tail: float
    ) -> tuple[DiscretizableLoss, ...]:
        """One direction: the dominating pair is symmetric (Zhu, Dong and Wang 2022, arXiv
        2106.08567).

        Bounds from below are bounds on this pair's epsilon, which no single data set is known to
        reach.
        """
        from accounting.errors import CannotComputeError
        from accounting.mechanisms.without_replacement import fixed_size_loss_grid

        if adjacency != "replace-one":
            raise CannotComputeError(str(self.unsupported_reason(adjacency)))
        return (fixed_size_loss_grid(self.sample_rate, self.noise_multiplier, interval, tail),)
