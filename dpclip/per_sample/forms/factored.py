"""Per-sample gradients of one parameter, in a form that can be measured and summed without being
written out.

`Dense` is the gradient itself; `forms.py` has what is cheaper. A form is measured by an upper bound
on the norm of what it adds to a sum, rounding included (docs/explanation/arithmetic.md), and is
summed in one of two ways: as a product over all units (`add_weighted`), or unit by unit
(`contributions`), each unit's own gradient before it meets another's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from dpclip.precision import accumulation_dtype

# elements of a gradient that are computed, rounded and added while they are in the cache
BLOCK = 98_304
# float32 sums of squares are taken over pieces this long, and those are added in float64
_PIECE = 128
_FEW = 4_096  # elements of a gradient below which all units are rounded at once


def gamma(terms: float, dtype: torch.dtype) -> float:
    """Bound on the relative error of a sum of so many products in any order (Higham 2002, section
    3.1).
    """
    rounding = torch.finfo(dtype).eps / 2
    return terms * rounding / (1 - terms * rounding)


class Sink(Protocol):
    """Takes single units' gradients, already multiplied by their factors and in units of
    its grid.
    """

    def scratch(self, *shape: int) -> Tensor:
        """Space for a block of one unit's gradient, valid until the next call."""
        ...

    def add(self, start: int, values: Tensor) -> None:
        """Round one unit's gradient from element `start` on, and add it."""
        ...

    def add_units(self, values: Tensor) -> None:
        """Round several units' whole gradients, [n, elements], and add them."""
        ...

    def add_rows(self, ids: Tensor, values: Tensor) -> None:
        """Round rows of the parameter, [n, width], each all that one unit has there, and add them
        to rows ids [n].
        """
        ...


class Factored(ABC):
    """The gradients of one parameter for `rows` samples."""

    shape: torch.Size
    few_positions = False
    """Whether a unit's gradient has so few terms that forming each unit's by itself would cost more
    than everything
    else: its sum is then taken in float64."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Number of samples."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the gradients are."""

    def tensors(self) -> list[Tensor]:
        """What is held in memory."""
        held = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        parts = [part.tensors() if isinstance(part, Factored) else [part] for part in held]
        return [tensor for part in parts for tensor in part if isinstance(tensor, Tensor)]

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """Upper bounds on the squared L2 norms of what each sample adds to a sum with factor 1,
        float64, shape [rows].

        Rounding of the measurement and of the sample's own product is included; not finite where
        the gradient is not.
        """

    @abstractmethod
    def vanishing(self) -> Tensor:
        """Which samples' gradients are exactly zero, term by term, bool, shape [rows]."""

    @abstractmethod
    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        """into += sum_i factors[i] g_i, as one product in the dtype of `into`.

        Args:
            factors: shape [rows].
            into: the parameter's shape, float32 or wider.
            keep: mask of the samples that are read at all (0 * inf is not 0); None reads all.
        """

    @abstractmethod
    def contributions(self, scales: Tensor, units: Sequence[int], sink: Sink) -> None:
        """Hand over scales[i] g_i of each of these units, each computed from that unit alone.

        Args:
            scales: shape [rows], in the dtype that the gradients are computed in.
            units: which samples; no other is read.
            sink: where they go.
        """

    @abstractmethod
    def materialized(self) -> Dense:
        """The gradients themselves, [rows, *shape]."""

    @abstractmethod
    def by_unit(self, units: int) -> Factored:
        """The gradients of units that own equally many consecutive samples each: sums over
        those.
        """


@dataclass
class Dense(Factored):
    """Gradients written out, [rows, *shape]."""

    samples: Tensor

    def __post_init__(self) -> None:
        self.shape = self.samples.shape[1:]

    @property
    def rows(self) -> int:
        return len(self.samples)

    @property
    def device(self) -> torch.device:
        return self.samples.device

    def squared_norms(self) -> Tensor:
        return sums_of_squares(self._flat())

    def vanishing(self) -> Tensor:
        return (self._flat() == 0).all(1)

    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        flat = cleared(keep, self._flat()).to(into.dtype)
        if into.is_contiguous():
            into.view(-1).addmv_(flat.t(), factors.to(into.dtype))
        else:
            into += torch.mv(flat.t(), factors.to(into.dtype)).view_as(into)

    def contributions(self, scales: Tensor, units: Sequence[int], sink: Sink) -> None:
        flat = self._flat()
        length = flat.shape[1]
        if length <= _FEW:
            sink.add_units(flat[units].to(scales.dtype) * scales[units].unsqueeze(1))
            return
        for unit in units:
            for start in range(0, length, BLOCK):
                part = flat[unit, start : start + BLOCK]
                sink.add(
                    start,
                    torch.mul(part.to(scales.dtype), scales[unit], out=sink.scratch(len(part))),
                )

    def materialized(self) -> Dense:
        return self

    def by_unit(self, units: int) -> Dense:
        each = self.samples.to(accumulation_dtype(self.samples.dtype)).view(units, -1, *self.shape)
        return Dense(each.sum(1) if each.shape[1] > 1 else each[:, 0])

    def _flat(self) -> Tensor:
        return self.samples.reshape(self.rows, self.shape.numel())


def sums_of_squares(rows: Tensor) -> Tensor:
    """Upper bounds on the sum of squares of each row of [n, m], float64, high by a few units in the
    sixth place.
    """
    dtype = accumulation_dtype(rows.dtype)
    rows = rows.to(dtype)
    length = rows.shape[1]
    whole = length - length % _PIECE
    squares = rows[:, whole:].square().sum(1).double()
    if whole:
        pieces = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, _PIECE)), dim=2)
        squares = squares + pieces.double().square().sum(1)
    return (
        squares * (1 + gamma(_PIECE + 8, dtype) + 2.0**-40) if dtype == torch.float32 else squares
    )


def cleared(keep: Tensor | None, values: Tensor) -> Tensor:
    """The samples that are not kept replaced by zeros: products keep their shape, and with it their
    kernel.
    """
    return (
        values
        if keep is None
        else values.masked_fill(~keep.view(-1, *[1] * (values.dim() - 1)), 0.0)
    )
