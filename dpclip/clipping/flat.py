"""Flat clipping: one threshold on the norm of the whole per-sample gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.clipping.rule import RULES, ClippingRule


@RULES.register
@dataclass
class Flat(ClippingRule):
    """factor_i = min(1, C / ||g_i||).

    Args:
        max_grad_norm: threshold C, in the units of the per-sample gradient; positive and finite.

    Guarantee: one sample moves the sum by at most C (add or remove one; L2).

    Edge cases: a zero gradient keeps factor 1; a non-finite one never reaches the rule (the engine
    drops it); an empty batch gives an empty row of factors.

    Reference: Abadi et al., "Deep Learning with Differential Privacy", 2016, Algorithm 1.
    """

    max_grad_norm: float = 1.0
    name: ClassVar[str] = "flat"

    def __post_init__(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)

    def bounds(self) -> list[float]:
        return [self.max_grad_norm]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Scale each gradient to norm at most C.

        Args:
            norms: L2 norms of whole per-sample gradients, [1, B].

        Returns:
            {"release": factors [1, B], in [0, 1]}.
        """
        return {"release": (self.max_grad_norm / norms).clamp(max=1.0)}

    def describe(self) -> dict[str, Any]:
        return {"rule": self.name, "max_grad_norm": self.max_grad_norm}
