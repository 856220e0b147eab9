"""Per-sample gradients of one parameter, in a form that can be measured and summed without being written out.

`Dense` is the gradient itself; `forms.py` has what is cheaper. Norms are sums of squares in float32 or wider.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dpclip.gradient_sum import wide

_PIECE = 1024  # float32 sums of squares are taken over pieces this long: long rows read low on CPU


class Factored(ABC):
    """The gradients of one parameter for `rows` samples."""

    shape: torch.Size

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
        """Squared L2 norms, shape [rows], float32 or wider, never below the exact value by more than rounding."""

    @abstractmethod
    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        """into += sum_i factors[i] g_i.

        Args:
            factors: shape [rows].
            into: the parameter's shape, float32 or wider.
            keep: mask of the samples that are read at all (0 * inf is not 0); None reads all.
        """

    @abstractmethod
    def written_out(self) -> Dense:
        """The gradients themselves, [rows, *shape]."""

    @abstractmethod
    def by_unit(self, owners: Tensor, units: int) -> Factored:
        """The gradients of units, each the sum of the samples it owns.

        Args:
            owners: the unit of each sample, shape [rows].
            units: number of units.
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
        return sums_of_squares(self.samples.reshape(self.rows, self.shape.numel()))

    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        samples, factors = kept(keep, self.samples, factors)
        flat = samples.reshape(len(samples), self.shape.numel()).to(into.dtype)
        if into.is_contiguous():
            into.view(-1).addmv_(flat.t(), factors.to(into.dtype))
        else:
            into += torch.mv(flat.t(), factors.to(into.dtype)).view_as(into)

    def written_out(self) -> Dense:
        return self

    def by_unit(self, owners: Tensor, units: int) -> Dense:
        dtype = wide(self.samples.dtype)
        summed = self.samples.new_zeros(units, *self.shape, dtype=dtype)
        return Dense(summed.index_add_(0, owners, self.samples.to(dtype)))


def sums_of_squares(rows: Tensor) -> Tensor:
    """Sum of squares of each row of [n, m], in float32 or wider, right to a few units in the last place."""
    rows = rows.to(wide(rows.dtype))
    length = rows.shape[1]
    if length <= _PIECE:
        return rows.square().sum(1)
    whole = length - length % _PIECE
    pieces = torch.linalg.vector_norm(rows[:, :whole].unflatten(1, (-1, _PIECE)), dim=2).square().sum(1)
    return pieces + rows[:, whole:].square().sum(1)


def kept(keep: Tensor | None, first: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
    return (first, factors) if keep is None else (first[keep], factors[keep])


def rows_of_units(owners: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """The samples of each unit, padded to the largest unit: indices and a mask of the padding, [units, most]."""
    order = owners.argsort(stable=True)
    counts = owners.bincount(minlength=units)
    most = int(counts.max()) if len(owners) else 0
    column = torch.arange(most, device=owners.device).unsqueeze(0)
    holes = column >= counts.unsqueeze(1)
    starts = counts.cumsum(0) - counts
    return order[(starts.unsqueeze(1) + column).clamp(max=max(0, len(order) - 1))], holes
