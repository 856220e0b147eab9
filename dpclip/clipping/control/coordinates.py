"""A part of a large model's coordinates, for statistics that need not look at all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

MOST = 2**22
_BLOCK = 256


def sampling_stride(sizes: Sequence[int]) -> int:
    """Choose the stride that leaves at most about `MOST` coordinates to look at.

    Args:
        sizes: elements of each parameter.

    Returns:
        one coordinate in this many is looked at; 1 for up to `MOST` of them.
    """
    return max(1, math.ceil(sum(sizes) / MOST))


def every_nth(values: Tensor, stride: int) -> Tensor:
    """Take one coordinate in `stride`, in blocks that lie together and are read fast.

    Args:
        values: flat, [d].
        stride: at least 1.

    Returns:
        about d / stride of the values, flat, float32; a view where that is possible.
    """
    if stride == 1:
        return values.float()
    whole = len(values) // (_BLOCK * stride)
    if whole == 0:
        return values[: -(-len(values) // stride)].float()
    return values[: whole * _BLOCK * stride].view(whole, -1)[:, :_BLOCK].reshape(-1).float()
