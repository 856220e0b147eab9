"""Clippers without a history: a fixed threshold, and normalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_between, check_threshold
from dpclip.postprocess.by_norm import NormClipper
from dpclip.postprocess.clipper import CLIPPERS


@CLIPPERS.register
@dataclass(eq=False)
class FixedNorm(NormClipper):
    """g min(1, C/||g||): what `torch.nn.utils.clip_grad_norm_` does.

    Args:
        max_grad_norm: C, absolute: of the gradient as it is; positive and finite.
    """

    max_grad_norm: float = 1.0
    name: ClassVar[str] = "fixed"
    relative: ClassVar[bool] = False

    def check(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)

    def factors(self, norms: Tensor, places: list[int]) -> Tensor:
        """Compute min(1, C/x).

        Args:
            norms: the global norm as measured, float64, [1].
            places: unused.

        Returns:
            float64, [1], in [0, 1].
        """
        return self.clip_factors(torch.full_like(norms, self.max_grad_norm), norms)


@CLIPPERS.register
@dataclass(eq=False)
class Normalized(NormClipper):
    """g C / (||g|| + beta): every step has the same length, or nearly.

    Args:
        max_grad_norm: C.
        beta: softens the step where the gradient is small; a gradient of 0 stays 0.

    Reference: Zhang et al., "Why gradient clipping accelerates training", 2020.
    """

    max_grad_norm: float = 1.0
    beta: float = 0.0
    name: ClassVar[str] = "normalized"
    relative: ClassVar[bool] = False

    def check(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)
        check_between("beta", self.beta, 0.0, float("inf"))

    def factors(self, norms: Tensor, places: list[int]) -> Tensor:
        """Compute C / (x + beta); 1 for a gradient of 0 with beta = 0.

        Args:
            norms: the global norm as measured, float64, [1].
            places: unused.

        Returns:
            float64, [1], positive; above 1 where x + beta is below C.
        """
        whole = norms + self.beta
        return torch.where(whole > 0, self.max_grad_norm / whole, torch.ones_like(norms))
