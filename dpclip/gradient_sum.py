"""Accumulated sums of weighted per-sample gradients, in float32 or wider."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from cryptography.hazmat.primitives.poly1305 import Poly1305
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms, sums and noise for a parameter dtype: float32, or float64 if the model is (law 7)."""
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products of float32 in full precision, whatever the user allows the model (TF32, bf16)."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass
class GradientSum:
    """One tensor a parameter, on the SUM scale; sensitive until it is released.

    Attributes:
        tensors: accumulators, in the order of the trainable parameters.
        groups: for each parameter the index k of its group.
    """

    tensors: list[Tensor]
    groups: list[int]

    @classmethod
    def zeros(cls, parameters: Sequence[Tensor], groups: Sequence[int]) -> GradientSum:
        """An empty sum for these parameters."""
        return cls([torch.zeros_like(p, dtype=wide(p.dtype)) for p in parameters], list(groups))

    def digest(self, sides: Iterable[Tensor], key: bytes) -> str:
        """A fingerprint of the exact bits, side sums included: equal digests are the same gradient. Sensitive.

        Args:
            sides: sums of side statistics.
            key: 32 secret bytes that serve this digest alone, as Poly1305 asks.
        """
        state = Poly1305(key)
        for tensor in (*self.tensors, *sides):
            bits = tensor.detach().cpu().contiguous().numpy().reshape(-1).view("u1")
            state.update(bits.data)
        return state.finalize().hex()
