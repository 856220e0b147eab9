"""Tensors in blocks that stay in the cache while several passes go over them.

Elsewhere than on CPUs a tensor is one block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from dpclip.postprocess.norms import is_distributed

BLOCK = 2**18


def blocks_of(tensor: Tensor, size: int = BLOCK) -> tuple[Tensor, ...]:
    """Split a contiguous CPU tensor into flat views.

    Args:
        tensor: any shape.
        size: most elements of a block.

    Returns:
        views of the same memory; of any other tensor, a small or a distributed one, the tensor
        itself.
    """
    if tensor.numel() <= size or not is_blocked(tensor):
        return (tensor,)
    return tensor.view(-1).split(size)


def is_blocked(tensor: Tensor) -> bool:
    """Whether it pays, and is possible, to take the tensor in parts.

    Args:
        tensor: contiguous on a CPU and not distributed for a yes.
    """
    return not is_distributed(tensor) and tensor.device.type == "cpu" and tensor.is_contiguous()


def together(columns: Sequence[Sequence[Tensor]]) -> Iterator[list[list[Tensor]]]:
    """Take rows of equally shaped tensors together, for `torch._foreach_…`.

    Large ones come in blocks, small ones several at a time.

    Args:
        columns: lists of the same length, such as weights, gradients and moments.

    Returns:
        lists of columns again, which share the memory of the tensors that were given.
    """
    blocked = all(is_blocked(tensor) for column in columns for tensor in column)
    rows = list(zip(*columns, strict=True))
    if blocked:
        rows = [part for row in rows for part in zip(*map(blocks_of, row), strict=True)]
    batch: list[tuple[Tensor, ...]] = []
    filled = 0
    for row in rows:
        if batch and blocked and filled + row[0].numel() > BLOCK:
            yield [list(column) for column in zip(*batch, strict=True)]
            batch, filled = [], 0
        batch.append(row)
        filled += row[0].numel()
    if batch:
        yield [list(column) for column in zip(*batch, strict=True)]
