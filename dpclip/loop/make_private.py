"""`make_private`: couples a model, an optimizer and a data set to one plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from accounting import Adjacency
from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan, make_plan
from dpclip.clipping import ClippingRule
from dpclip.engine.private_training import PrivateTraining
from dpclip.engine.setup import build_private_training
from dpclip.errors import InputError
from dpclip.guards.update_guard import check_optimizer_kind
from dpclip.loop.recorder import Contract, FolderRecorder
from dpclip.noise.keystream import SecretKey
from dpclip.postprocess import GradientClipper
from dpclip.sampling.units import RowDataset, UnitIndex, check_dataset


def make_private(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: RowDataset,
    *,
    target_epsilon: float,
    expected_batch_size: int,
    target_delta: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    physical_batch_size: int | None = None,
    clipping: ClippingRule | None = None,
    grad_sample_mode: str = "auto",
    accountant: str = "prv",
    adjacency: Adjacency = "add-remove",
    units: Sequence[Any] | None = None,
    rows_per_unit: int = 8,
    public_units: int | None = None,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
    examples: Sequence[Any] = (),
    key: SecretKey | None = None,
    ledger_path: Path | None = None,
    postprocess: Sequence[GradientClipper] = (),
    accept_conditional: bool = False,
    arithmetic: str = "exact",
    **gone: Any,
) -> PrivateTraining:
    """Couple a model, an optimizer and a data set to one privacy budget.

    Args:
        model: any torch module; hooked, not wrapped.
        optimizer: any torch optimizer over the model's trainable parameters.
        dataset: rows by index.
        target_epsilon: the budget; infinity trains without privacy through the same road.
        expected_batch_size: expected units a logical batch, B; the sample rate is B / N.
        target_delta: defaults to min(1e-5, 1/(10 N)).
        epochs: passes over the data, or give `steps`.
        physical_batch_size: rows a micro-batch, dummies included; a performance knob only.
        clipping: the rule, by default `Flat(1.0)`.
        grad_sample_mode: "auto" (book-keeping), "bookkeeping", "ghost", "hooks" or "functorch".
        units: the privacy unit of each row (a person's id, say); by default each row is its own
            unit.
        rows_per_unit: most rows of one unit in one step, drawn afresh each step.
        public_units: N, if the true number is itself private; by default the exact number, taken as
            public.
        collate_fn: makes a batch of a list of rows, each by itself but for a common length; rows
            share a micro-batch if they have one shape by themselves, so pad to a fixed length or to
            a multiple of some number.
        examples: public rows for the check that rows do not depend on one another; otherwise rows
            of the data are used, and that a run was refused then tells something of them.
        key: of sampling and noise; by default a secret one from the operating system. A key that
            others know, as `SecretKey.for_tests(1)`, makes a test reproducible and protects
            nothing.
        ledger_path: where to keep the write-ahead ledger; by default in memory.
        postprocess: clippers of the released gradient (`dpclip.postprocess`), in order; free.
        accept_conditional: allow a rule whose promise rests on an assumption that nobody has
            checked; the guarantee says so.
        arithmetic: "exact" (sums and noise without rounding error) or "fast" (float32 products; the
            guarantee is then conditional).

    Raises:
        InputError: values that are meaningless or contradict each other, with the remedy.
    """
    _refuse_gone(gone)
    check_dataset(dataset)
    check_optimizer_kind(optimizer)
    index = UnitIndex(len(dataset), units)
    plan = make_plan(
        units=public_units or len(index),
        expected_batch_size=expected_batch_size,
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        epochs=epochs,
        steps=steps,
        accountant=accountant,
        adjacency=adjacency,
        unit="all rows of one unit" if index.grouped else "one row of the training data",
        sampling=clipping.sampling if clipping else "poisson",
        arithmetic=arithmetic,
    )
    ledger = Ledger.create(ledger_path, plan)
    return build_private_training(
        model,
        optimizer,
        dataset,
        index,
        plan=plan,
        key=key or SecretKey.generate(),
        ledger=ledger,
        rule=clipping,
        grad_sample_mode=grad_sample_mode,
        examples=examples,
        physical_batch_size=usual_rows(plan, physical_batch_size),
        rows_per_unit=rows_per_unit,
        collate=collate_fn,
        postprocess=postprocess,
        accept_conditional=accept_conditional,
        recorder=FolderRecorder(Contract(clipping, postprocess, index, rows_per_unit)),
    )


def usual_rows(plan: Plan, given: int | None) -> int:
    """Rows a micro-batch, where none were asked for."""
    return min(32, plan.expected_batch_size) if given is None else given


_GONE = {
    "seed": (
        "sampling and noise always come from a key of the operating system; seed torch for the "
        "initial weights; a test that needs the same noise twice hands in "
        "key=SecretKey.for_tests(1)"
    ),
    "loss_reduction": (
        "losses are handed over one a row: private.backward(losses), not losses.mean().backward()"
    ),
    "row_cost": "rows share a micro-batch if they have one shape, so there is nothing left to sort",
}


def _refuse_gone(gone: dict[str, Any]) -> None:
    """Arguments that earlier versions had, and typing errors."""
    for name in gone:
        if name not in _GONE:
            raise TypeError(f"make_private() got an unexpected keyword argument {name!r}")
        raise InputError(f"make_private has no argument {name!r} any more: {_GONE[name]}")
