"""What rules share that change coordinates before they clip: flat gradients in, flat gradients
back.
"""

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
        """On ||w||: 1 unless overridden."""
        return [1.0]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        return {"release": (self.bounds()[0] / norms).clamp(max=1.0)}

    def transformed(self, view: Gradients) -> Gradients:
        return view.map_samples(self.transform, self._sizes)

    def inverted(self, step: StepRelease) -> StepRelease:
        back = [
            self.inverse(slot, w.reshape(-1)).view_as(w) for slot, w in enumerate(step.gradient)
        ]
        return replace(step, gradient=back, coordinate_stds=())

    @abstractmethod
    def transform(self, slot: int, gradients: Tensor) -> Tensor:
        """w of one parameter's gradients, [B, d] to [B, d]; a function of released values only."""

    @abstractmethod
    def inverse(self, slot: int, mean: Tensor) -> Tensor:
        """The gradient that the released mean of w stands for, [d] to [d]."""
