"""Norms of sums of outer products from Gram matrices, never read low.

For g = sum_t l_t (x) r_t the squared norm is sum_{s, t} <l_s, l_t> <r_s, r_t>. Each inner product
in floating point is wrong by at most gamma times the product of its vectors' lengths, in any order
of summation (Higham 2002, section 3.1), so the whole is wrong by at most E S^2 with S = sum_t |l_t|
|r_t|: much more than itself where the terms cancel. In float32 inner products are taken over blocks
of 256 coordinates, which keeps E near 3e-5 whatever the width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpclip.per_sample.forms.factored import gamma

GRAM_ELEMENTS = 1 << 24  # most elements of a Gram matrix at once
_LEAF = 64  # Gram matrices this long are computed whole
_BLOCK = 256  # coordinates of a float32 inner product


@dataclass(frozen=True)
class Grams:
    """What is known of a sample's outer products; float64, each of shape [n].

    Attributes:
        total: sum_{s, t} <l_s, l_t> <r_s, r_t>, as computed.
        lengths: S = sum_t |l_t| |r_t|, from above.
        left: sum_t |l_t|.
        right: sum_t |r_t|.
        doubt: what else `total` may be wrong by.
    """

    total: Tensor
    lengths: Tensor
    left: Tensor
    right: Tensor
    doubt: Tensor | float = 0.0

    def plus(self, total: Tensor, doubt: Tensor) -> Grams:
        """Add another summand of the squared norm.

        Args:
            total: the summand, float64, [n].
            doubt: what it may be wrong by, float64, [n]; replaces what was there.
        """
        return Grams(self.total + total, self.lengths, self.left, self.right, doubt)


def gram_sums(left: Tensor, right: Tensor) -> Grams:
    """Multiply and sum the Gram matrices of two factors.

    They are symmetric, so of the outer blocks one is enough.

    Args:
        left: [n, T, p], float32 or wider.
        right: [n, T, d], of the same dtype.

    Returns:
        float64, [n] each.
    """
    length = left.shape[1]
    if length <= _LEAF:
        by_left, by_right = _gram(left, left), _gram(right, right)
        ours, theirs = (
            _diagonal_lengths(by_left, left.dtype),
            _diagonal_lengths(by_right, left.dtype),
        )
        total = by_left.mul_(by_right).sum((1, 2), dtype=torch.float64)
        return Grams(total, (ours * theirs).sum(1), ours.sum(1), theirs.sum(1))
    (l1, l2), (r1, r2) = left.tensor_split(2, 1), right.tensor_split(2, 1)
    outer = _gram(l1, l2).mul_(_gram(r1, r2)).sum((1, 2), dtype=torch.float64)
    a, b = gram_sums(l1, r1), gram_sums(l2, r2)
    return Grams(
        a.total + b.total + 2 * outer, a.lengths + b.lengths, a.left + b.left, a.right + b.right
    )


def _gram(one: Tensor, other: Tensor) -> Tensor:
    """Inner products of all positions, [n, S, T]."""
    if one.dtype != torch.float32 or one.shape[2] <= _BLOCK:
        return torch.bmm(one, other.transpose(1, 2))
    found = torch.bmm(one[:, :, :_BLOCK], other[:, :, :_BLOCK].transpose(1, 2))
    for start in range(_BLOCK, one.shape[2], _BLOCK):
        part = slice(start, start + _BLOCK)
        # not within one sum of all blocks
        found += torch.bmm(one[:, :, part], other[:, :, part].transpose(1, 2))
    return found


def _diagonal_lengths(gram: Tensor, dtype: torch.dtype) -> Tensor:
    """|l_t| from above, float64, [n, T]."""
    squares = gram.diagonal(dim1=1, dim2=2).double().clamp(min=0)
    return (squares * (1 + 2 * gamma(2 * _BLOCK, dtype))).sqrt()


def certified(
    grams: Grams, width: int, terms: int, dtype: torch.dtype, blocks: bool = True
) -> Tensor:
    """Bound the squared norms of the samples as a product of this dtype adds them up.

    Args:
        grams: from `gram_sums`.
        width: p + d.
        terms: T, outer products a sample.
        dtype: of the Gram matrices and of the product.
        blocks: whether inner products were taken over blocks of coordinates, as `gram_sums` does.

    Returns:
        upper bounds, float64, [n]; infinite where a product overflowed.
    """
    added = 2 * _BLOCK + width / _BLOCK if blocks and dtype == torch.float32 else width
    if dtype == torch.float64:
        added += terms**2  # the sum over pairs of positions is no wider than the products
    doubt = gamma(added + 8, dtype) * grams.lengths.square() + grams.doubt
    # underflow
    doubt = doubt + width * torch.finfo(dtype).tiny * (grams.left.square() + grams.right.square())
    # -inf: a product overflowed, and hides the rest
    total = grams.total.masked_fill(grams.total.isinf(), torch.inf)
    # The product's own rounding, and that of the factor and of scaling to the grid.
    norm = (total.clamp(min=0) + doubt).sqrt() + gamma(terms + 3, dtype) * grams.lengths
    return norm.square()
