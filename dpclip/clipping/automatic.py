"""Automatic clipping: gradients are scaled by their own norm; the threshold needs no tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.clipping.rule import RULES, ClippingRule


@RULES.register
@dataclass
class Automatic(ClippingRule):
    """AUTO-S: factor_i = R / (||g_i|| + gamma).

    Args:
        max_grad_norm: R, the norm that a large gradient is scaled to; with Adam it only sets the
            unit of gamma's effect, with SGD it multiplies the learning rate.
        gamma: stability constant, positive; keeps the order of small gradients (paper: 0.01).

    Guarantee: ||factor_i g_i|| = R ||g_i|| / (||g_i|| + gamma) < R, so one sample moves the sum by
    less than R.

    Edge cases: a zero gradient gets the finite factor R / gamma and contributes zero.

    Reference: Bu, Wang, Zha, Karypis, "Automatic Clipping: Differentially Private Deep Learning
    Made Easier and Stronger", 2023, equation for AUTO-S.
    """

    max_grad_norm: float = 1.0
    gamma: float = 0.01
    name: ClassVar[str] = "automatic"

    def __post_init__(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)
        check_threshold("gamma", self.gamma)

    def bounds(self) -> list[float]:
        return [self.max_grad_norm]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Divide R by each norm plus gamma.

        Args:
            norms: L2 norms of whole per-sample gradients, [1, B].

        Returns:
            {"release": factors [1, B], in [0, R / gamma]}.
        """
        return {"release": self.max_grad_norm / (norms + self.gamma)}

    def describe(self) -> dict[str, Any]:
        return {"rule": self.name, "max_grad_norm": self.max_grad_norm, "gamma": self.gamma}


@RULES.register
@dataclass
class AutomaticV(ClippingRule):
    """AUTO-V: factor_i = R / ||g_i||, every gradient at length R.

    Args:
        max_grad_norm: R.

    Guarantee: one sample moves the sum by at most R.

    Edge cases: a zero gradient has no direction and gets factor 0. A sample's size is lost
    altogether, which `Automatic` keeps for small ones.

    Reference: as `Automatic`, equation for AUTO-V.
    """

    max_grad_norm: float = 1.0
    name: ClassVar[str] = "automatic-v"

    def __post_init__(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)

    def bounds(self) -> list[float]:
        return [self.max_grad_norm]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Divide R by each norm.

        Args:
            norms: L2 norms of whole per-sample gradients, [1, B].

        Returns:
            {"release": factors [1, B], in [0, 1e30 R]; 0 for norm 0}.
        """
        tiny = 1e-30  # keeps the factor finite in float32; what is shorter is scaled less
        return {"release": (self.max_grad_norm / norms.clamp(min=tiny)) * (norms > 0)}

    def describe(self) -> dict[str, Any]:
        return {"rule": self.name, "max_grad_norm": self.max_grad_norm}
