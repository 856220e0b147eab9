"""Accumulated sums of weighted per-sample gradients, in float32 or wider."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms, sums and noise for a parameter dtype: float32, or float64 if the model is (law 7)."""
    return torch.promote_types(dtype, torch.float32)


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

    def digest(self, sides: Iterable[Tensor] = ()) -> str:
        """A fingerprint of the exact bits, side sums included: equal digests are the same gradient. Sensitive."""
        state = hashlib.blake2b(digest_size=32)
        for tensor in (*self.tensors, *sides):
            state.update(tensor.detach().cpu().contiguous().numpy().data)
        return state.hexdigest()
