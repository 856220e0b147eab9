"""AGC: each unit's gradient is clipped relative to the unit's weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.errors import InputError
from dpclip.postprocess.clipper import CLIPPERS, ClipReport, GradientClipper, GradientStep
from dpclip.postprocess.norms import accumulation_dtype, reduced, squared_norms

_TINY = 1e-6


@CLIPPERS.register
@dataclass(eq=False)
class AGC(GradientClipper):
    """Rows of a gradient are clipped to clip_factor max(||W_row||, eps); vectors as a whole.

    A row is what the first dimension counts: an output unit of `nn.Linear` and of convolutions.
    (transformers' Conv1D keeps its weight transposed: there it is an input unit.) Vectors and
    scalars are one row.

    Args:
        clip_factor: threshold over the weights' norm, positive.
        eps: least norm of weights that is reckoned with, so that weights of 0 can leave 0.
        exclude: a regular expression; parameters whose name it finds are left alone, usually the
            last layer.

    References: Brock et al., "High-performance large-scale image recognition without
    normalization", 2021; the forms of timm and optax.
    """

    clip_factor: float = 0.01
    eps: float = 1e-3
    exclude: str = ""
    name: ClassVar[str] = "agc"

    def check(self) -> None:
        check_threshold("clip_factor", self.clip_factor)
        check_threshold("eps", self.eps)
        try:
            self._excluded = re.compile(self.exclude) if self.exclude else None
        except re.error as error:
            raise InputError(
                f"exclude = {self.exclude!r} is no regular expression: {error}"
            ) from error

    def measure(self, gradients: list[Tensor]) -> Tensor:
        """Measure the rows, and the whole from their norms.

        Args:
            gradients: n tensors.

        Returns:
            squared norms, [n].
        """
        self._norms = [_rows(gradient) for gradient in gradients]
        return squared_norms(self._norms)

    @torch.no_grad()
    def transform(self, seen: GradientStep) -> ClipReport:
        """Clip each row in place by the norm of its weights.

        Args:
            seen: the gradients that `measure` has just read.

        Returns:
            a report whose scales are what is left of each tensor's norm, [n].
        """
        scales = torch.ones(len(seen.gradients), dtype=torch.float64)
        kept = [
            i
            for i, p in enumerate(seen.places)
            if not (self._excluded and self._excluded.search(self.names[p]))
        ]
        allowed = [_rows(self._parameters[seen.places[index]]) for index in kept]
        if allowed:
            torch._foreach_clamp_min_(allowed, self.eps)
            torch._foreach_mul_(allowed, self.clip_factor)
        for index, limit in zip(kept, allowed, strict=True):
            scales[index] = self._clip(seen.gradients[index], self._norms[index], limit)
        return ClipReport.of(seen, scales)

    @staticmethod
    def _clip(gradient: Tensor, norms: Tensor, allowed: Tensor) -> float:
        """Clip in place, and return what part of the norm is left."""
        over = norms > allowed
        if not bool(over.any()):
            return 1.0
        factors = torch.where(over, allowed / norms.clamp(min=_TINY), torch.ones_like(norms))
        gradient.mul_(factors)
        before = float(norms.norm())
        return float((norms * factors).norm()) / before if before > 0 else 1.0


def _rows(tensor: Tensor) -> Tensor:
    """Return the norm of each row, in a shape that the tensor can be multiplied by."""
    inner = tuple(range(1, tensor.dim())) or None
    return reduced(
        torch.linalg.vector_norm(
            tensor, dim=inner, keepdim=inner is not None, dtype=accumulation_dtype(tensor)
        )
    )
