"""A part of a large model's coordinates, for statistics that need not look at all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

MOST = 2**22
_BLOCK = 256


def sampling_stride(sizes: Sequence[int]) -> int:
    """One coordinate in so many is looked at; 1 up to `MOST` of them."""
    return max(1, math.ceil(sum(sizes) / MOST))


def every_nth(values: Tensor, stride: int) -> Tensor:
    """One coordinate in `stride` of a flat tensor, in blocks that lie together, which are read
    faster than single ones.

    Float32, a view where that is possible.
    """
    if stride == 1:
        return values.float()
    whole = len(values) // (_BLOCK * stride)
    if whole == 0:
        return values[: -(-len(values) // stride)].float()
    return values[: whole * _BLOCK * stride].view(whole, -1)[:, :_BLOCK].reshape(-1).float()
