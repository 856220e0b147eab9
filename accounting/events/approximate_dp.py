"""Releases of which only their own guarantee is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from accounting.errors import require
from accounting.events.base import EVENTS, Event, is_real, require_adjacency, require_probability

if TYPE_CHECKING:
    from accounting.interval import Interval
    from accounting.mechanisms.loss_grid import DiscretizableLoss


class _Stated(Event):
    """What both events share: a pair (epsilon, failure probability) that holds under one
    adjacency.
    """

    epsilon: float
    adjacency: str

    def stated_under(self, adjacency: str) -> tuple[float, float] | None:
        """(epsilon, failure probability) under the adjacency asked for, or None if it does not
        follow.

        Replacing a unit is taking it out and putting another one in its place, so that a statement
        under add-remove or zero-out gives (2 epsilon, failure (1 + e^epsilon)) under replace-one: P
        <= e^eps R + d and R <= e^eps Q + d. Nothing else follows for a mechanism that is not looked
        into.
        """
        failure = self._failure()
        if adjacency == self.adjacency:
            return self.epsilon, failure
        if adjacency != "replace-one":
            return None
        return 2 * self.epsilon, failure * (1 + math.exp(min(self.epsilon, 700.0))) * (1 + 1e-15)

    def unsupported_reason(self, adjacency: str) -> str | None:
        """Why the statement does not carry over, or says nothing there; None if it holds."""
        found = self.stated_under(adjacency)
        if found is None:
            return f"a guarantee stated under {self.adjacency} does not imply one under {adjacency}"
        if found[1] >= 1.0:
            return (
                f"the guarantee stated under {self.adjacency} has a failure probability of 1 under "
                f"{adjacency}"
            )
        return None

    def gaussian_mu(self, adjacency: str) -> float | None:
        """0 if the statement is that nothing is revealed, else None."""
        return 0.0 if self.stated_under(adjacency) == (0.0, 0.0) else None

    def renyi(self, order: float, adjacency: str) -> float:
        """The divergence of randomized response, given that the guarantee does not fail."""
        from accounting.mechanisms.approximate_dp import response_renyi

        found = self.stated_under(adjacency)
        return math.inf if found is None else response_renyi(found[0], order)

    def failure_probability_under(self, adjacency: str) -> float:
        """The failure probability of the statement."""
        found = self.stated_under(adjacency)
        return 1.0 if found is None else min(1.0, found[1])

    def delta(self, epsilon: float, adjacency: str, upper: bool = True) -> float | None:
        """delta of randomized response; None where the statement does not carry over."""
        from accounting.mechanisms.approximate_dp import response_delta

        found = self.stated_under(adjacency)
        return None if found is None else response_delta(*found, epsilon, upper)

    def verified_epsilon(self, count: int, delta: float, adjacency: str) -> Interval | None:
        """The exact composition of `count` equal statements."""
        from accounting.mechanisms.approximate_dp import response_epsilon

        found = self.stated_under(adjacency)
        return None if found is None else response_epsilon(*found, count, delta)

    def loss_grid(
        self, adjacency: str, interval: float, tail: float
    ) -> tuple[DiscretizableLoss, ...]:
        """One direction: the pair is symmetric."""
        from accounting.errors import CannotComputeError
        from accounting.mechanisms.approximate_dp import response_loss_grid

        found = self.stated_under(adjacency)
        if found is None:
            raise CannotComputeError(str(self.unsupported_reason(adjacency)))
        return (response_loss_grid(*found, interval, tail),)

    def _failure(self) -> float:
        return 0.0


@EVENTS.register
@dataclass(frozen=True)
class PureDP(_Stated):
    """A release that is epsilon-DP, by a proof from elsewhere.

    Attributes:
        epsilon: a finite number >= 0.
        adjacency: the neighbouring relation the proof is for.
    """

    kind: ClassVar[str] = "pure-dp"
    epsilon: float
    adjacency: str

    def __post_init__(self) -> None:
        _require_statement(self.epsilon, self.adjacency)


@EVENTS.register
@dataclass(frozen=True)
class ApproximateDP(_Stated):
    """A release that is (epsilon, delta)-DP, by a proof from elsewhere.

    Attributes:
        epsilon: a finite number >= 0.
        failure_probability: the delta of the statement, in [0, 1).
        adjacency: the neighbouring relation the proof is for.
    """

    kind: ClassVar[str] = "approximate-dp"
    epsilon: float
    failure_probability: float
    adjacency: str

    def __post_init__(self) -> None:
        _require_statement(self.epsilon, self.adjacency)
        require_probability(
            "failure_probability", self.failure_probability, "give the delta of the statement"
        )
        require(
            self.failure_probability < 1.0,
            "failure_probability=1 is no guarantee; book the release as NonPrivate",
        )

    def _failure(self) -> float:
        return self.failure_probability


def _require_statement(epsilon: float, adjacency: str) -> None:
    require(
        is_real(epsilon) and 0.0 <= epsilon < math.inf,
        f"epsilon={epsilon!r} is not a finite number >= 0; give the one that was proven, or use "
        "NonPrivate",
    )
    require_adjacency(adjacency)
