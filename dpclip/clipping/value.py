"""Value-wise clipping: each coordinate by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.clipping.rule import RULES
from dpclip.clipping.transformed import TransformedClipping


@RULES.register
@dataclass
class Value(TransformedClipping):
    """Every coordinate of a per-sample gradient is clipped to [-c, c], c = C / sqrt(d).

    Args:
        max_grad_norm: C, which d coordinates of size c have together.

    Guarantee: one sample moves the sum by at most C in L2. A sample reaches that bound only if all
    its coordinates are large, so the noise is that of a much longer gradient than most samples
    have: of use for few parameters.

    Reference: the coordinate-wise clipping of Pascanu, Mikolov, Bengio, "On the difficulty of
    training recurrent neural networks", 2013, here a sample at a time; its L2 sensitivity is
    derived here.
    """

    max_grad_norm: float = 1.0
    name: ClassVar[str] = "value"

    def __post_init__(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)
        self._sizes = [1]

    def bounds(self) -> list[float]:
        return [self.max_grad_norm]

    @property
    def threshold(self) -> float:
        """c = C / sqrt(d), d the elements of all parameters."""
        return self.max_grad_norm / math.sqrt(sum(self._sizes))

    def transform(self, slot: int, gradients: Tensor) -> Tensor:
        """Clamp each coordinate to [-c, c]; one that is not finite becomes NaN.

        Args:
            slot: the parameter's index.
            gradients: per-sample gradients, [B, d].

        Returns:
            what is clipped of them, [B, d].
        """
        clamped = gradients.clamp(-self.threshold, self.threshold)
        # so that the sample is dropped (law 6)
        return torch.where(gradients.isfinite(), clamped, torch.nan)

    def inverse(self, slot: int, mean: Tensor) -> Tensor:
        """Return the released mean unchanged, [d]."""
        return mean

    def describe(self) -> dict[str, Any]:
        return {"rule": self.name, "max_grad_norm": self.max_grad_norm, "threshold": self.threshold}
