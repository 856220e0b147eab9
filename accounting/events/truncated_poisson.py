"""A Gaussian release over a Poisson sample that is cut to a largest batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accounting.events.base import (
    EVENTS,
    Event,
    require_count,
    require_noise_multiplier,
    require_probability,
)
from accounting.events.gaussian import PoissonGaussian

if TYPE_CHECKING:
    from accounting.mechanisms.loss_grid import DiscretizableLoss


@EVENTS.register
@dataclass(frozen=True)
class TruncatedPoissonGaussian(Event):
    """One Gaussian release over a Poisson sample; a sample that is too large is cut to a uniform
    subset.

    Only under zero-out and replace-one: dataset_size is public and stays.

    Attributes:
        dataset_size: number of units, an integer >= 1.
        sample_rate: probability that a unit is drawn, in [0, 1], independent for each unit and each
            release.
        largest_batch: number of units that a larger sample is cut to, an integer >= 1.
        noise_multiplier: noise standard deviation / L2 sensitivity of one unit, >= 0.
    """

    kind: ClassVar[str] = "truncated-poisson-gaussian"
    dataset_size: int
    sample_rate: float
    largest_batch: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        require_count(self.dataset_size, "dataset_size", 1, "give the number of units")
        require_probability(
            "sample_rate", self.sample_rate, "give expected batch size / data set size"
        )
        require_count(
            self.largest_batch, "largest_batch", 1, "give the number of units a batch may have"
        )
        require_noise_multiplier(self.noise_multiplier)
        object.__setattr__(self, "dataset_size", int(self.dataset_size))
        object.__setattr__(self, "largest_batch", int(self.largest_batch))

    def unsupported_reason(self, adjacency: str) -> str | None:
        """A reason under add-remove: how often a sample is cut depends on the data set size, which
        that adjacency protects.
        """
        if adjacency != "add-remove":
            return None
        return (
            "a Poisson sample with a largest batch is not accounted for under add-remove: how "
            "often it is cut depends on the data set size, which must be public; ask under "
            "zero-out or replace-one"
        )

    def lower_bound_event(self, adjacency: str) -> tuple[Event, str]:
        """Plain Poisson sampling at the rate at which a unit is drawn without a cut: all other
        vectors may be 0.
        """
        from accounting.mechanisms.truncated_poisson import truncation

        if adjacency == "add-remove" or self._untruncated is not None:
            return self, adjacency
        least = truncation(self.dataset_size, self.sample_rate, self.largest_batch).rounded(-1)
        # what survives a cut is left out: it is small, and its rate is not exact
        kept = least.uncut * self.sample_rate
        return PoissonGaussian(kept, self.noise_multiplier), adjacency

    def gaussian_mu(self, adjacency: str) -> float | None:
        """0 if nothing is ever sampled; mu of an unsampled Gaussian if everything is and nothing is
        cut, else None.
        """
        plain = self._untruncated
        return None if plain is None or adjacency == "add-remove" else plain.gaussian_mu(adjacency)

    def renyi(self, order: float, adjacency: str) -> float:
        """The divergence of a mixture of Poisson sampling and sampling without replacement; see
        `truncated_renyi`.
        """
        from accounting.mechanisms.truncated_poisson import truncated_renyi

        if adjacency == "add-remove":
            return math.inf
        if self._untruncated is not None:
            return self._untruncated.renyi(order, adjacency)
        return truncated_renyi(
            self.dataset_size,
            self.sample_rate,
            self.largest_batch,
            self.noise_multiplier,
            order,
            adjacency,
        )

    def delta(self, epsilon: float, adjacency: str, upper: bool = True) -> float | None:
        """delta in closed form where nothing is ever cut, else None."""
        plain = self._untruncated
        return (
            None
            if plain is None or adjacency == "add-remove"
            else plain.delta(epsilon, adjacency, upper)
        )

    def loss_grid(
        self, adjacency: str, interval: float, tail: float
    ) -> tuple[DiscretizableLoss, ...]:
        """The losses of a mixture of Poisson sampling and, after a cut, sampling without
        replacement.
        """
        from accounting.errors import CannotComputeError
        from accounting.mechanisms.truncated_poisson import truncated_loss

        if adjacency == "add-remove":
            raise CannotComputeError(str(self.unsupported_reason(adjacency)))
        if self._untruncated is not None:
            return self._untruncated.loss_grid(adjacency, interval, tail)
        return truncated_loss(
            self.dataset_size,
            self.sample_rate,
            self.largest_batch,
            self.noise_multiplier,
            adjacency,
            interval,
            tail,
        )

    @property
    def _untruncated(self) -> PoissonGaussian | None:
        """The same release without a largest batch, if that makes no difference."""
        if self.largest_batch < self.dataset_size and self.sample_rate > 0.0:
            return None
        return PoissonGaussian(self.sample_rate, self.noise_multiplier)
