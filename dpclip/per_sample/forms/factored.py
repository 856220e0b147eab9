"""Per-sample gradients of one parameter, measured and summed without being written out.

`Dense` is the gradient itself; `outer_products.py` and `lookups.py` have what is cheaper. A form is
measured by an upper bound on the norm of what it adds to a sum, rounding included
(docs/explanation/arithmetic.md), and is summed in one of two ways: as a product over all units
(`add_weighted`), or unit by unit (`contributions`), each unit's own gradient before it meets
another's.
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
    """Bound the relative error of a sum of products in any order (Higham 2002, section 3.1).

    Args:
        terms: how many products; times the unit roundoff below 1.
        dtype: that they are computed in.

    Returns:
        n u / (1 - n u), u half the distance from 1 to the next number.
    """
    rounding = torch.finfo(dtype).eps / 2
    return terms * rounding / (1 - terms * rounding)


class Sink(Protocol):
    """Takes single units' gradients, multiplied by their factors and in units of its grid."""

    def scratch(self, *shape: int) -> Tensor:
        """Return space for a block of one unit's gradient, valid until the next call."""
        ...

    def add(self, start: int, values: Tensor) -> None:
        """Round a part of one unit's gradient, and add it.

        Args:
            start: the element of the flat parameter that it begins at.
            values: the part, of any shape, its elements in order.
        """
        ...

    def add_units(self, values: Tensor) -> None:
        """Round several units' whole gradients, and add them.

        Args:
            values: [n, elements].
        """
        ...

    def add_rows(self, ids: Tensor, values: Tensor) -> None:
        """Round rows of the parameter, and add them; each is all that one unit has there.

        Args:
            ids: which rows, [n].
            values: [n, width].
        """
        ...


class Factored(ABC):
    """The gradients of one parameter for `rows` samples."""

    shape: torch.Size
    few_positions = False
    """Whether a unit's gradient has so few terms that the sum is taken in float64.

    Forming each unit's gradient by itself would then cost more than everything else.
    """

    @property
    @abstractmethod
    def rows(self) -> int:
        """Number of samples."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the gradients are."""

    def tensors(self) -> list[Tensor]:
        """List what is held in memory."""
        held = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        parts = [part.tensors() if isinstance(part, Factored) else [part] for part in held]
        return [tensor for part in parts for tensor in part if isinstance(tensor, Tensor)]

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """Bound the squared L2 norms of what each sample adds to a sum with factor 1.

        Float64, shape [rows]. Rounding of the measurement and of the sample's own product is
        included; not finite where the gradient is not.
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
        """Write the gradients out, [rows, *shape]."""

    @abstractmethod
    def by_unit(self, units: int) -> Factored:
        """Add up the gradients of each unit's samples.

        Args:
            units: their number; each owns rows / units consecutive samples.

        Returns:
            gradients of `units` rows.
        """


@dataclass
class Dense(Factored):
    """Gradients written out.

    Attributes:
        samples: [rows, *shape].
    """

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
        """into += sum_i factors[i] g_i, as one product of a matrix and a vector.

        Args:
            factors: [rows].
            into: the parameter's shape, float32 or wider.
            keep: which samples are read, bool, [rows]; None reads all.
        """
        flat = cleared(keep, self._flat()).to(into.dtype)
        if into.is_contiguous():
            into.view(-1).addmv_(flat.t(), factors.to(into.dtype))
        else:
            into += torch.mv(flat.t(), factors.to(into.dtype)).view_as(into)

    def contributions(self, scales: Tensor, units: Sequence[int], sink: Sink) -> None:
        """Hand over scales[i] g_i: small gradients all at once, large ones in blocks.

        Args:
            scales: [rows], in the dtype that the gradients are computed in.
            units: which samples.
            sink: where they go.
        """
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
        """Add up the gradients of each unit's samples in float32 or wider.

        Args:
            units: their number; each owns rows / units consecutive samples.
        """
        each = self.samples.to(accumulation_dtype(self.samples.dtype)).view(units, -1, *self.shape)
        return Dense(each.sum(1) if each.shape[1] > 1 else each[:, 0])

    def _flat(self) -> Tensor:
        return self.samples.reshape(self.rows, self.shape.numel())


def sums_of_squares(rows: Tensor) -> Tensor:
    """Bound the sum of squares of each row from above, high by a few units in the sixth place.

    Args:
        rows: [n, m], any floating-point dtype.

    Returns:
        float64, [n]; in float64 input the plain sum.
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
    """Replace the samples that are not kept by zeros.

    Products keep their shape, and with it their kernel.

    Args:
        keep: bool, [rows]; None keeps all.
        values: [rows, ...].
    """
    return (
        values
        if keep is None
        else values.masked_fill(~keep.view(-1, *[1] * (values.dim() - 1)), 0.0)
    )
