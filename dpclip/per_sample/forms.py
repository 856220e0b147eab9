"""The cheap forms of per-sample gradients, and how several uses of one parameter add up.

A linear layer's gradient for sample i is a sum of outer products over positions, an embedding's is a few rows of a
table; neither needs to be written out to know its norm or to be added up with weights:

- `OuterProducts`: g_i = sum_t left[i, t] (x) right[i, t]. Its squared norm is the sum over position pairs of the
  product of two Gram matrices (the ghost norm of Li et al. 2022), or the sum of squares of the gradient itself where
  that is not much larger than its factors (mixed, as in Bu et al. 2022; the rule is our own).
- `Lookups`: row ids[i, t] of g_i gets values[i, t].
- `Tied`: both at once.

A Gram matrix can lose digits where the outer products cancel, so its rounding error is bounded and, where it could
matter, added: no norm is ever read low.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpclip.gradient_sum import wide
from dpclip.per_sample.factored import Dense, Factored, kept, rows_of_units, sums_of_squares

GRAM_ELEMENTS = 1 << 24  # most elements of a Gram matrix at once
_LEAF = 64  # Gram matrices this long are computed whole
_LARGER = 1.75  # how much larger than its factors a gradient may be written out
# Rounding of a Gram matrix's entries, relative to the lengths of their vectors ...
_GRAM_ROUNDING = {torch.float32: 2.0**-21, torch.float64: 2.0**-49}
_COVERED = 2.0**-11  # ... and the part of a squared norm that the noise's own allowance for rounding covers


@dataclass
class OuterProducts(Factored):
    """g_i = sum_t left[i, t] (x) right[i, t] for left [rows, T, p] and right [rows, T, d]."""

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        self.shape = torch.Size((self.left.shape[-1], self.right.shape[-1]))

    @property
    def rows(self) -> int:
        return len(self.left)

    @property
    def device(self) -> torch.device:
        return self.left.device

    @property
    def prefers_gram(self) -> bool:
        """Whether the gradient itself would be too large beside its factors.

        Gram matrices come on top of the weighted sum; a gradient written out replaces it, so it takes less arithmetic
        (about the batch's own weight gradient) whatever the shapes, and is preferred while memory allows.
        """
        return _LARGER * self._gram_cost < self.shape.numel()

    @property
    def _gram_cost(self) -> int:
        return self.left.shape[1] * sum(self.shape)

    def squared_norms(self) -> Tensor:
        if self.left.shape[1] == 1:
            return sums_of_squares(self.left[:, 0]) * sums_of_squares(self.right[:, 0])
        if self._gram_cost > self.shape.numel():
            return self.written_out().squared_norms()
        length = self.left.shape[1]
        step = max(1, GRAM_ELEMENTS // length**2)
        pieces = [slice(i, i + step) for i in range(0, self.rows, step)]
        return torch.cat([_gram_norms(self.left[piece], self.right[piece]) for piece in pieces])

    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        left, factors = kept(keep, self.left, factors)
        right = self.right if keep is None else self.right[keep]
        scale = factors.to(into.dtype).view(-1, 1, 1)
        p, d = self.shape
        left, right = left.to(into.dtype), right.to(into.dtype)
        if p <= d:  # scale whichever side is narrower
            left = left * scale
        else:
            right = right * scale
        into.addmm_(left.reshape(-1, p).t(), right.reshape(-1, d))

    def written_out(self) -> Dense:
        dtype = wide(torch.promote_types(self.left.dtype, self.right.dtype))
        return Dense(torch.bmm(self.left.to(dtype).transpose(1, 2), self.right.to(dtype)))

    def by_unit(self, owners: Tensor, units: int) -> OuterProducts:
        rows, holes = rows_of_units(owners, units)
        left = self.left[rows].masked_fill_(holes[..., None, None], 0.0).flatten(1, 2)
        return OuterProducts(left, self.right[rows].masked_fill_(holes[..., None, None], 0.0).flatten(1, 2))


@dataclass
class Lookups(Factored):
    """Row ids[i, t] of g_i gets values[i, t]; ids [rows, T], values [rows, T, d], a table of `count` rows."""

    ids: Tensor
    values: Tensor
    count: int

    def __post_init__(self) -> None:
        self.shape = torch.Size((self.count, self.values.shape[-1]))

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def device(self) -> torch.device:
        return self.values.device

    def squared_norms(self) -> Tensor:
        rows, length = self.ids.shape
        dtype = wide(self.values.dtype)
        keys = (self.ids + torch.arange(rows, device=self.ids.device).unsqueeze(1) * self.count).reshape(-1)
        found, position = keys.unique(return_inverse=True)
        table = self.values.new_zeros(len(found), self.shape[1], dtype=dtype)
        table.index_add_(0, position, self.values.reshape(rows * length, -1).to(dtype))
        squares = sums_of_squares(table)
        return squares.new_zeros(rows).index_add_(0, found // self.count, squares)

    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        ids, factors = kept(keep, self.ids, factors)
        values = self.values if keep is None else self.values[keep]
        scaled = values.to(into.dtype) * factors.to(into.dtype).view(-1, 1, 1)
        into.index_add_(0, ids.reshape(-1), scaled.reshape(ids.numel(), self.shape[1]))

    def written_out(self) -> Dense:
        dtype = wide(self.values.dtype)
        table = self.values.new_zeros(self.rows, *self.shape, dtype=dtype)
        where = self.ids.unsqueeze(-1).expand(-1, -1, self.shape[1])
        return Dense(table.scatter_add_(1, where, self.values.to(dtype)))

    def by_unit(self, owners: Tensor, units: int) -> Lookups:
        rows, holes = rows_of_units(owners, units)
        values = self.values[rows].masked_fill_(holes[..., None, None], 0.0).flatten(1, 2)
        return Lookups(self.ids[rows].flatten(1, 2), values, self.count)


@dataclass
class Tied(Factored):
    """A table used both to look rows up and as a linear layer's weight: g_i = outer_i + lookups_i.

    The squared norm has the exact cross term 2 sum_{s, t} left[s, ids[t]] <right[s], values[t]>.
    """

    outer: OuterProducts
    lookups: Lookups

    def __post_init__(self) -> None:
        self.shape = self.outer.shape

    @property
    def rows(self) -> int:
        return self.outer.rows

    @property
    def device(self) -> torch.device:
        return self.outer.device

    def squared_norms(self) -> Tensor:
        outer, lookups = self.outer.squared_norms(), self.lookups.squared_norms()
        dtype = outer.dtype
        products = torch.bmm(self.outer.right.to(dtype), self.lookups.values.to(dtype).transpose(1, 2))
        where = self.lookups.ids.unsqueeze(1).expand(-1, products.shape[1], -1)
        cross = (products * self.outer.left.gather(2, where)).sum((1, 2))
        # |2 <a, b>| <= |a|^2 + |b|^2: beside what is left of both when they cancel, rounding is added as for Gram sums.
        return norms_from_grams(outer + lookups + 2 * cross, (outer + lookups).sqrt())

    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        self.outer.add_weighted(factors, into, keep)
        self.lookups.add_weighted(factors, into, keep)

    def written_out(self) -> Dense:
        return Dense(self.outer.written_out().samples + self.lookups.written_out().samples)

    def by_unit(self, owners: Tensor, units: int) -> Tied:
        return Tied(self.outer.by_unit(owners, units), self.lookups.by_unit(owners, units))


def joined(uses: Sequence[Factored]) -> Factored:
    """The sum of several uses of one parameter in one forward pass."""
    if len(uses) == 1:
        return uses[0]
    outers = [use for use in uses if isinstance(use, OuterProducts)]
    lookups = [use for use in uses if isinstance(use, Lookups)]
    if len(outers) + len(lookups) < len(uses):
        total = uses[0].written_out().samples
        for use in uses[1:]:
            total = total + use.written_out().samples
        return Dense(total)
    products = [OuterProducts(_chain(u.left for u in outers), _chain(u.right for u in outers))] if outers else []
    tables = (
        [Lookups(_chain(u.ids for u in lookups), _chain(u.values for u in lookups), lookups[0].count)]
        if lookups
        else []
    )
    return Tied(products[0], tables[0]) if products and tables else [*products, *tables][0]


def _chain(parts: Iterable[Tensor]) -> Tensor:
    """Positions of several uses, one after the other."""
    held = list(parts)
    return held[0] if len(held) == 1 else torch.cat(held, 1)


def norms_from_grams(total: Tensor, lengths: Tensor) -> Tensor:
    """Squared norms from the summed product of two Gram matrices.

    Where outer products cancel so far that rounding could lift a sample above its bound, the rounding is added.

    Args:
        total: sum_{s, t} <l_s, l_t> <r_s, r_t>, shape [n].
        lengths: sum_t |l_t| |r_t|, shape [n].
    """
    total = total.clamp(min=0)
    uncovered = _GRAM_ROUNDING[total.dtype] * lengths.square() - _COVERED * total
    return total + uncovered.clamp(min=0)


def _gram_norms(left: Tensor, right: Tensor) -> Tensor:
    dtype = wide(torch.promote_types(left.dtype, right.dtype))
    return norms_from_grams(*_gram_sums(left.to(dtype), right.to(dtype)))


def _gram_sums(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both arguments of `norms_from_grams`; Gram matrices are symmetric, so one of the outer blocks is enough."""
    length = left.shape[1]
    if length <= _LEAF:
        product = torch.bmm(left, left.transpose(1, 2)).mul_(torch.bmm(right, right.transpose(1, 2)))
        return product.sum((1, 2)), product.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt().sum(1)
    (l1, l2), (r1, r2) = left.tensor_split(2, 1), right.tensor_split(2, 1)
    outer = torch.bmm(l1, l2.transpose(1, 2)).mul_(torch.bmm(r1, r2.transpose(1, 2))).sum((1, 2))
    (sum1, lengths1), (sum2, lengths2) = _gram_sums(l1, r1), _gram_sums(l2, r2)
    return sum1 + sum2 + 2 * outer, lengths1 + lengths2
