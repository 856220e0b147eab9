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
from dpclip.guards.seeding import Dice
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

    def take(self, losses: Tensor) -> None:
        """Hold what the loop hands over to one loss a row.

        Args:
            losses: shape [rows].

        Raises:
            InputError: a mean or sum over the batch, or another number of losses.
            PrivacyError: a second time.
        """
        if self.losses is not None:
            raise PrivacyError(
                "private.backward was called twice for one micro-batch: add each row's losses up "
                "first"
            )
        rows = self.micro.rows
        if not isinstance(losses, Tensor) or losses.shape != (rows,):
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise InputError(
                f"private.backward was given losses of shape {shape} for {rows} rows: it takes one "
                f"loss a row, shape [{rows}], as a mean over the batch would let one record move "
                "all others; use reduction='none', or dpclip.losses (causal_lm(model, batch), "
                "classification, …) in place of model(**batch).loss"
            )
        if not losses.requires_grad:
            raise InputError(
                "the losses have no gradient: compute them from the model's output, outside of "
                "no_grad"
            )
        self.losses = losses.detach()

    def require_losses(self, dice: Dice) -> Tensor:
        """The losses that were handed over, shape [rows].

        Args:
            dice: the random numbers of the pass.

        Raises:
            PrivacyError: there are none, or the loop has seeded torch itself.
        """
        if self.losses is None:
            raise PrivacyError(
                "no loss was handed over for this micro-batch, so its rows would silently be left "
                "out; nothing was released: call private.backward(losses) in microbatch(batch), "
                "with one loss a row"
            )
        if dice.loaded():
            raise PrivacyError(
                "torch was seeded in microbatch(), so that everybody knows which row meets which "
                "random numbers (dropout); nothing was released: seed before make_private, for the "
                "initial weights alone"
            )
        return self.losses

    def by_unit(self) -> Tensor | None:
        """Each unit's loss, shape [units]; None where none were handed over."""
        if self.losses is None:
            return None
        weighted = self.losses.float() * self.micro.weights.to(self.losses.device)
        return weighted.view(self.micro.units, -1).sum(1)


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
