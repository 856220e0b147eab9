"""Laws that every task must keep: a record is one example, and one loss that is its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dpclip.tasks.base import Task
from dpclip.tasks.padding import buckets
from dpclip.tasks.records import Records

_ROWS = 4


def check_task(task: Task, records: Records, model: nn.Module, vocabulary: int) -> None:
    """Hold a task to all laws.

    Args:
        task: with its tokenizer.
        records: at least two, of different lengths.
        model: what the task trains; left as it was.
        vocabulary: tokens that the model knows.

    Raises:
        AssertionError: names what does not hold.
    """
    examples = task.encode(records)
    one_example_a_record(task, records, examples)
    training = model.training
    model.eval()
    try:
        a_loss_is_of_its_row_alone(task, model, examples)
        made_up_rows_are_like_real_ones(task, model, vocabulary)
        assert math.isfinite(task.evaluate(model, examples)), "the metric is no number"
    finally:
        model.train(training)


def one_example_a_record(task: Task, records: Records, examples: Sequence[Any]) -> None:
    """No record is left out, added or split: their number is in the privacy plan."""
    assert len(examples) == records.rows, f"{records.rows} records gave {len(examples)} examples"
    assert 0 <= task.truncated(records) <= records.rows
    assert task.metric
    assert task.max_length >= 1


def a_loss_is_of_its_row_alone(task: Task, model: nn.Module, examples: Sequence[Any]) -> None:
    """One loss a row, the same whoever shares the batch."""
    together = task.losses(model, task.collate(list(examples)))
    assert together.shape == (len(examples),), f"losses of shape {tuple(together.shape)}"
    assert together.requires_grad, "the losses have no gradient"
    alone = [task.losses(model, task.collate([example]))[0] for example in examples]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)
    backwards = task.losses(model, task.collate(list(examples)[::-1]))
    torch.testing.assert_close(together, backwards.flip(0), rtol=1e-4, atol=1e-5)


def made_up_rows_are_like_real_ones(task: Task, model: nn.Module, vocabulary: int) -> None:
    """They stand in for data in the checks before the first step, at every padded length."""
    assert len(task.synthetic(_ROWS, vocabulary)) == _ROWS
    for length in buckets(task.max_length):
        rows = task.synthetic(2, vocabulary, length=length)
        losses = task.losses(model, task.collate(rows))
        assert losses.shape == (2,)
        assert bool(losses.isfinite().all()), f"made-up rows of {length} tokens have no loss"
