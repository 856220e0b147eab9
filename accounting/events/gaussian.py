"""Gaussian releases: of everything, and of a Poisson sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accounting.events.base import EVENTS, Event, require_noise_multiplier, require_probability
from accounting.mechanisms.gaussian_mu import gaussian_renyi, unsampled_mu

if TYPE_CHECKING:
    from accounting.mechanisms.loss_grid import DiscretizableLoss


@EVENTS.register
@dataclass(frozen=True)
class PoissonGaussian(Event):
    """One Gaussian release over a Poisson sample.

    Attributes:
        sample_rate: probability that a unit takes part, in [0, 1], independent for each unit and
            each release.
        noise_multiplier: noise standard deviation / L2 sensitivity of one unit, >= 0.
    """

    kind: ClassVar[str] = "poisson-gaussian"
    sample_rate: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        require_probability("sample_rate", self.sample_rate, "give batch size / data set size")
        require_noise_multiplier(self.noise_multiplier)

    def gaussian_mu(self, adjacency: str) -> float | None:
        """0 if nothing is ever sampled, mu of the unsampled Gaussian if everything always is, else
        None.
        """
        if self.sample_rate == 0.0:
            return 0.0
        return unsampled_mu(self.noise_multiplier, adjacency) if self.sample_rate == 1.0 else None

    def renyi(self, order: float, adjacency: str) -> float:
        """Mironov, Talwar and Zhang 2019 (arXiv 1908.10530) for add-remove; see `poisson_renyi`."""
        from accounting.mechanisms.poisson_gaussian import poisson_renyi

        return poisson_renyi(self.sample_rate, self.noise_multiplier, order, adjacency)

    def delta(self, epsilon: float, adjacency: str, upper: bool = True) -> float | None:
        """delta in closed form under add-remove and zero-out, if anything is sampled, else None."""
        from accounting.mechanisms.poisson_gaussian import poisson_delta

        if adjacency == "replace-one" or self.sample_rate == 0.0:
            return None
        return poisson_delta(self.sample_rate, self.noise_multiplier, epsilon, upper)

    def loss_grid(
        self, adjacency: str, interval: float, tail: float
    ) -> tuple[DiscretizableLoss, ...]:
        """(1-q) N(0) + q N(1) against N(0) in both directions, or against (1-q) N(0) + q N(-1) for
        replace-one.
        """
        from accounting.mechanisms.poisson_gaussian import poisson_loss_grid

        return poisson_loss_grid(self.sample_rate, self.noise_multiplier, adjacency, interval, tail)


@EVENTS.register
@dataclass(frozen=True)
class Gaussian(Event):
    """One Gaussian release over the whole data set, without sampling.

    Attributes:
        noise_multiplier: noise standard deviation / L2 sensitivity of one unit, >= 0.
    """

    kind: ClassVar[str] = "gaussian"
    noise_multiplier: float

    def __post_init__(self) -> None:
        require_noise_multiplier(self.noise_multiplier)

    def gaussian_mu(self, adjacency: str) -> float | None:
        """How far one unit moves the sum (twice the sensitivity under replace-one) / noise."""
        return unsampled_mu(self.noise_multiplier, adjacency)

    def renyi(self, order: float, adjacency: str) -> float:
        """order mu^2 / 2, the divergence of N(mu, 1) from N(0, 1)."""
        return gaussian_renyi(self.gaussian_mu(adjacency), order)

    def loss_grid(
        self, adjacency: str, interval: float, tail: float
    ) -> tuple[DiscretizableLoss, ...]:
        """The losses of a Poisson sample at a rate of 1."""
        return PoissonGaussian(1.0, self.noise_multiplier).loss_grid(adjacency, interval, tail)
