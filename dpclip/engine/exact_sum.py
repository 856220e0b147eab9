"""Sums that do not depend on order, split or rounding: each unit is rounded to a public grid before
it meets another.

The grid of group k is g = 2^(floor(log2 C_k) - bits), a function of the bound C_k and of the public
expected batch size. A unit's gradient times its factor is computed from that unit alone, rounded
towards zero to a multiple of g, and added as an integer. Adding or removing a unit moves the sum by
exactly that unit's integers, whose norm times g is at
most C_k: rounding towards zero never lengthens, and the factor goes by a norm that includes the
product's own rounding.

Where a unit's gradient has few terms (a linear layer that sees one position a sample, say), forming
each by itself would cost more than everything else; those are added up in float64, whose rounding
the noise's allowance covers many times. docs/explanation/arithmetic.md has theorem, constants and
proof.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dpclip.gradient_sum import PartwiseSum
from dpclip.per_sample.forms.factored import BLOCK, Factored
from dpclip.precision import accumulation_dtype

_FINEST = 24  # bits of a bound that the grid resolves, in 32-bit integers
_COARSEST = 18  # with fewer left for it, integers have 64 bits
_WIDE = 44  # bits resolved in 64-bit integers


class ExactSum(PartwiseSum):
    """One tensor of integers a parameter; the interface of `GradientSum`.

    Args:
        parameters: the trainable parameters, in order.
        groups: the group of each.
        limits: what one unit adds to each group's sum at most, in L2, shape [K].
        expected_batch_size: public; how many units are expected. More are welcome and take more
            memory.
        narrow: whether 32-bit integers may be used.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        groups: Sequence[int],
        limits: Sequence[float],
        expected_batch_size: int,
        narrow: bool = True,
    ) -> None:
        self.groups, self.dtypes = list(groups), [accumulation_dtype(p.dtype) for p in parameters]
        self._like = list(parameters)
        self._capacity = 2 * expected_batch_size + 64
        # by adding up so many units, and by the sign
        taken = math.ceil(math.log2(self._capacity)) + 1
        self._narrow = narrow and 31 - taken >= _COARSEST
        fine, finest = min(_FINEST, 31 - taken), min(_WIDE, 62 - taken)
        bits = [fine if self._is_narrow(dtype) else finest for dtype in self.dtypes]
        self.units = [
            2.0 ** (math.floor(math.log2(limits[group])) - below)
            for group, below in zip(groups, bits, strict=True)
        ]
        self._counts: list[Tensor | None] = [None] * len(self._like)
        self._wide: list[Tensor | None] = [None] * len(self._like)
        self._sinks = {dtype: _Scratch(dtype) for dtype in set(self.dtypes)}
        self._admitted = 0

    def _is_narrow(self, dtype: torch.dtype) -> bool:
        return self._narrow and dtype == torch.float32

    def admit(self, units: int) -> None:
        """So many units more are about to be added; integers are widened before they could
        overflow.
        """
        self._admitted += units
        if self._admitted > self._capacity and self._narrow:
            self._narrow = False
            self._counts = [
                None if counts is None else counts.to(torch.int64) for counts in self._counts
            ]

    def take(self, slot: int, form: Factored, factors: Tensor, keep: Tensor | None) -> None:
        """Add sum_i factors[i] g_i of one parameter, each unit rounded to the grid by itself.

        Args:
            slot: the parameter.
            form: its per-sample gradients.
            factors: float64, shape [rows].
            keep: samples that are read at all; None reads all.
        """
        if form.few_positions:
            form.add_weighted(factors.double(), self._in_float64(slot), keep)
            return
        factors = factors if keep is None else factors * keep
        units = factors.nonzero().reshape(-1).tolist()
        # a power of two: exact
        scales = rounded_down(factors, self.dtypes[slot]) / self.units[slot]
        form.contributions(scales, units, self._sink(slot))

    def _sink(self, slot: int) -> _Sink:
        counts = self._counts[slot]
        if counts is None:
            dtype = torch.int32 if self._is_narrow(self.dtypes[slot]) else torch.int64
            counts = self._counts[slot] = torch.zeros_like(
                self._like[slot], dtype=dtype, memory_format=torch.contiguous_format
            )
        return _Sink(counts, self._sinks[self.dtypes[slot]])

    def _in_float64(self, slot: int) -> Tensor:
        held = self._wide[slot]
        if held is None:
            held = self._wide[slot] = torch.zeros_like(self._like[slot], dtype=torch.float64)
        return held

    def parts(self, slot: int) -> list[tuple[Tensor, float]]:
        """Tensors and units, the sum of whose products is this parameter's sum; nothing is held
        before it is needed.
        """
        held = [(self._counts[slot], self.units[slot]), (self._wide[slot], 1.0)]
        found = [(tensor, unit) for tensor, unit in held if tensor is not None]
        return found or [(torch.zeros_like(self._like[slot], dtype=torch.float32), 1.0)]

    @property
    def tensors(self) -> list[Tensor]:
        """The sums in float64, one a parameter."""
        return [
            torch.stack([tensor.double() * unit for tensor, unit in self.parts(slot)]).sum(0)
            for slot in range(len(self._like))
        ]


def rounded_down(factors: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest numbers of a dtype that are not above these."""
    near = factors.to(dtype)
    if dtype == factors.dtype:
        return near
    return torch.where(
        near.to(factors.dtype) > factors,
        torch.nextafter(near, torch.full_like(near, -math.inf)),
        near,
    )


class _Scratch:
    """Space for blocks of one dtype, kept for a sum's lifetime: fresh memory would be faulted in
    for each.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._held: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def floats(self, device: torch.device, shape: Sequence[int]) -> Tensor:
        return self._space(device, self._dtype, math.prod(shape)).view(*shape)

    def integers(self, like: Tensor, count: int) -> Tensor:
        return self._space(like.device, like.dtype, count)

    def _space(self, device: torch.device, dtype: torch.dtype, count: int) -> Tensor:
        held = self._held.get((device, dtype))
        if held is None or len(held) < count:
            held = self._held[device, dtype] = torch.empty(
                max(count, BLOCK), dtype=dtype, device=device
            )
        return held[:count]


class _Sink:
    """Rounds towards zero, by conversion to integers, and adds."""

    def __init__(self, counts: Tensor, space: _Scratch) -> None:
        self._counts, self._flat, self._space = counts, counts.view(-1), space

    def scratch(self, *shape: int) -> Tensor:
        return self._space.floats(self._flat.device, shape)

    def add(self, start: int, values: Tensor) -> None:
        flat = values.reshape(-1)
        for at in range(0, len(flat), BLOCK):
            part = flat[at : at + BLOCK]
            whole = self._space.integers(self._flat, len(part)).copy_(part)
            self._flat[start + at : start + at + len(part)].add_(whole)

    def add_units(self, values: Tensor) -> None:
        self._flat.add_(values.to(self._flat.dtype).sum(0, dtype=self._flat.dtype))

    def add_rows(self, ids: Tensor, values: Tensor) -> None:
        self._counts.index_add_(0, ids, values.to(self._flat.dtype))
