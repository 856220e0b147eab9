"""Keep the run of a loop of the user's own in a folder: saved, stated, resumable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from dpclip import report
from dpclip.budget.spending import planned_spending
from dpclip.clipping import ClippingRule, Flat
from dpclip.engine.private_training import PrivateTraining
from dpclip.errors import InputError
from dpclip.files import write_atomically
from dpclip.postprocess import GradientClipper
from dpclip.record.run_folder import RunFolder
from dpclip.record.run_record import RunRecord
from dpclip.record.statement import RunFacts, compile_statement, to_json
from dpclip.sampling.units import UnitIndex

CONTRACT = "private/loop.json"


class Contract:
    """What a run must be resumed with, besides its plan: the same noise must meet the same sums.

    Rules and clippers learn, so their settings are read before the first step; the rows, which are
    many, only when they are asked for.

    Args:
        rule: as `make_private` was given it.
        postprocess: likewise.
        index: which rows belong to which unit.
        rows_per_unit: most rows of one unit in one step.
    """

    def __init__(
        self,
        rule: ClippingRule | None,
        postprocess: Sequence[GradientClipper],
        index: UnitIndex,
        rows_per_unit: int,
    ) -> None:
        self._index = index
        self._settings = {
            "clipping": _settings(rule or Flat()),
            "postprocess": [_settings(clipper) for clipper in postprocess],
            "rows_per_unit": rows_per_unit,
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = hashlib.blake2b(repr(self._index.rows).encode(), digest_size=16)
        return {**self._settings, "units": rows.hexdigest()}


def _settings(part: ClippingRule | GradientClipper) -> dict[str, Any]:
    """Its name and its settings."""
    named = fields(part) if is_dataclass(part) else ()
    values = {field.name: getattr(part, field.name, None) for field in named if field.init}
    return {"name": part.name, **{name: _plain(value) for name, value in values.items()}}


def _plain(value: Any) -> bool | int | float | str | None:
    """A setting as it is, or what tells it from others in another process, too."""
    if isinstance(value, bool | int | float | str | None):
        return value
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    shown = repr(value)
    return type(value).__qualname__ if " at 0x" in shown else shown


class FolderRecorder:
    """One run, one folder.

    Args:
        contract: what the run must be resumed with.
        folder: where it is kept, if it is already.
    """

    def __init__(self, contract: Contract, folder: RunFolder | None = None) -> None:
        self._contract, self._folder = contract, folder
        self._record: RunRecord | None = None

    def save(self, training: PrivateTraining, folder: Path) -> None:
        """Write the state after the steps so far."""
        kept = self._kept_in(training, folder)
        if self._record is None:
            self._record = RunRecord(training, kept)
        self._record.save()

    def write_report(self, training: PrivateTraining, folder: Path) -> Path:
        """Write the statement and the report of the steps so far."""
        kept = self._kept_in(training, folder)
        statement = compile_statement(training, _facts(training))
        write_atomically(kept.statement_path, to_json(statement))
        return report.write(kept.path)

    def _kept_in(self, training: PrivateTraining, path: Path) -> RunFolder:
        if self._folder is None:
            if path.exists() and (path.is_file() or any(path.iterdir())):
                raise InputError(f"{path} is in use: save the run in a folder that is new or empty")
            engine = training.engine
            self._folder = RunFolder.create(
                path,
                engine.plan,
                engine.key,
                files={CONTRACT: json.dumps(self._contract.to_json(), indent=1) + "\n"},
                ledger=engine.ledger,
            )
        elif path.resolve() != self._folder.path.resolve():
            raise InputError(
                f"this run is kept in {self._folder.path}, and has one folder: save it there, not "
                f"in {path}"
            )
        return self._folder


def _facts(training: PrivateTraining) -> RunFacts:
    plan, parameters = training.plan, list(training.model.parameters())
    return RunFacts(
        status="complete" if training.engine.step >= plan.steps else "unfinished",
        data={"training": {"source": "the data set of a training script", "units": plan.units}},
        model={
            "name": type(training.model).__name__,
            "parameters": sum(p.numel() for p in parameters),
            "trainable_parameters": sum(p.numel() for p in training.engine.parameters),
        },
        evaluation=None,
        spend=planned_spending(plan),
        settings={},
    )
