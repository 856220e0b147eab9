"""What a person sees of a training run: a header, a live bar, the verdict."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from dpclip.train.job import Job
    from dpclip.train.run import Outcome


class NoProgress:
    """Says nothing, for `--json`."""

    def __enter__(self) -> NoProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def on_plan(self, job: Job, spend: list[tuple[int, float]], folder: Path | None) -> None:
        """Nothing."""

    def on_evaluate(self, step: int, metric: str, value: float) -> None:
        """Nothing."""

    def on_step(self, step: int, epsilon: float, values: dict[str, float]) -> None:
        """Nothing."""

    def log(self, message: str) -> None:
        """Nothing."""

    def conclude(self, outcome: Outcome) -> None:
        """Nothing."""


class ConsoleProgress(NoProgress):
    """Prints to a terminal; without one, a line at every tenth of the run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._job: Job | None = None
        self._waiting = console.status("reading the data and loading the model")

    def __enter__(self) -> ConsoleProgress:
        self._waiting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()
        if kind is KeyboardInterrupt:
            self.console.print("[yellow]interrupted[/]: continue with  dpclip train --resume RUN")

    def _stop(self) -> None:
        self._waiting.stop()
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def on_plan(self, job: Job, spend: list[tuple[int, float]], folder: Path | None) -> None:
        """The header, then the bar."""
        self._stop()
        self._job = job
        self.console.print(_header(job, folder))
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TextColumn("{task.fields[spent]}"),
            TextColumn("{task.fields[held_out]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=self.console, disable=not self.console.is_terminal
        )
        self._progress.start()
        description = "training" if job.plan.private else "training without privacy"
        self._task = self._progress.add_task(
            description, total=job.plan.steps, spent="", held_out=""
        )

    def on_evaluate(self, step: int, metric: str, value: float) -> None:
        """A held-out figure."""
        when = "before training" if step == 0 else f"after {step} steps"
        self.console.print(f"held-out {metric} {when}: [bold]{value:.4g}[/]")
        if self._progress is not None:
            self._progress.update(self._task, held_out=f"· held-out {metric} {value:.4g}")

    def on_step(self, step: int, epsilon: float, values: dict[str, float]) -> None:
        """One logical step."""
        if self._job is None or self._progress is None:
            return
        plan = self._job.plan
        spent = f"· ε ≤ {epsilon:.2f} at δ = {plan.delta:g}" if plan.private else ""
        self._progress.update(self._task, completed=step, spent=spent)
        if not self.console.is_terminal and step % max(1, plan.steps // 10) == 0:
            self.console.print(f"step {step}/{plan.steps} {spent}")

    def log(self, message: str) -> None:
        """Something the user should know."""
        self.console.print(f"[yellow]note[/]: {message}")

    def conclude(self, outcome: Outcome) -> None:
        """The verdict."""
        if not outcome.statement:
            return
        run, guarantee = outcome.statement["run"], outcome.statement["guarantee"]
        lines = [guarantee["sentence"]]
        if outcome.status != "complete":
            lines.append(
                f"Steps given up because the budget was used up: {run['steps_given_up']} of "
                f"{run['steps_planned']}."
            )
        lines += _figures(outcome, self._job.task.metric if self._job else "metric")
        lines.append(
            f"Report: {outcome.folder}/public/report.html   Model: {outcome.folder}/public/model"
        )
        self.console.print(Panel("\n".join(lines), title="privacy statement", border_style="green"))


def _figures(outcome: Outcome, metric: str) -> list[str]:
    if outcome.after is None:
        return [
            "No held-out data was given (--eval-data), so no figure on how well it learned is "
            "published."
        ]
    before = "" if outcome.before is None else f"{outcome.before:.4g} before, "
    text = f"Held-out {metric}: {before}{outcome.after:.4g} after"
    if outcome.baseline is not None:
        text += (
            f"; {outcome.baseline:.4g} for the same run without privacy (unprotected, kept in "
            "private/)"
        )
    return [text + "."]


def _header(job: Job, folder: Path | None) -> Panel:
    plan, settings = job.plan, job.settings
    parameters = sum(p.numel() for p in job.loaded.model.parameters() if p.requires_grad)
    budget = (
        f"ε = {plan.target_epsilon:g} at δ = {plan.delta:g}, {plan.adjacency}, "
        f"{plan.scheme.certificate(plan.accountant)}"
        if math.isfinite(plan.target_epsilon)
        else "none: ε = inf, training without privacy"
    )
    rows = [
        ("budget", budget),
        ("unit", plan.unit),
        ("data", f"{job.records.source}: {job.records.rows:,} rows, N = {plan.units:,} units"),
        (
            "batches",
            f"{plan.scheme.sampler_title}, q = {plan.sample_rate:.6g}, expected batch "
            f"{plan.expected_batch_size}",
        ),
        ("steps", f"{plan.steps:,}"),
        (
            "noise",
            f"σ = {plan.noise_multiplier:.4g} times the sensitivity" if plan.private else "none",
        ),
        ("clipping", settings.clipping if plan.private else "none"),
        *([("after noise", settings.postprocess)] if settings.postprocess != "none" else []),
        ("model", f"{job.loaded.name}, {parameters:,} trainable parameters"),
        (
            "records",
            f"at most {job.task.max_length} tokens; longer ones are truncated, never split",
        ),
        ("held-out", _held_out(job)),
        ("run folder", str(folder) if folder else "none (comparison)"),
    ]
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(f"[bold]{name}[/]", value)
    return Panel(table, title="dpclip train", border_style="blue")


def _held_out(job: Job) -> str:
    if job.evaluation_records is None:
        return "none (--eval-data FILE gives held-out figures)"
    whose = (
        "public" if job.settings.eval_data is None else "declared public by you; not protected by ε"
    )
    return f"{job.evaluation_records.source}: {job.evaluation_records.rows:,} rows, {whose}"
