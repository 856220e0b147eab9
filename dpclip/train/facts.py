"""What a statement says of a job besides its accounting; all of it public."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from dpclip.record.statement import RunFacts
from dpclip.train.job import Job


def run_facts(
    job: Job, status: str, spend: list[tuple[int, float]], before: float | None, after: float | None
) -> RunFacts:
    """The facts of a run that has ended, with its held-out metric before and after."""
    return RunFacts(
        status=status,
        data=_describe_data(job),
        model=_describe_model(job),
        evaluation=_describe_evaluation(job, before, after),
        spend=spend,
        settings={
            "epochs": job.settings.epochs,
            "learning_rate": job.peak_learning_rate,
            "seed": job.settings.seed,
        },
    )


def _describe_data(job: Job) -> dict[str, Any]:
    training: dict[str, Any] = {
        "source": job.records.source,
        "rows": job.records.rows,
        "units": len(job.index),
        "truncation": (
            f"records longer than {job.task.max_length} tokens are truncated, never split"
        ),
    }
    if job.index.grouped:
        training["rows_per_unit_and_step"] = job.settings.rows_per_unit
    training |= job.task.facts()
    described: dict[str, Any] = {"training": training}
    if job.evaluation_records is not None:
        described["evaluation"] = {
            "source": job.evaluation_records.source,
            "rows": job.evaluation_records.rows,
            "declared": _declared(job),
        }
    return described


def _declared(job: Job) -> str:
    if job.settings.eval_data is None:
        return "public: invented notes of other people than the training notes"
    return "separate data declared public by the user; epsilon does not protect its records"


def _describe_model(job: Job) -> dict[str, Any]:
    parameters = list(job.loaded.model.parameters())
    return {
        "name": job.loaded.name
        if not Path(job.loaded.name).exists()
        else Path(job.loaded.name).name,
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "lora_rank": job.loaded.lora_rank,
    }


def _describe_evaluation(
    job: Job, before: float | None, after: float | None
) -> dict[str, Any] | None:
    if before is None and after is None:
        return None
    finite = [v if v is not None and math.isfinite(v) else None for v in (before, after)]
    return {
        "metric": job.task.metric,
        "before": finite[0],
        "after": finite[1],
        "declared": _declared(job),
    }
