"""Per-sample adaptive clipping: automatic clipping that does not blow up the smallest gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.clipping.rule import RULES, ClippingRule


@RULES.register
@dataclass
class Psac(ClippingRule):
    """factor_i = C / (||g_i|| + r / (||g_i|| + r)).

    The weight is largest at ||g_i|| = sqrt(r) - r and falls back to C as the gradient vanishes,
    where automatic clipping's grows to C / gamma.

    Args:
        max_grad_norm: C.
        regularizer: r, positive (paper: 0.1).

    Guarantee: the denominator is above ||g_i||, so one sample moves the sum by less than C.

    Edge cases: a zero gradient gets factor C.

    Reference: Xia et al., "Differentially Private Learning with Per-Sample Adaptive Clipping", AAAI
    2023.
    """

    max_grad_norm: float = 1.0
    regularizer: float = 0.1
    name: ClassVar[str] = "psac"

    def __post_init__(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)
        check_threshold("regularizer", self.regularizer)

    def bounds(self) -> list[float]:
        return [self.max_grad_norm]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Divide C by each norm plus r / (norm + r).

        Args:
            norms: L2 norms of whole per-sample gradients, [1, B].

        Returns:
            {"release": factors [1, B]}; the largest is C / (2 sqrt(r) - r) for r < 1.
        """
        return {
            "release": self.max_grad_norm / (norms + self.regularizer / (norms + self.regularizer))
        }

    def describe(self) -> dict[str, Any]:
        return {
            "rule": self.name,
            "max_grad_norm": self.max_grad_norm,
            "regularizer": self.regularizer,
        }
