"""GeoClip: noise that follows the shape of the gradients.

They are rotated and scaled by the covariance of what was released.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_decay, check_range, check_threshold
from dpclip.clipping.rule import RULES
from dpclip.clipping.transformed import TransformedClipping
from dpclip.errors import InputError
from dpclip.released import Released, StepRelease


class Covariance:
    """An estimate of one parameter's covariance by k directions and a remainder.

    The directions have variances of their own; all others share one. With k = d it is the full
    covariance. A new observation z is taken in exactly within the span of the directions and z;
    then the direction of least variance joins the others.

    Args:
        size: d.
        rank: k <= d.
        decay: of the exponential average, in [0, 1).
        lowest: every variance stays between.
        highest: every variance stays between.
    """

    def __init__(self, size: int, rank: int, decay: float, lowest: float, highest: float) -> None:
        self.decay, self.lowest, self.highest = decay, lowest, highest
        self.directions = torch.eye(size, rank, dtype=torch.float64)
        self.variances = torch.ones(rank, dtype=torch.float64)
        self.rest = torch.ones((), dtype=torch.float64)  # of each of the d - k others

    @property
    def others(self) -> int:
        """d - k, the number of directions that share one variance."""
        return self.directions.shape[0] - self.directions.shape[1]

    def spread(self) -> float:
        """Sum of the standard deviations of all directions."""
        return float(self.variances.sqrt().sum() + self.others * self.rest.sqrt())

    def power(self, exponent: float, vectors: Tensor) -> Tensor:
        """Multiply each row by Covariance^exponent.

        Args:
            exponent: any real number; variances are positive.
            vectors: rows, [n, d].

        Returns:
            the products, [n, d].
        """
        directions = self.directions.to(vectors)
        rest = float(self.rest) ** exponent
        along = vectors @ directions
        return (
            vectors * rest
            + (along * (self.variances.pow(exponent).to(vectors) - rest)) @ directions.mT
        )

    def observe(self, z: Tensor, weight: float) -> None:
        """Covariance <- decay covariance + (1 - decay) weight z z^T.

        Args:
            z: a released mean less its own running mean, [d].
            weight: the number of samples that z is a mean of.
        """
        z = z.to(self.directions)
        along = self.directions.mT @ z
        beyond = z - self.directions @ along
        length = float(beyond.norm())
        if self.others and length > 1e-12 * float(z.norm()):
            basis = torch.cat([self.directions, (beyond / length).unsqueeze(1)], 1)
            diagonal = torch.cat([self.variances, self.rest.unsqueeze(0)])
            inside = torch.cat([along, torch.tensor([length], dtype=along.dtype)])
        else:
            basis, diagonal, inside = self.directions, self.variances, along
        small = torch.diag(self.decay * diagonal) + (1 - self.decay) * weight * torch.outer(
            inside, inside
        )
        values, vectors = torch.linalg.eigh(small)
        # the direction of least variance joins the others
        spare = len(values) - len(self.variances)
        rest = self.decay * self.rest
        if spare:
            rest = (rest * (self.others - 1) + values[0]) / self.others
        # orthonormal again, to rounding
        self.directions = torch.linalg.qr(basis @ vectors[:, spare:]).Q.contiguous()
        self.variances = values[spare:].clamp(self.lowest, self.highest)
        self.rest = rest.clamp(self.lowest, self.highest)


@RULES.register
@dataclass
class GeoClip(TransformedClipping):
    """w = M (g - a), clipped to norm 1; the released gradient is M^-1 w~ + a.

    M = (gamma / sum of sqrt(lambda))^(1/2) Cov^(-1/4): of all transformations with E||w||^2 <=
    gamma the one with the least total noise. Covariance and mean a follow the released gradients
    alone.

    Args:
        gamma: E||w||^2 that is aimed at.
        mean_decay: of a.
        decay: of a full covariance; `low_rank_decay` of one of low rank.
        full_below: parameters of at most this many elements have a full covariance; each is a block
            of its own.
        rank: directions kept of larger ones.
        lowest: eigenvalues stay between.
        highest: eigenvalues stay between.

    Guarantee: one sample moves the sum of w by at most 1.

    Edge cases: everything starts at a = 0, Cov = I. The covariance contains the noise, as
    published: where sigma sqrt(d) is not well below sqrt(B) the noise feeds it, and flat clipping
    is better (measured here).

    Reference: Gilani et al., "GeoClip: Geometry-Aware Clipping for Differentially Private SGD",
    2025, Algorithm 1. The published demo noises each sample by itself and estimates the covariance
    from those, which is another mechanism.
    Differs: blocks are parameters; large blocks keep one variance for all directions outside the
    leading ones instead of discarding them, because a direction that is never released could never
    be learned again.
    """

    gamma: float = 1.0
    mean_decay: float = 0.99
    decay: float = 0.999
    low_rank_decay: float = 0.99
    full_below: int = 128
    rank: int = 16
    lowest: float = 1e-15
    highest: float = 10.0
    name: ClassVar[str] = "geoclip"

    def __post_init__(self) -> None:
        check_threshold("gamma", self.gamma)
        for name in ("mean_decay", "decay", "low_rank_decay"):
            check_decay(name, getattr(self, name))
        check_range(self.lowest, self.highest)
        if self.full_below < 0 or self.rank < 1:
            raise InputError(
                f"full_below = {self.full_below}, rank = {self.rank}: at least 0, and at least 1 "
                "direction"
            )
        self._mean: list[Tensor] = []
        self._shapes: list[Covariance] = []

    def partition(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Put all parameters in one group and start every a at 0 and every covariance at I.

        Args:
            names: of the trainable parameters.
            sizes: their numbers of elements d.
        """
        self._mean = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        self._shapes = [self._start(size) for size in sizes]
        return super().partition(names, sizes)

    def _start(self, size: int) -> Covariance:
        full = size <= max(self.full_below, self.rank)
        decay = self.decay if full else self.low_rank_decay
        return Covariance(size, size if full else self.rank, decay, self.lowest, self.highest)

    @property
    def _scale(self) -> float:
        return math.sqrt(self.gamma / sum(shape.spread() for shape in self._shapes))

    def transform(self, slot: int, gradients: Tensor) -> Tensor:
        """Compute w = M (g - a).

        Args:
            slot: the parameter's index.
            gradients: per-sample gradients, [B, d].

        Returns:
            w, [B, d].
        """
        centred = gradients - self._mean[slot].to(gradients)
        return self._shapes[slot].power(-0.25, centred) * self._scale

    def inverse(self, slot: int, mean: Tensor) -> Tensor:
        """Compute M^-1 w + a.

        Args:
            slot: the parameter's index.
            mean: released mean of w, [d].

        Returns:
            the gradient, on the scale of the mean, [d].
        """
        found = self._shapes[slot].power(0.25, mean.unsqueeze(0))[0] / self._scale
        return found + self._mean[slot].to(mean)

    def observe(self, released: Released[StepRelease]) -> None:
        """Take the released gradient into each parameter's covariance and mean.

        Args:
            released: the step, its gradient already inverted and on the scale of the mean.
        """
        step = released.value
        for slot, gradient in enumerate(step.gradient):
            found = gradient.detach().reshape(-1).to("cpu", torch.float64)
            self._shapes[slot].observe(found - self._mean[slot], step.divisor)
            self._mean[slot].lerp_(found, 1 - self.mean_decay)

    def tensor_state(self) -> dict[str, Tensor]:
        state = {f"mean.{i}": mean for i, mean in enumerate(self._mean)}
        for i, shape in enumerate(self._shapes):
            parts = {
                "directions": shape.directions,
                "variances": shape.variances,
                "rest": shape.rest,
            }
            state |= {f"{name}.{i}": value for name, value in parts.items()}
        return state

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        self._mean = [state[f"mean.{i}"] for i in range(len(self._mean))]
        for i, shape in enumerate(self._shapes):
            shape.directions, shape.variances = state[f"directions.{i}"], state[f"variances.{i}"]
            shape.rest = state[f"rest.{i}"]

    def describe(self) -> dict[str, Any]:
        fields = (
            "gamma",
            "mean_decay",
            "decay",
            "low_rank_decay",
            "full_below",
            "rank",
            "lowest",
            "highest",
        )
        return {"rule": self.name, **{name: getattr(self, name) for name in fields}}
