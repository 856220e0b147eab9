"""Accumulated sums of weighted per-sample gradients, in float32 or wider."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from cryptography.hazmat.primitives.poly1305 import Poly1305
from torch import Tensor

from dpclip.precision import accumulation_dtype


def bits(values: Tensor) -> Tensor:
    """View the same memory as integers.

    Args:
        values: any shape, elements of 1, 2, 4 or 8 bytes.

    Returns:
        signed integers of the same width and shape, sharing the memory.
    """
    return values.view(
        {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize]
    )


class WeightedForm(Protocol):
    """Per-sample gradients of one parameter that can be added up (`per_sample/factored.py`)."""

    def add_weighted(self, factors: Tensor, into: Tensor, keep: Tensor | None = None) -> None:
        """into += sum_i factors[i] g_i.

        Args:
            factors: shape [rows].
            into: one parameter's accumulator, on the sum scale; changed in place.
            keep: which rows are read at all, bool, [rows]; None reads all.
        """
        ...


class PartwiseSum(ABC):
    """A sum that holds each parameter's part in one or more tensors, each with its unit."""

    groups: list[int]

    @abstractmethod
    def parts(self, slot: int) -> list[tuple[Tensor, float]]:
        """Return the tensors that hold one parameter's sum, each with its unit.

        Args:
            slot: the parameter's index.

        Returns:
            tensors of the parameter's shape and units; the sum of their products is the
            parameter's sum.
        """

    def digest(self, sides: Iterable[Tensor], key: bytes) -> str:
        """Fingerprint the exact bits, side sums included; sensitive.

        Equal digests are the same gradient.

        Args:
            sides: sums of side statistics.
            key: 32 secret bytes that serve this digest alone, as Poly1305 asks.

        Returns:
            the tag, in hex.
        """
        state = Poly1305(key)
        held = [tensor for slot in range(len(self.groups)) for tensor, _ in self.parts(slot)]
        for tensor in (*held, *sides):
            state.update(tensor.detach().cpu().contiguous().numpy().reshape(-1).view("u1").data)
        return state.finalize().hex()


@dataclass
class GradientSum(PartwiseSum):
    """One tensor a parameter, on the SUM scale; sensitive until it is released.

    Attributes:
        tensors: accumulators, in the order of the trainable parameters.
        groups: for each parameter the index k of its group.
        dtypes: in which dtype each is released; by default the accumulator's own.
    """

    tensors: list[Tensor]
    groups: list[int]
    dtypes: list[torch.dtype] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dtypes = self.dtypes or [tensor.dtype for tensor in self.tensors]

    @classmethod
    def zeros(
        cls,
        parameters: Sequence[Tensor],
        groups: Sequence[int],
        accumulate: torch.dtype | None = None,
    ) -> GradientSum:
        """Make an empty sum for these parameters.

        Args:
            parameters: what the accumulators are shaped like.
            groups: the group k of each.
            accumulate: dtype of the accumulators; products are taken in the parameters' own
                (float32 or wider) before they are added. By default they are accumulated in it,
                too.
        """
        dtypes = [accumulation_dtype(p.dtype) for p in parameters]
        held = [
            torch.zeros_like(p, dtype=accumulate or dtype)
            for p, dtype in zip(parameters, dtypes, strict=True)
        ]
        return cls(held, list(groups), dtypes)

    def admit(self, units: int) -> None:
        """Expect `units` more units to be added; floats need no room for them.

        Args:
            units: of the next micro-batch.
        """
        return None

    def take(self, slot: int, form: WeightedForm, factors: Tensor, keep: Tensor | None) -> None:
        """Add sum_i factors[i] g_i of one parameter.

        Args:
            slot: the parameter's index.
            form: its per-sample gradients.
            factors: shape [rows].
            keep: which samples are read at all, bool, [rows]; None reads all.
        """
        into = self.tensors[slot]
        if into.dtype == self.dtypes[slot]:
            form.add_weighted(factors, into, keep)
            return
        product = torch.zeros_like(into, dtype=self.dtypes[slot])
        form.add_weighted(factors, product, keep)
        into.add_(product)

    def parts(self, slot: int) -> list[tuple[Tensor, float]]:
        """Return the accumulator, in units of 1.

        Args:
            slot: the parameter's index.
        """
        return [(self.tensors[slot], 1.0)]
