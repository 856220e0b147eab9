"""The contract of a clipping rule: norms in, factors out, and the sensitivity it promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from dpclip.clipping.state import Stateful
from dpclip.registry import Registry
from dpclip.released import Released, SideQuery, StepRelease, Sum

ParameterKind = Literal["adapter", "embedding", "matrix", "vector"]


@dataclass(frozen=True)
class RunShape:
    """What a rule may know of the plan; public.

    Attributes:
        steps: planned logical steps.
        expected_batch_size: the divisor of the released sum.
        participations: most steps that draw any one unit, or None if that is not bounded.
    """

    steps: int
    expected_batch_size: int
    participations: int | None = None


class Gradients(Protocol):
    """Per-sample gradients as a rule sees them: B samples, K groups."""

    def squared_norms(self) -> Tensor:
        """Squared L2 norms, [K, B]."""
        ...

    def weighted_sum(self, factors: Tensor, into: Sum) -> None:
        """Add sum_i factors[k, i] g_i[k] to `into`."""
        ...

    def map_samples(
        self, change: Callable[[int, Tensor], Tensor], sizes: Sequence[int]
    ) -> Gradients:
        """The same samples with other coordinates.

        Args:
            change: parameter's index and gradients [B, d], float32 or wider -> what stands for
                them, [B, d].
            sizes: d of each parameter; one that a micro-batch did not use has gradients 0.
        """
        ...


class ClippingRule(Stateful, ABC):
    """Turns per-sample norms into factors. Lives on the sensitive side and knows nothing of noise
    or accounting.

    Laws (`tests/clipper_laws.py` holds every registered rule to them):

    - factors are finite and not negative, and one sample's weighted gradient in group k has norm at
      most `bounds()[k]`, for any gradient, in any dtype;
    - `bounds()`, `shares()` and `partition()` depend on constructor arguments and on observed
      `Released` values only, and stay fixed from the charge to the release of a logical step;
    - the order of samples and the split into micro-batches do not matter.
    """

    name: ClassVar[str]
    separable: ClassVar[bool] = False
    """Whether row k of every weighting depends on row k of the norms alone, so that groups can be
    clipped one by one inside the backward pass; a gradient that is not finite is then dropped group
    by group.
    """

    transforms: ClassVar[bool] = False
    """Whether the gradients themselves are needed, not only their norms."""

    follows_updates: ClassVar[bool] = False
    """Whether `updated` is to be told what became of the weights."""

    sampling: str = "poisson"
    """How batches must be drawn for the rule's promise to hold: "poisson", "filtered" (Poisson,
    with noise that the rule chooses), "halves" or "passes" (`schemes.py`).
    """

    assumption: str | None = None
    """What the promise rests on that nobody has checked; the guarantee is then conditional, and has
    to be asked for.
    """

    def set_run(self, shape: RunShape) -> None:
        """Told once, before training, how long the run is; called before `bounds`."""
        return None

    def forget_unreleased(self) -> None:
        """Steps before this one are about to be repeated with fresh noise: forget what they left
        behind in private.
        """
        return None

    def partition(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """The group of each trainable parameter, numbered from 0; all in one group unless
        overridden.

        Args:
            names: of the trainable parameters.
            sizes: their numbers of elements.
        """
        return [0] * len(names)

    def set_parameter_kinds(self, kinds: Sequence[ParameterKind]) -> None:
        """Told once, before `partition`, what each trainable parameter is; public."""
        return None

    @abstractmethod
    def bounds(self) -> list[float]:
        """What one sample can move each group's sum by, in L2, shape [K]."""

    def limits(self) -> dict[str, list[float]]:
        """What one sample adds at most to each group of each sum of `clip_factors`, in L2, [K]
        each; at most a bound.
        """
        return {"release": self.bounds()}

    def shares(self) -> list[float]:
        """Each group's share of the gradient's privacy budget 1/sigma^2, shape [K], summing
        to 1.
        """
        count = len(self.bounds())
        return [1.0 / count] * count

    def noise_preference(self) -> float:
        """How much noise the next step should have: 0 as planned, -1 the least and 1 the most that
        the plan allows.

        Heard with sampling "filtered" only.
        """
        return 0.0

    def learning_rate_multipliers(self) -> list[float]:
        """What each parameter's learning rate is multiplied by in the next update, from released
        values: free.

        One number a parameter, in the order of `partition`; empty for no change.
        """
        return []

    @abstractmethod
    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Factors for each sum the rule needs.

        Args:
            norms: float, shape [K, B], finite.

        Returns:
            {"release": factors [K, B]} and, for rules that need them, further sums by name.
        """

    def transformed(self, view: Gradients) -> Gradients:
        """The view whose norms are clipped; the gradients as they are unless overridden."""
        return view

    def inverted(self, step: StepRelease) -> StepRelease:
        """Undo `transformed` on what was released: post-processing."""
        return step

    def side_queries(self) -> Sequence[SideQuery]:
        """Statistics to be released with the gradient."""
        return ()

    def combine(self, sums: Mapping[str, Sum]) -> Sum:
        """The sum that is released; the identity for most rules."""
        return sums["release"]

    def observe(self, released: Released[StepRelease]) -> None:
        """Learn from what has been released, and from nothing else."""
        return None

    def updated(self, moves: Released[Sequence[float]]) -> None:
        """Learn how far the update moved each parameter (`Movement.lengths`), if
        `follows_updates`.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """For the statement: the rule's name and its settings."""
        return {"rule": self.name, **self.public_state()}


RULES: Registry[ClippingRule] = Registry("clipping rule", "dpclip.clipping_rules")
