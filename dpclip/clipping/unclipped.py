"""No clipping: for training without privacy on the same path."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from dpclip.clipping.rule import RULES, ClippingRule


@RULES.register
class Unclipped(ClippingRule):
    """factor_i = 1. Its bound is infinite, so a release with finite noise is refused."""

    name: ClassVar[str] = "none"

    def bounds(self) -> list[float]:
        return [float("inf")]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Keep every gradient as it is.

        Args:
            norms: [1, B].

        Returns:
            {"release": ones [1, B]}.
        """
        return {"release": torch.ones_like(norms)}
