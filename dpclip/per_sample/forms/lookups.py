"""Gradients of tables that are looked up: embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpclip.per_sample.forms.factored import (
    Dense,
    Factored,
    Sink,
    cleared,
    sums_of_squares,
)
from dpclip.precision import accumulation_dtype


@dataclass
class Lookups(Factored):
    """Row ids[i, t] of g_i gets values[i, t].

    Attributes:
        ids: [rows, T].
        values: [rows, T, d].
        count: rows of the table.
    """

    ids: Tensor
    values: Tensor
    count: int

    def __post_init__(self) -> None:
        self.shape = torch.Size((self.count, self.values.shape[-1]))
        self._table: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        return self.values.device

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return each sample's rows of the table, equal ids added up.

        Samples [n] ascending, ids [n], values [n, d].
        """
        if self._table is None:
            dtype, (rows, length) = accumulation_dtype(self.values.dtype), self.ids.shape
            keys = (
                self.ids + torch.arange(rows, device=self.ids.device).unsqueeze(1) * self.count
            ).reshape(-1)
            found, position = keys.unique(return_inverse=True)
            summed = self.values.new_zeros(len(found), self.shape[1], dtype=dtype)
            summed.index_add_(0, position, self.values.reshape(rows * length, -1).to(dtype))
            self._table = found // self.count, found % self.count, summed
        return self._table

    def squared_norms(self) -> Tensor:
        samples, _, values = self.table()
        squares = sums_of_squares(values)
        return squares.new_zeros(self.rows).index_add_(0, samples, squares)

    def lengths(self) -> Tensor:
        """Return sum_t |values[i, t]| from above, float64, shape [rows]."""
        rows, length = self.ids.shape
        return (
            sums_of_squares(self.values.reshape(rows * length, -1)).sqrt().view(rows, length).sum(1)
        )

    def vanishing(self) -> Tensor:
        return (self.values == 0).flatten(1).all(1)

    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        """into[ids[i, t]] += factors[i] values[i, t].

        Args:
            factors: [rows].
            into: the table, [count, d], float32 or wider.
            keep: which samples are read, bool, [rows]; None reads all.
        """
        values = cleared(keep, self.values).to(into.dtype) * factors.to(into.dtype).view(-1, 1, 1)
        into.index_add_(0, self.ids.reshape(-1), values.reshape(self.ids.numel(), self.shape[1]))

    def contributions(self, scales: Tensor, units: Sequence[int], sink: Sink) -> None:
        """Hand over each unit's own rows of the table, times its scale.

        Args:
            scales: [rows], in the dtype that the gradients are computed in.
            units: which samples.
            sink: where they go.
        """
        samples, ids, values = self.table()
        wanted = torch.zeros(self.rows, dtype=torch.bool, device=samples.device)
        wanted[list(units)] = True
        here = wanted[samples]
        sink.add_rows(ids[here], values[here].to(scales.dtype) * scales[samples[here]].unsqueeze(1))

    def materialized(self) -> Dense:
        dtype = accumulation_dtype(self.values.dtype)
        table = self.values.new_zeros(self.rows, *self.shape, dtype=dtype)
        where = self.ids.unsqueeze(-1).expand(-1, -1, self.shape[1])
        return Dense(table.scatter_add_(1, where, self.values.to(dtype)))

    def by_unit(self, units: int) -> Lookups:
        """Join the lookups of each unit's samples.

        Args:
            units: their number; each owns rows / units consecutive samples.
        """
        return Lookups(
            self.ids.reshape(units, -1), self.values.reshape(units, -1, self.shape[1]), self.count
        )
