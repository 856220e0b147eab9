"""Normalized gradients: every gradient scaled by its own norm plus a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.clipping.rule import RULES, ClippingRule


@RULES.register
@dataclass
class Normalized(ClippingRule):
    """factor_i = C / (r + ||g_i||).

    The same function as `Automatic`; what differs is what r is for: chosen of the order of the
    gradients it makes the rule nearly linear in small ones, so that they keep their size beside
    large ones.

    Args:
        max_grad_norm: C.
        regularizer: r, positive. The default 1 is ours; the paper tunes it.

    Guarantee: one sample moves the sum by less than C.

    Reference: Yang, Zhang, Chen, Liu, "Normalized/Clipped SGD with Perturbation for Differentially
    Private Non-Convex Optimization", 2022.
    """

    max_grad_norm: float = 1.0
    regularizer: float = 1.0
    name: ClassVar[str] = "normalized"

    def __post_init__(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)
        check_threshold("regularizer", self.regularizer)

    def bounds(self) -> list[float]:
        return [self.max_grad_norm]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Divide C by each norm plus r.

        Args:
            norms: L2 norms of whole per-sample gradients, [1, B].

        Returns:
            {"release": factors [1, B], in [0, C / r]}.
        """
        return {"release": self.max_grad_norm / (norms + self.regularizer)}

    def describe(self) -> dict[str, Any]:
        return {
            "rule": self.name,
            "max_grad_norm": self.max_grad_norm,
            "regularizer": self.regularizer,
        }
