"""`resume`: go on with a run that `PrivateTraining.save` has kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from dpclip.clipping import ClippingRule
from dpclip.engine.private_training import PrivateTraining
from dpclip.engine.setup import build_private_training
from dpclip.errors import InputError
from dpclip.guards.update_guard import check_optimizer_kind
from dpclip.loop.make_private import usual_rows
from dpclip.loop.recorder import CONTRACT, Contract, FolderRecorder
from dpclip.postprocess import GradientClipper
from dpclip.record.run_folder import RunFolder
from dpclip.record.run_record import RunRecord
from dpclip.sampling.units import RowDataset, UnitIndex, check_dataset


def resume(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: RowDataset,
    *,
    clipping: ClippingRule | None = None,
    grad_sample_mode: str = "auto",
    units: Sequence[Any] | None = None,
    rows_per_unit: int = 8,
    physical_batch_size: int | None = None,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
    examples: Sequence[Any] = (),
    postprocess: Sequence[GradientClipper] = (),
    accept_conditional: bool = False,
    fresh_randomness: bool = False,
) -> PrivateTraining:
    """Go on with a run where it was last saved: its plan, key and ledger come from its folder.

    Steps that were begun after that are repeated bit for bit with the noise that they had, and cost
    nothing again; on another machine, or with other versions, they get fresh noise and are charged
    again.

    Args:
        folder: as given to `PrivateTraining.save`.
        model: built as when the run began; its weights are loaded.
        optimizer: over the model's trainable parameters; its state is loaded.
        dataset: the rows that the run began with, in their order.
        fresh_randomness: charge the steps after the last save again and give them fresh noise, for
            a loop that cannot repeat them (`ReplayError`).

    The other arguments are `make_private`'s, and must be what the run began with, but for
    `physical_batch_size`.

    Raises:
        InputError: no such run, or arguments that differ from what it began with.
        JournalBusyError: the run is still going on.
    """
    run = RunFolder.open(Path(folder))
    check_dataset(dataset)
    check_optimizer_kind(optimizer)
    index = UnitIndex(len(dataset), units)
    given = Contract(clipping, postprocess, index, rows_per_unit)
    _check_contract(run, given)
    plan, (key, _) = run.plan(), run.secret()
    ledger = run.open_ledger(plan)
    try:
        training = build_private_training(
            model,
            optimizer,
            dataset,
            index,
            plan=plan,
            key=key,
            ledger=ledger,
            rule=clipping,
            grad_sample_mode=grad_sample_mode,
            physical_batch_size=usual_rows(plan, physical_batch_size),
            rows_per_unit=rows_per_unit,
            collate=collate_fn,
            examples=examples,
            postprocess=postprocess,
            accept_conditional=accept_conditional,
            recorder=FolderRecorder(given, run),
        )
        record = RunRecord(training, run)
        if fresh_randomness:
            record.start_afresh("asked for by the loop")
        else:
            record.restore()
    except BaseException:
        ledger.close()
        raise
    return training


def _check_contract(run: RunFolder, given: Contract) -> None:
    path = run.path / CONTRACT
    if not path.is_file():
        raise InputError(
            f"the run in {run.path} was started by dpclip train: go on with it by dpclip train "
            f"--resume {run.path}"
        )
    began = json.loads(path.read_text())
    changed = [name for name, value in given.to_json().items() if began.get(name) != value]
    if changed:
        raise InputError(
            f"{', '.join(changed)} changed since the run in {run.path} began: resume with what it "
            "began with, or start a new run in a new folder"
        )
