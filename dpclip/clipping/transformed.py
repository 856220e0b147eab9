"""What rules share that change coordinates before they clip: flat gradients in and back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from dpclip.clipping.rule import ClippingRule, Gradients
from dpclip.released import StepRelease


class TransformedClipping(ClippingRule):
    """Clips w = f(g) instead of g, and gives the optimizer f^-1 of the released mean.

    Memory: every micro-batch holds w for all its samples and parameters, [B, d].
    """

    transforms: ClassVar[bool] = True

    def partition(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        self._sizes = list(sizes)
        return super().partition(names, sizes)

    def bounds(self) -> list[float]:
        """Bound ||w||, [1]: 1 unless overridden."""
        return [1.0]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Scale each w to norm at most `bounds()[0]`.

        Args:
            norms: L2 norms of w over all parameters, [1, B].

        Returns:
            {"release": factors [1, B], in [0, 1]}.
        """
        return {"release": (self.bounds()[0] / norms).clamp(max=1.0)}

    def transformed(self, view: Gradients) -> Gradients:
        return view.map_samples(self.transform, self._sizes)

    def inverted(self, step: StepRelease) -> StepRelease:
        """Apply `inverse` to each parameter's released mean.

        Args:
            step: the release of w, on the scale of the mean.

        Returns:
            the step with gradients in the parameters' shapes; `coordinate_stds` is empty, since the
            noise differs within a tensor.
        """
        back = [
            self.inverse(slot, w.reshape(-1)).view_as(w) for slot, w in enumerate(step.gradient)
        ]
        return replace(step, gradient=back, coordinate_stds=())

    @abstractmethod
    def transform(self, slot: int, gradients: Tensor) -> Tensor:
        """Compute w for one parameter's gradients, as a function of released values only.

        Args:
            slot: the parameter's index.
            gradients: per-sample gradients, [B, d].

        Returns:
            w, [B, d].
        """

    @abstractmethod
    def inverse(self, slot: int, mean: Tensor) -> Tensor:
        """Compute the gradient that the released mean of w stands for.

        Args:
            slot: the parameter's index.
            mean: released mean of w, [d].

        Returns:
            the gradient, on the scale of the mean, [d].
        """
