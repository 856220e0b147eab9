"""How many rows are computed at once, and what they are made of; both public."""

from __future__ import annotations

from torch import nn

from dpclip.diagnosis.footprint import footprint
from dpclip.errors import InputError
from dpclip.memory import free_bytes
from dpclip.models.loading import LoadedModel
from dpclip.tasks.base import Task

MOST_ROWS = 16  # more are no faster on a CPU, and leave more dummies in last micro-batches
_MEMORY_SHARE = 0.6  # of what is free; the rest is for evaluation, and for other programs


def vocabulary_of(loaded: LoadedModel) -> int:
    """Tokens that tokenizer and model both know."""
    table = loaded.model.get_input_embeddings()  # type: ignore[operator]
    return min(len(loaded.tokenizer), table.num_embeddings)


def rows_that_fit(
    model: nn.Module, task: Task, vocabulary: int, grad_sample_mode: str, materialized: bool
) -> int:
    """At most 16 rows, and few enough for the longest of them to fit into memory.

    Args:
        model: in training mode.
        task: makes the rows up.
        vocabulary: tokens are below this.
        grad_sample_mode: the gradient backend.
        materialized: the rule needs the gradients themselves.

    Raises:
        InputError: not even one row fits.
    """
    longest = task.synthetic(3, vocabulary, length=task.max_length)
    free = _MEMORY_SHARE * free_bytes(next(model.parameters()).device)
    needed = footprint(model, task.losses, task.collate, longest, grad_sample_mode, materialized)
    rows = needed.rows(free)
    if rows < 1:
        raise InputError(
            f"one record of {task.max_length} tokens needs about "
            f"{(needed.fixed + needed.row) / 2**30:.1f} GiB and {free / 2**30:.1f} GiB may be "
            "used: shorten --max-length, train adapters with --lora 8, or give "
            "--physical-batch-size 1 to try all the same"
        )
    return min(MOST_ROWS, rows)
