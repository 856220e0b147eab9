"""What a loop has been handed and has not used yet, and what is held against it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpclip.errors import InputError, PrivacyError
from dpclip.guards.row_check import RowCheck, Turn
from dpclip.sampling.micro_batches import MicroBatch, tensors_in


@dataclass
class Pending:
    """A micro-batch that was handed out and waits for its backward pass."""

    micro: MicroBatch
    seed: int
    last: bool = False
    check: RowCheck | None = None
    turn: Turn | None = None
    losses: Tensor | None = None  # one a row, once they were handed over


@contextmanager
def explained_failures(turn: Turn) -> Iterator[None]:
    """What an error of the loop itself means in a turn that hands it what it may not be
    made for.
    """
    try:
        yield
    except (InputError, PrivacyError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if turn.kept is None:
            raise InputError(
                f"the loop fails on a micro-batch of {turn.micro.rows} rows "
                f"({type(error).__name__}), from which rows are told from positions: it has to "
                "work with any number of them"
            ) from error
        if turn.loud == 1:
            raise
        # rows that are not numbers may be refused by the loop itself


def check_batch(given: Any, handed: Any) -> None:
    """The batch that is watched is the one that was handed out, on whatever device."""
    if given is handed:
        return
    ours, theirs = tensors_in(handed), tensors_in(given)
    same = len(ours) == len(theirs) and all(
        a is b or _alike(a, b) for a, b in zip(ours, theirs, strict=True)
    )
    if not same:
        raise PrivacyError(
            "microbatch() was given another batch than batches() has handed out, whose rows were "
            "not drawn at random; nothing was released: compute the losses of the batch that "
            "batches() yields"
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one = one.to(other)
    # what is not a number equals itself
    return bool(((one == other) | ((one != one) & (other != other))).all())
