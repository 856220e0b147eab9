"""The dtypes and the products that sums of gradients are computed in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms, sums and noise for a parameter dtype (law 7).

    Args:
        dtype: of a parameter.

    Returns:
        float64 for float64, float32 for narrower ones.
    """
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def exact_products() -> Iterator[None]:
    """Take matrix products of float32 in full precision within the block.

    Whatever the user allows the model (TF32, bf16) is in force again afterwards.
    """
    before, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    if before == "highest" and not (convolutions and torch.cuda.is_initialized()):
        yield
        return
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolutions
