"""The cheap forms of per-sample gradients, and how several uses of one parameter add up.

A linear layer's gradient for sample i is a sum of outer products over positions, an embedding's is
a few rows of a table; neither needs to be written out to know its norm or to be added up with
weights:

- `OuterProducts`: g_i = sum_t left[i, t] (x) right[i, t]. Its squared norm is the sum over position
  pairs of the product of two Gram matrices (the ghost norm of Li et al. 2022), or the sum of
  squares of the gradient itself where that is not much larger than its factors (mixed, as in Bu et
  al. 2022; the rule is our own).
- `Lookups`: row ids[i, t] of g_i gets values[i, t].
- `Tied`: both at once.

Outer products may cancel, in a Gram matrix's sum and in the gradient itself, down to their
rounding. What rounding can amount to is bounded (`grams.py`) and added to the norm: no gradient
that a sum takes in is longer than it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpclip.per_sample.forms.factored import (
    BLOCK,
    Dense,
    Factored,
    Sink,
    cleared,
    gamma,
    sums_of_squares,
)
from dpclip.per_sample.forms.grams import GRAM_ELEMENTS, certified, gram_sums
from dpclip.per_sample.forms.lookups import Lookups
from dpclip.precision import accumulation_dtype

_LARGER = 1.75  # how much larger than its factors a gradient may be written out
# from this many on, forming each unit's gradient by itself is cheaper than a product in float64
_POSITIONS = 24
_ROWS = 8  # of a gradient, at least, that are computed at once


@dataclass
class OuterProducts(Factored):
    """g_i = sum_t left[i, t] (x) right[i, t].

    Attributes:
        left: [rows, T, p].
        right: [rows, T, d].
    """

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
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        return accumulation_dtype(torch.promote_types(self.left.dtype, self.right.dtype))

    @property
    def few_positions(self) -> bool:  # type: ignore[override]
        length = self.left.shape[1]
        # whose norms cap cancelling
        return length == 1 or (length < _POSITIONS and self.dtype == torch.float32)

    @property
    def prefers_gram(self) -> bool:
        """Whether the gradient itself would be too large beside its factors.

        Gram matrices come on top of the weighted sum; a gradient written out replaces it, so it
        takes less arithmetic (about the batch's own weight gradient) whatever the shapes, and is
        preferred while memory allows.
        """
        return _LARGER * self._gram_cost < self.shape.numel()

    @property
    def _gram_cost(self) -> int:
        return self.left.shape[1] * sum(self.shape)

    def squared_norms(self) -> Tensor:
        length = self.left.shape[1]
        if length == 1:  # squares that underflow lose little, but it may be multiplied by 2^128
            lost = torch.finfo(self.dtype).tiny
            p, d = (
                sums_of_squares(side[:, 0]) + side.shape[2] * lost
                for side in (self.left, self.right)
            )
            return p * d
        step = max(1, GRAM_ELEMENTS // length**2)
        found = []
        for start in range(0, self.rows, step):
            here = slice(start, start + step)
            grams = gram_sums(self.left[here].to(self.dtype), self.right[here].to(self.dtype))
            found.append(certified(grams, sum(self.shape), length, self.dtype))
        return (
            torch.cat(found) if found else torch.zeros(0, dtype=torch.float64, device=self.device)
        )

    def vanishing(self) -> Tensor:
        return ((self.left == 0).all(2) | (self.right == 0).all(2)).all(1)

    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        """into += sum_i factors[i] left_i^T right_i, as one product.

        Args:
            factors: [rows].
            into: [p, d], float32 or wider.
            keep: which samples are read, bool, [rows]; None reads all.
        """
        scale = factors.to(into.dtype).view(-1, 1, 1)
        p, d = self.shape
        left, right = (
            cleared(keep, self.left).to(into.dtype),
            cleared(keep, self.right).to(into.dtype),
        )
        if p <= d:  # scale whichever side is narrower
            left = left * scale
        else:
            right = right * scale
        into.addmm_(left.reshape(-1, p).t(), right.reshape(-1, d))

    def contributions(self, scales: Tensor, units: Sequence[int], sink: Sink) -> None:
        """Hand over scales[i] g_i of each of these units, in blocks of rows.

        Args:
            scales: [rows], in the dtype that the gradients are computed in.
            units: which samples.
            sink: where they go.
        """
        d = self.shape[1]
        left, right = self.scaled(scales)
        for rows in row_blocks(self.shape):
            out = sink.scratch(rows.stop - rows.start, d)
            for unit in units:
                torch.mm(left[unit, :, rows].t(), right[unit], out=out)
                sink.add(rows.start * d, out)

    def scaled(self, scales: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply the narrower factor by the units' scales.

        Args:
            scales: [rows].

        Returns:
            left [rows, T, p] and right [rows, T, d], in the dtype of the scales.
        """
        left, right, each = (
            self.left.to(scales.dtype),
            self.right.to(scales.dtype),
            scales.view(-1, 1, 1),
        )
        return (left * each, right) if self.shape[0] <= self.shape[1] else (left, right * each)

    def materialized(self) -> Dense:
        return Dense(torch.bmm(self.left.to(self.dtype).transpose(1, 2), self.right.to(self.dtype)))

    def by_unit(self, units: int) -> OuterProducts:
        """Put the positions of each unit's samples one after the other.

        Args:
            units: their number; each owns rows / units consecutive samples.
        """
        p, d = self.shape
        return OuterProducts(self.left.reshape(units, -1, p), self.right.reshape(units, -1, d))


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
        dtype, width = self.outer.dtype, self.shape[1]
        left, right = self.outer.left.to(dtype), self.outer.right.to(dtype)
        grams = gram_sums(left, right)
        looked_up, reach = self.lookups.squared_norms(), self.lookups.lengths()
        cross = torch.bmm(right, self.lookups.values.to(dtype).transpose(1, 2))
        where = self.lookups.ids.unsqueeze(1).expand(-1, left.shape[1], -1)
        total = (cross * left.gather(2, where)).sum((1, 2), dtype=torch.float64) * 2 + looked_up
        # The cross term's rounding, and that the table's rows are sums of values, come on top of
        # the Gram matrices'.
        positions = self.lookups.ids.shape[1]
        doubt = (
            2 * gamma(width + 4, dtype) * grams.lengths * reach
            + gamma(_LOOKUP_TERMS, dtype) * looked_up
        )
        squares = certified(grams.plus(total, doubt), sum(self.shape), left.shape[1], dtype)
        return (squares.sqrt() + 3 * gamma(positions + 3, dtype) * reach).square()

    def vanishing(self) -> Tensor:
        return self.outer.vanishing() & self.lookups.vanishing()

    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        """Add both parts, weighted.

        Args:
            factors: [rows].
            into: [p, d], float32 or wider.
            keep: which samples are read, bool, [rows]; None reads all.
        """
        self.outer.add_weighted(factors, into, keep)
        self.lookups.add_weighted(factors, into, keep)

    def contributions(self, scales: Tensor, units: Sequence[int], sink: Sink) -> None:
        """Hand over scales[i] g_i of each unit, its two parts of a row added up first.

        Args:
            scales: [rows], in the dtype that the gradients are computed in.
            units: which samples.
            sink: where they go.
        """
        d = self.shape[1]
        left, right = self.outer.scaled(scales)
        samples, ids, values = self.lookups.table()
        values = values.to(scales.dtype) * scales[samples].unsqueeze(1)
        first = torch.searchsorted(
            samples, torch.arange(self.rows + 1, device=samples.device)
        ).tolist()
        for rows in row_blocks(self.shape):
            out = sink.scratch(rows.stop - rows.start, d)
            for unit in units:
                torch.mm(left[unit, :, rows].t(), right[unit], out=out)
                own = slice(first[unit], first[unit + 1])
                ends = torch.tensor([rows.start, rows.stop], device=ids.device)
                low, high = torch.searchsorted(ids[own], ends).tolist()
                if high > low:  # before rounding: the unit's two parts of a row are one
                    here = slice(own.start + low, own.start + high)
                    out.index_add_(0, ids[here] - rows.start, values[here])
                sink.add(rows.start * d, out)

    def materialized(self) -> Dense:
        return Dense(self.outer.materialized().samples + self.lookups.materialized().samples)

    def by_unit(self, units: int) -> Tied:
        """Join both parts by unit.

        Args:
            units: their number; each owns rows / units consecutive samples.
        """
        return Tied(self.outer.by_unit(units), self.lookups.by_unit(units))


_LOOKUP_TERMS = 136  # of a sum of squares, see `sums_of_squares`


def row_blocks(shape: Sequence[int]) -> list[slice]:
    """Cut a matrix into rows that stay in the cache together.

    Args:
        shape: [p, d].

    Returns:
        slices of rows, in order.
    """
    step = max(_ROWS, BLOCK // max(1, shape[1]))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def joined(uses: Sequence[Factored]) -> Factored:
    """Add up several uses of one parameter in one forward pass.

    Args:
        uses: at least one, of one shape and number of rows.

    Returns:
        the sum, factored where all uses are outer products or lookups, else written out.
    """
    if len(uses) == 1:
        return uses[0]
    outers = [use for use in uses if isinstance(use, OuterProducts)]
    lookups = [use for use in uses if isinstance(use, Lookups)]
    if len(outers) + len(lookups) < len(uses):
        total = uses[0].materialized().samples
        for use in uses[1:]:
            total = total + use.materialized().samples
        return Dense(total)
    products = (
        [OuterProducts(_chain(u.left for u in outers), _chain(u.right for u in outers))]
        if outers
        else []
    )
    tables = (
        [
            Lookups(
                _chain(u.ids for u in lookups), _chain(u.values for u in lookups), lookups[0].count
            )
        ]
        if lookups
        else []
    )
    return Tied(products[0], tables[0]) if products and tables else [*products, *tables][0]


def _chain(parts: Iterable[Tensor]) -> Tensor:
    """Put the positions of several uses one after the other."""
    held = list(parts)
    return held[0] if len(held) == 1 else torch.cat(held, 1)
