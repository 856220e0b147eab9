"""Global clipping: all gradients are scaled alike, which keeps the direction of their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.clipping.rule import RULES, ClippingRule
from dpclip.errors import InputError


@RULES.register
@dataclass
class Global(ClippingRule):
    """factor_i = C / Z where ||g_i|| <= Z; a gradient beyond Z is dropped, or clipped to C.

    Args:
        max_grad_norm: C.
        upper: Z, at least C; gradients up to it keep their relative sizes.
        beyond: "clip" (factor C / ||g_i||, as in DPSGD-Global-Adapt) or "drop" (factor 0, as in
            DPSGD-Global).

    Guarantee: one sample moves the sum by at most C.

    Reference: Bu, Wang, Long, Su, "On the Convergence and Calibration of Deep Learning with
    Differential Privacy", 2021 (drop); Esipova, Ghomi, Luo, Cresswell, "Disparate Impact in
    Differential Privacy from Gradient Misalignment", 2023 (clip). Z is fixed here; both papers'
    noise is unchanged by it.
    """

    max_grad_norm: float = 1.0
    upper: float = 10.0
    beyond: str = "clip"
    name: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)
        check_threshold("upper", self.upper)
        if self.upper < self.max_grad_norm:
            raise InputError(
                f"upper = {self.upper} is below max_grad_norm = {self.max_grad_norm}: give at "
                "least that"
            )
        if self.beyond not in ("clip", "drop"):
            raise InputError(f"beyond {self.beyond!r} is unknown: choose one of clip, drop")

    def bounds(self) -> list[float]:
        return [self.max_grad_norm]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Multiply norms up to Z by C / Z, and clip or drop what lies beyond.

        Args:
            norms: L2 norms of whole per-sample gradients, [1, B].

        Returns:
            {"release": factors [1, B], in [0, C / Z]}.
        """
        beyond = self.max_grad_norm / norms if self.beyond == "clip" else torch.zeros_like(norms)
        alike = torch.full_like(norms, self.max_grad_norm / self.upper)
        return {"release": torch.where(norms <= self.upper, alike, beyond)}

    def describe(self) -> dict[str, Any]:
        fields = {"max_grad_norm": self.max_grad_norm, "upper": self.upper, "beyond": self.beyond}
        return {"rule": self.name, **fields}
