"""Clippers that need norms only: norms in, thresholds out, whatever the norms are measured in."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dpclip.checks import Auto, one_of
from dpclip.errors import InputError
from dpclip.postprocess.clipper import ClipReport, GradientClipper, GradientStep
from dpclip.postprocess.norms import scale_

INPUTS = ("auto", "noised", "denoised", "ratio")
SCOPES = ("global", "tensor")


@dataclass(eq=False)
class NormClipper(GradientClipper):
    """Multiplies a gradient of measured norm x by min(1, T/x), T from the history of x.

    Args:
        input: what x is. "noised": the norm as it is. "ratio": over the norm that privacy noise
            alone has, the noise floor, so that a change of thresholds, noise or batch size is no
            jump. "denoised": the root of the squared norm less the floor's square, no less than
            that difference's standard error. "auto": the ratio where the floor is known, otherwise
            the norm.
    """

    input: str = field(default="auto", kw_only=True)
    scope: ClassVar[str] = "global"
    relative: ClassVar[bool] = True
    """Whether "auto" may mean the ratio: thresholds come from the history and are not absolute."""

    def __post_init__(self, parameters: object) -> None:
        one_of("input", self.input, INPUTS)
        super().__post_init__(parameters)  # type: ignore[arg-type]

    @property
    def needs_floor(self) -> bool:
        return self.input in ("ratio", "denoised")

    @property
    def rows(self) -> int:
        """Histories that are kept: one, or one a parameter."""
        return len(self.names) if self.scope == "tensor" else 1

    @abstractmethod
    def factors(self, norms: Tensor, places: list[int]) -> Tensor:
        """Compute what to multiply by, and learn from the norms.

        Args:
            norms: measured, float64, [n] (global: [1]).
            places: the histories they belong to, [n].

        Returns:
            float64, [n], at least 0.
        """

    def transform(self, seen: GradientStep) -> ClipReport:
        """Multiply the gradients in place by `factors` of their measured norms.

        Args:
            seen: the gradients of the step.

        Raises:
            InputError: a private run's noise floor is asked for and not known.
        """
        if not seen.gradients:
            return ClipReport(0.0)
        squares, variances = seen.squares, self._floor(seen)
        places = seen.places
        if self.scope == "global":
            squares, places = squares.sum().view(1), [0]
        factors = self.factors(self._measured(squares, variances, seen), places)
        scales = factors.expand(len(seen.gradients)) if self.scope == "global" else factors
        scale_(seen.gradients, scales.tolist())
        return ClipReport.of(seen, scales)

    def _floor(self, seen: GradientStep) -> Tensor | None:
        """Return the squared norm that noise alone has, in the clipper's scope, [n] or [1].

        None where x is the norm as it is.
        """
        wanted = self.input
        if wanted == "auto":
            wanted = "ratio" if seen.noise is not None and self.relative else "noised"
        if wanted == "noised":
            return None
        if seen.noise is None:
            if self.private:
                raise InputError(
                    f"clipper {self.name} has input={self.input}, and with this clipping rule the "
                    "noise differs between coordinates, so its norm is not known: choose "
                    "input=noised"
                )
            return None
        floor = seen.sizes * seen.noise.square()
        return floor.sum().view(1) if self.scope == "global" else floor

    def _measured(self, squares: Tensor, floor: Tensor | None, seen: GradientStep) -> Tensor:
        if floor is None or seen.noise is None:
            return squares.sqrt()
        if self.input != "denoised":
            return (squares / floor).sqrt()
        spread = 2 * seen.sizes * seen.noise.pow(4)
        error = (spread.sum().view(1) if self.scope == "global" else spread).sqrt()
        return torch.maximum(squares - floor, error).sqrt()

    def limit(self, value: Auto) -> float:
        """Return the number that an `Auto` setting stands for.

        Args:
            value: the setting.

        Returns:
            a norm; for "auto" 1, or infinity in a private run; infinity for None.
        """
        if value is None or (value == "auto" and self.private):
            return float("inf")
        return 1.0 if value == "auto" else float(value)

    def clip_factors(self, threshold: Tensor, norms: Tensor) -> Tensor:
        """Compute min(1, T/x); the published codes have a millionth in the denominator.

        Args:
            threshold: T, float64, [n].
            norms: x, float64, [n].

        Returns:
            float64, [n], in [0, 1].
        """
        found = threshold / (norms + 1e-6) if self.match_published else threshold / norms
        return torch.where(norms > threshold, found.clamp(max=1.0), torch.ones_like(norms))
