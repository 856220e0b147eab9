"""A Gaussian release to which one unit contributes a random number of times."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accounting.errors import require
from accounting.events.base import (
    EVENTS,
    Event,
    is_real,
    require_count,
    require_noise_multiplier,
    require_probability,
)
from accounting.mechanisms.gaussian_mu import gaussian_renyi, unsampled_mu

if TYPE_CHECKING:
    from accounting.mechanisms.loss_grid import DiscretizableLoss


@EVENTS.register
@dataclass(frozen=True)
class MixtureGaussian(Event):
    """One Gaussian release to which a unit adds a vector of norm at most sensitivities[i] with
    probability probabilities[i].

    Sums of several independent Poisson draws of the same unit, and groups of units, are of this
    kind.

    Attributes:
        sensitivities: in units of C, each finite and >= 0.
        probabilities: as many, which sum to 1; the choice is independent of all other units.
        noise_multiplier: noise standard deviation / C, >= 0.
    """

    kind: ClassVar[str] = "mixture-gaussian"
    sensitivities: tuple[float, ...]
    probabilities: tuple[float, ...]
    noise_multiplier: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "sensitivities", tuple(self.sensitivities))
        object.__setattr__(self, "probabilities", tuple(self.probabilities))
        require_noise_multiplier(self.noise_multiplier)
        require(
            0 < len(self.sensitivities) == len(self.probabilities),
            f"{len(self.sensitivities)} sensitivities and {len(self.probabilities)} probabilities "
            "do not make a mixture; give one probability for each sensitivity",
        )
        for value in self.sensitivities:
            require(
                is_real(value) and 0.0 <= value < math.inf,
                f"sensitivity {value!r} is not a finite number >= 0; give norms in units of C",
            )
        for value in self.probabilities:
            require_probability("probability", value, "give how likely each sensitivity is")
        total = math.fsum(self.probabilities)
        require(
            abs(total - 1.0) <= 1e-12, f"the probabilities sum to {total!r}; make them sum to 1"
        )

    @classmethod
    def accumulated(
        cls, sample_rate: float, draws: int, noise_multiplier: float
    ) -> MixtureGaussian:
        """The sum of several independent Poisson samples, which may contain a unit several times.

        Also a group of `draws` units under add-remove of the whole group.

        Args:
            sample_rate: probability that a unit is in one sample, in [0, 1].
            draws: number of samples, >= 1.
            noise_multiplier: noise standard deviation / C of one contribution, >= 0.

        Raises:
            InputError: a value out of range.
        """
        require_probability(
            "sample_rate", sample_rate, "give batch size / data set size of one draw"
        )
        require_count(draws, "draws", 1, "give the number of samples that are added up")
        chances = [
            math.comb(draws, k) * sample_rate**k * (1 - sample_rate) ** (draws - k)
            for k in range(draws + 1)
        ]
        total = math.fsum(chances)
        return cls(
            tuple(map(float, range(draws + 1))),
            tuple(chance / total for chance in chances),
            noise_multiplier,
        )

    def gaussian_mu(self, adjacency: str) -> float | None:
        """mu of an unsampled release if the norm is certain, else None."""
        certain = {
            c
            for c, chance in zip(self.sensitivities, self.probabilities, strict=True)
            if chance > 0.0
        }
        if len(certain) > 1:
            return None
        (size,) = certain
        return (
            size * unsampled_mu(self.noise_multiplier, adjacency) * (1 + 1e-15)
            if size > 0.0
            else 0.0
        )

    def renyi(self, order: float, adjacency: str) -> float:
        """The exact moment of the dominating pair, the larger of both directions; see
        `mixture_renyi`.
        """
        from accounting.mechanisms.mixture_gaussian import mixture_renyi

        if self.gaussian_mu(adjacency) is not None:
            return gaussian_renyi(self.gaussian_mu(adjacency), order)
        return mixture_renyi(
            self.sensitivities, self.probabilities, self.noise_multiplier, order, adjacency
        )

    def loss_grid(
        self, adjacency: str, interval: float, tail: float
    ) -> tuple[DiscretizableLoss, ...]:
        """sum p_i N(c_i) against N(0) in both directions, or against sum p_i N(-c_i) for
        replace-one.
        """
        from accounting.mechanisms.mixture_gaussian import mixture_loss_grid

        return mixture_loss_grid(
            self.sensitivities, self.probabilities, self.noise_multiplier, adjacency, interval, tail
        )  # fmt: skip
