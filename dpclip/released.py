"""Values that have crossed the privacy boundary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

if TYPE_CHECKING:  # verbs that need no torch read receipts, too
    import torch
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Receipt:
    """Proof that one step's event was written to the ledger before its sample was drawn.

    Attributes:
        step: index of the logical step, from 0.
        generation: which stream of randomness serves the step; a fresh one after a replay that
            could not be bit-identical.
        noise_multiplier: the sigma_eff that was charged, relative to the joint L2 sensitivity.
        position: the charge's position in the ledger.
        planned_steps: after how many planned steps as much has been spent as after this charge;
            None if it is more than the whole plan.
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

    Constructed in `dpclip.noise.release` only (a test holds the code base to it). Controllers,
    adaptive thresholds, post-processing and logs accept `Released` values and nothing else that was
    computed from private data.
    """

    value: T
    receipt: Receipt

    def map(self, function: Callable[[T], Any]) -> Released[Any]:
        """Apply a function: what is computed from a released value alone is as public as the value.

        Args:
            function: post-processing, which reads nothing private.

        Returns:
            its result, under the same receipt.
        """
        return replace(self, value=function(self.value))


@dataclass(frozen=True)
class SideQuery:
    """A statistic released together with the gradient, inside the same Gaussian release.

    Attributes:
        name: key under which `observe` finds the released sum.
        sensitivity: L2 bound on one unit's column of `per_sample`.
        relative_noise: noise standard deviation over that sensitivity; None goes by `share`.
        per_sample: norms [K, B], or losses [1, B], -> statistics [m, B], summed over the logical
            batch before the release.
        size: m.
        share: part of the step's privacy budget 1/sigma^2, in place of `relative_noise`.
        reads: "norms" or "losses".
    """

    name: str
    sensitivity: float
    relative_noise: float | None
    per_sample: Callable[[Tensor], Tensor]
    size: int = 1
    share: float = 0.0
    reads: Literal["norms", "losses"] = "norms"

    def noise_for(self, noise_multiplier: float) -> float:
        """Return the noise standard deviation over `sensitivity`.

        Args:
            noise_multiplier: sigma of a step whose whole budget is 1/sigma^2.

        Returns:
            `relative_noise`, or else sigma / sqrt(share); 0 without either.
        """
        if self.relative_noise is not None:
            return self.relative_noise
        return noise_multiplier / math.sqrt(self.share) if self.share > 0 else 0.0


@dataclass(frozen=True)
class StepRelease:
    """All that one step releases.

    Attributes:
        gradient: the noisy sum divided by `divisor`, one tensor a parameter; the mean's scale.
        sides: the noisy sums of the side statistics, [m] each, by name; the sum's scale.
        divisor: the public expected batch size.
        stds: the noise of each group's sum, [K]; public.
        side_stds: the noise of each side statistic, by name, on the sum's scale; public.
        coordinate_stds: the noise in each coordinate of each tensor of `gradient`, on the mean's
            scale; empty where it differs within one.
    """

    gradient: list[Tensor]
    sides: Mapping[str, Tensor]
    divisor: float = 1.0
    stds: tuple[float, ...] = ()
    side_stds: Mapping[str, float] = field(default_factory=dict)
    coordinate_stds: tuple[float, ...] = ()


class Sum(Protocol):
    """One tensor a parameter, summed over a logical batch: `GradientSum`, or integers on a grid."""

    groups: list[int]
    dtypes: list[torch.dtype]

    @property
    def tensors(self) -> list[Tensor]:
        """The sums, float32 or wider."""
        ...

    def take(self, slot: int, form: Any, factors: Tensor, keep: Tensor | None) -> None:
        """Add one parameter's weighted gradients.

        Args:
            slot: the parameter's index.
            form: its per-sample gradients.
            factors: weight of each, [rows].
            keep: which rows are read at all, bool, [rows]; None reads all.
        """
        ...

    def parts(self, slot: int) -> list[tuple[Tensor, float]]:
        """Return the tensors that hold one parameter's sum, each with its unit.

        Args:
            slot: the parameter's index.

        Returns:
            tensors and units; the sum of their products is the parameter's sum.
        """
        ...

    def digest(self, sides: Iterable[Tensor], key: bytes) -> str:
        """Fingerprint the exact bits; sensitive.

        Args:
            sides: sums of side statistics.
            key: 32 secret bytes that serve this digest alone.
        """
        ...
