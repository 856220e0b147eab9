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
        """Return the squared L2 norm of each sample's gradient in each group, [K, B]."""
        ...

    def weighted_sum(self, factors: Tensor, into: Sum) -> None:
        """Add sum_i factors[k, i] g_i[k] to `into`.

        Args:
            factors: weight of each sample in each group, [K, B].
            into: accumulators of one tensor a parameter, on the sum scale; changed in place.
        """
        ...

    def map_samples(
        self, change: Callable[[int, Tensor], Tensor], sizes: Sequence[int]
    ) -> Gradients:
        """Present the same samples in other coordinates.

        Args:
            change: parameter's index and gradients [B, d], float32 or wider -> what stands for
                them, [B, d].
            sizes: d of each parameter; one that a micro-batch did not use has gradients 0.
        """
        ...


class ClippingRule(Stateful, ABC):
    """Turns per-sample norms into factors, knowing nothing of noise or accounting.

    It lives on the sensitive side.

    Laws (`dpclip.testing.check_rule` holds every registered rule to them):

    - factors are finite and not negative, and one sample's weighted gradient in group k has norm at
      most `bounds()[k]`, for any gradient, in any dtype;
    - `bounds()`, `shares()` and `partition()` depend on constructor arguments and on observed
      `Released` values only, and stay fixed from the charge to the release of a logical step;
    - the order of samples and the split into micro-batches do not matter.
    """

    name: ClassVar[str]
    separable: ClassVar[bool] = False
    """Whether row k of every weighting depends on row k of the norms alone.

    Groups can then be clipped one by one inside the backward pass, and a gradient that is not
    finite is dropped group by group.
    """

    transforms: ClassVar[bool] = False
    """Whether the gradients themselves are needed, not only their norms."""

    follows_updates: ClassVar[bool] = False
    """Whether `updated` is called with what became of the weights."""

    sampling: str = "poisson"
    """How batches must be drawn for the rule's promise to hold (`dpclip/sampling/scheme.py`).

    "poisson", "filtered" (Poisson, with noise that the rule chooses), "halves" or "passes".
    """

    assumption: str | None = None
    """What the promise rests on that nobody has checked; None if nothing.

    With an assumption the guarantee is conditional, and has to be asked for.
    """

    def set_run(self, shape: RunShape) -> None:
        """Learn how long the run is; called once, before training and before `bounds`.

        Args:
            shape: steps, expected batch size and participations of the plan; public.
        """
        return None

    def forget_unreleased(self) -> None:
        """Forget what unreleased steps left behind in private.

        Called when steps before this one are about to be repeated with fresh noise.
        """
        return None

    def partition(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Number the group of each trainable parameter; all in group 0 unless overridden.

        Args:
            names: of the trainable parameters.
            sizes: their numbers of elements.

        Returns:
            the group k of each parameter, in the order of `names`; 0 to K - 1.
        """
        return [0] * len(names)

    def set_parameter_kinds(self, kinds: Sequence[ParameterKind]) -> None:
        """Learn what each trainable parameter is; called once, before `partition`.

        Args:
            kinds: one for each trainable parameter, in the order of `partition`; public.
        """
        return None

    @abstractmethod
    def bounds(self) -> list[float]:
        """Bound what one sample can move each group's sum by, in L2, shape [K]."""

    def limits(self) -> dict[str, list[float]]:
        """Bound what one sample adds to each group of each sum of `clip_factors`, in L2, [K] each.

        That of the sum "release" is at most `bounds()`.
        """
        return {"release": self.bounds()}

    def shares(self) -> list[float]:
        """Divide the gradient's privacy budget 1/sigma^2 between the groups, [K], summing to 1."""
        count = len(self.bounds())
        return [1.0 / count] * count

    def noise_preference(self) -> float:
        """Say how much noise the next step should have, in [-1, 1].

        0 is the planned noise, -1 the least and 1 the most that the plan allows. Heard with
        sampling "filtered" only.
        """
        return 0.0

    def learning_rate_multipliers(self) -> list[float]:
        """Choose factors for each parameter's learning rate in the next update.

        They come from released values and cost no privacy.

        Returns:
            one factor a parameter, in the order of `partition`; empty for no change.
        """
        return []

    @abstractmethod
    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Compute factors for each sum the rule needs.

        Args:
            norms: L2 norms of the per-sample gradients, float, [K, B], finite and at least 0.

        Returns:
            {"release": factors [K, B]} and, for rules that need them, further sums by name.
        """

    def transformed(self, view: Gradients) -> Gradients:
        """Change the coordinates that are clipped; the gradients as they are unless overridden.

        Args:
            view: the per-sample gradients, B samples in K groups.

        Returns:
            the view whose norms `clip_factors` gets and whose weighted sum is released.
        """
        return view

    def inverted(self, step: StepRelease) -> StepRelease:
        """Undo `transformed` on what was released: post-processing.

        Args:
            step: what the step released, in the coordinates of `transformed`; its gradient is on
                the scale of the mean.

        Returns:
            the same release in the parameters' own coordinates.
        """
        return step

    def side_queries(self) -> Sequence[SideQuery]:
        """Name the statistics that are released with the gradient; none unless overridden."""
        return ()

    def combine(self, sums: Mapping[str, Sum]) -> Sum:
        """Make the sum that is released from the weighted sums; the identity for most rules.

        Args:
            sums: a logical batch's sum for each key of `clip_factors`; sensitive.
        """
        return sums["release"]

    def observe(self, released: Released[StepRelease]) -> None:
        """Learn from what has been released, and from nothing else.

        Args:
            released: the step after `inverted`; its gradient is on the scale of the mean, its side
                statistics on the scale of sums.
        """
        return None

    def updated(self, moves: Released[Sequence[float]]) -> None:
        """Learn how far the update moved each parameter; called only if `follows_updates`.

        Args:
            moves: one length for each trainable parameter (`Movement.lengths`).
        """
        return None

    def describe(self) -> dict[str, Any]:
        """Return the rule's name and settings for the statement, as JSON."""
        return {"rule": self.name, **self.public_state()}


RULES: Registry[ClippingRule] = Registry("clipping rule", "dpclip.clipping_rules")
