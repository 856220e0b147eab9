"""AdaClip: coordinates are shifted and scaled so that noise goes where there is room.

Shift and scale follow the released gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_decay, check_range, check_threshold
from dpclip.clipping.rule import RULES
from dpclip.clipping.transformed import TransformedClipping
from dpclip.released import Released, StepRelease


@RULES.register
@dataclass
class AdaClip(TransformedClipping):
    """w = (g - a) / b by coordinates, clipped to norm 1; the released gradient is b w~ + a.

    b_i = sqrt(s_i sum_j s_j) makes E||w||^2 <= 1 at the least total noise, s_i the coordinate's
    standard deviation. a and s follow the released gradients alone: a = EMA(g~), s^2 = EMA of h B
    ((g~ - a)^2 - v), v the noise's own variance in g~. Both factors are ours. B (the expected
    batch): g~ is a mean, and a sample's variance is B times a mean's. h (headroom): where all
    samples are clipped, h = 1 finds the scale that is already used, so that one which began too
    small would stay so.

    Args:
        mean_decay: of a, in [0, 1).
        variance_decay: of s^2, in [0, 1).
        headroom: h, positive.
        lowest: s^2 stays between; 0 < lowest < highest.
        highest: s^2 stays between; 0 < lowest < highest.

    Guarantee: one sample moves the sum of w by at most 1.

    Edge cases: a starts at 0 and s^2 at sqrt(lowest highest), so b starts small and the first steps
    clip hard. Where sigma sqrt(d) is not well below sqrt(B), what is left of the noise after v is
    subtracted feeds s, and the scale grows to `highest`: then flat clipping is better (measured
    here).

    Reference: Pichapati, Suresh, Yu, Reddi, Kumar, "AdaCliP: Adaptive Clipping for Private SGD",
    2019 (updates and constants from memory of the paper).
    """

    mean_decay: float = 0.99
    variance_decay: float = 0.9
    headroom: float = 2.0
    lowest: float = 1e-12
    highest: float = 10.0
    name: ClassVar[str] = "adaclip"

    def __post_init__(self) -> None:
        check_decay("mean_decay", self.mean_decay)
        check_decay("variance_decay", self.variance_decay)
        check_threshold("headroom", self.headroom)
        check_range(self.lowest, self.highest)
        self._mean: list[Tensor] = []
        self._variance: list[Tensor] = []

    def partition(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Put all parameters in one group and start a at 0 and s^2 at sqrt(lowest highest).

        Args:
            names: of the trainable parameters.
            sizes: their numbers of elements d.
        """
        start = (self.lowest * self.highest) ** 0.5
        self._mean = [torch.zeros(size) for size in sizes]
        self._variance = [torch.full((size,), start) for size in sizes]
        return super().partition(names, sizes)

    def _scale(self, slot: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b of one parameter, [d] each, in the dtype and on the device of `like`."""
        whole = sum(float(v.double().sqrt().sum()) for v in self._variance)
        scale = (self._variance[slot].sqrt() * whole).sqrt()
        return self._mean[slot].to(like), scale.to(like)

    def transform(self, slot: int, gradients: Tensor) -> Tensor:
        """Compute w = (g - a) / b.

        Args:
            slot: the parameter's index.
            gradients: per-sample gradients, [B, d].

        Returns:
            w, [B, d].
        """
        mean, scale = self._scale(slot, gradients)
        return (gradients - mean) / scale

    def inverse(self, slot: int, mean: Tensor) -> Tensor:
        """Compute b w + a.

        Args:
            slot: the parameter's index.
            mean: released mean of w, [d].

        Returns:
            the gradient, on the scale of the mean, [d].
        """
        shift, scale = self._scale(slot, mean)
        return mean * scale + shift

    def observe(self, released: Released[StepRelease]) -> None:
        """Move a and s^2 towards what the released gradient says of them.

        Args:
            released: the step, its gradient already inverted and on the scale of the mean.
        """
        step = released.value
        noise = step.stds[0] / step.divisor
        scales = [self._scale(slot, value)[1].cpu() for slot, value in enumerate(self._mean)]
        for slot, gradient in enumerate(step.gradient):
            found = gradient.detach().reshape(-1).float().cpu()
            own = (found - self._mean[slot]).square() - (scales[slot] * noise).square()
            samples = (self.headroom * step.divisor * own).clamp(self.lowest, self.highest)
            self._variance[slot].lerp_(samples, 1 - self.variance_decay)
            self._mean[slot].lerp_(found, 1 - self.mean_decay)

    def tensor_state(self) -> dict[str, Tensor]:
        means = {f"mean.{i}": value for i, value in enumerate(self._mean)}
        return means | {f"variance.{i}": value for i, value in enumerate(self._variance)}

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        self._mean = [state[f"mean.{i}"] for i in range(len(self._mean))]
        self._variance = [state[f"variance.{i}"] for i in range(len(self._variance))]

    def describe(self) -> dict[str, Any]:
        fields = ("mean_decay", "variance_decay", "headroom", "lowest", "highest")
        return {"rule": self.name, **{name: getattr(self, name) for name in fields}}
