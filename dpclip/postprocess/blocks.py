"""Tensors in blocks that stay in the cache while several passes go over them; elsewhere than on CPUs in one block."""

from __future__ import annotations

from torch import Tensor

_BLOCK = 2**18


def blocks_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """Flat views of a contiguous tensor; of any other, and of a distributed one, the tensor itself."""
    if (
        hasattr(tensor, "to_local")
        or tensor.device.type != "cpu"
        or not tensor.is_contiguous()
        or tensor.numel() <= _BLOCK
    ):
        return (tensor,)
    return tensor.view(-1).split(_BLOCK)
