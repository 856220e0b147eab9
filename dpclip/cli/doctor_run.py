"""Carries out `dpclip doctor` once its options are parsed."""

from __future__ import annotations

import json
import warnings

from rich.console import Console
from rich.table import Table

from dpclip.diagnosis.doctor import Diagnosis, examine
from dpclip.errors import InputError
from dpclip.models.loading import load_model
from dpclip.tasks import task_kind
from dpclip.train.rows import vocabulary_of

_LONGEST = 128


def run(
    model: str,
    task: str,
    tokenizer: str | None,
    lora: int | None,
    max_length: int | None,
    from_scratch: bool,
    device: str,
    as_json: bool,
) -> bool:
    """Examine and print; returns whether private training would be accepted.

    Raises:
        InputError: options that cannot be used.
    """
    kind = task_kind(task)
    options = kind.stand_in_options()
    warnings.filterwarnings("ignore")
    loaded = load_model(
        model,
        kind.head(**options),
        tokenizer=tokenizer,
        from_scratch=from_scratch,
        lora=lora,
        device=device,
    )
    length = max_length or min(_LONGEST, loaded.context)
    if not 1 <= length <= loaded.context:
        raise InputError(
            f"--max-length {length} must be between 1 and the model's context of {loaded.context} "
            "tokens"
        )
    stand_in = kind(loaded.tokenizer, length, **options)
    vocabulary = vocabulary_of(loaded)
    found = examine(
        loaded.model,
        stand_in.losses,
        stand_in.collate,
        stand_in.synthetic(4, vocabulary),
        stand_in.synthetic(3, vocabulary, length=length),
    )
    if as_json:
        print(json.dumps({"model": model, "task": task, "max_length": length, **found.to_json()}))  # noqa: T201
    else:
        _show(found, length)
    return not found.refusals


def _show(found: Diagnosis, length: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    table = Table("parameter", "layer", "size", "norm", "KiB a row", box=None, header_style="bold")
    table.columns[0].overflow = "fold"
    for number in (2, 4):
        table.columns[number].justify = "right"
    for finding in found.findings:
        table.add_row(
            finding.parameter, finding.layer, f"{finding.elements:,}", finding.norm,
            f"{finding.bytes_per_row / 1024:,.1f}",
        )  # fmt: skip
    console.print(table)
    uses = [finding.parameter for finding in found.findings]
    for name in sorted({name for name in uses if uses.count(name) > 1}):
        console.print(
            f"{name} is used {uses.count(name)} times: its norm has the exact cross terms"
        )
    console.print(f"{found.trainable:,} trainable parameters; records of {length} tokens")
    if found.slowdown is not None:
        console.print(
            f"memory: {found.row_bytes / 2**20:.0f} MiB a row and {found.fixed_bytes / 2**20:.0f} "
            f"MiB besides; {found.rows_that_fit} rows would fit now\ntime: a private micro-batch "
            f"takes {found.slowdown:.2f} times the plain forward and backward pass here"
        )
    for refusal in found.refusals:
        Console(stderr=True, soft_wrap=True, highlight=False).print(
            f"dpclip: refused: {refusal}", markup=False
        )
    if not found.refusals:
        console.print(
            "rows do not influence each other, bit for bit on this machine, and per-sample "
            "gradients are right: ready to train"
        )
