"""The training run of the command line: prepare or resume, train, evaluate, state what was
promised.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from dpclip import report
from dpclip.budget.ledger import Ledger
from dpclip.budget.spending import epsilon_after, planned_spending
from dpclip.engine.private_training import PrivateTraining
from dpclip.engine.setup import build_private_training, trainable_parameters
from dpclip.errors import BudgetExceededError, InputError, ReplayError
from dpclip.files import write_atomically
from dpclip.memory import reuse_heap
from dpclip.models.loading import save_model
from dpclip.noise.keystream import SecretKey
from dpclip.record.metrics_log import MetricsLog
from dpclip.record.run_folder import RunFolder, check_free
from dpclip.record.run_record import RunRecord
from dpclip.record.statement import compile_statement, to_json
from dpclip.released import Released, StepRelease
from dpclip.train.facts import run_facts
from dpclip.train.job import Job, prepare
from dpclip.train.run_settings import check_settings
from dpclip.train.settings import Settings


class Listener(Protocol):
    """Hears how a run goes; every number it is told is released or public."""

    def on_plan(self, job: Job, spend: list[tuple[int, float]], folder: Path | None) -> None: ...

    def on_evaluate(self, step: int, metric: str, value: float) -> None: ...

    def on_step(self, step: int, epsilon: float, values: dict[str, float]) -> None: ...

    def log(self, message: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        statement: what was written to `public/statement.json`; empty without a run folder.
        status: "complete" or "budget exhausted".
        before: held-out metric of the initial model, if there is held-out data.
        after: held-out metric of the trained model.
        folder: the run folder.
        baseline: the same metric of the run without privacy, if asked for. Not protected.
    """

    statement: dict[str, Any]
    status: str
    before: float | None
    after: float | None
    folder: Path | None
    baseline: float | None = None


def start(
    settings: Settings, output: Path, listener: Listener, *, key: SecretKey | None = None
) -> Outcome:
    """Begin a new run in a new folder.

    Args:
        key: of sampling and noise, by default a secret one from the operating system; tests hand in
            one they know.
    """
    check_free(output)
    key = key or SecretKey.generate()
    _settle_torch()
    job = prepare(settings, key)
    resolved = job.resolved()
    folder = RunFolder.create(
        output,
        job.plan,
        key,
        files={
            "public/config.toml": resolved.to_toml(public=True),
            "private/config.toml": resolved.to_toml(),
        },
        data_digest=job.data_digest(),
        settings_digest=resolved.digest(key.subkey("settings")),
    )
    return _conduct(job, folder, listener)


def resume(folder: RunFolder, settings: Settings, listener: Listener) -> Outcome:
    """Continue a run where its last checkpoint is, or finish one that had only its report left.

    Raises:
        InputError: the data, the settings or the plan are no longer the same, or an earlier version
            began the run.
    """
    plan = folder.plan()
    key, data_digest = folder.secret()
    check_settings(folder, settings, key)
    _settle_torch()
    job = prepare(settings, key, fixed=plan)
    if job.data_digest() != data_digest:
        raise InputError(
            f"the training data ({job.records.source}) is not what the run began with: restore it, "
            "or start a new run"
        )
    return _conduct(job, folder, listener)


def _settle_torch() -> None:
    reuse_heap()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _conduct(job: Job, folder: RunFolder, listener: Listener) -> Outcome:
    ledger = folder.open_ledger(job.plan)
    try:
        run = _Run(job, folder, ledger, listener)
        outcome = run.carry_out()
    finally:
        ledger.close()
    return _with_baseline(job, folder, listener, outcome) if job.settings.baseline else outcome


def _with_baseline(job: Job, folder: RunFolder, listener: Listener, outcome: Outcome) -> Outcome:
    """The same plan without privacy. Its result is not protected, so it stays in `private/`."""
    plain = job.without_privacy()
    listener.log(
        "training the same run without privacy, for comparison (its result is not protected)"
    )
    memory = Ledger.create(None, plain.plan)
    run = _Run(plain, None, memory, listener)
    after = run.carry_out().after
    text = json.dumps({"metric": job.task.metric, "after_without_privacy": after})
    write_atomically(folder.private / "baseline.json", text + "\n")
    return Outcome(
        outcome.statement,
        outcome.status,
        outcome.before,
        outcome.after,
        outcome.folder,
        baseline=after,
    )


class _Run:
    """One pass over a plan, observed step by step."""

    def __init__(
        self, job: Job, folder: RunFolder | None, ledger: Ledger, listener: Listener
    ) -> None:
        self.job, self.folder, self.listener = job, folder, listener
        self.training = _private_training(job, ledger)
        self.training.observers.append(self)
        self.record = RunRecord(self.training, folder)
        self.spend = planned_spending(job.plan)
        if (note := self.record.restore()) is not None:
            listener.log(note)
        step = self.training.engine.step
        self.metrics = MetricsLog(folder.metrics_path if folder else None, upto=step)

    # --- the run ----------------------------------------------------------------------------------

    def carry_out(self) -> Outcome:
        self.listener.on_plan(self.job, self.spend, self.folder.path if self.folder else None)
        before = self._evaluate(0) if self.training.engine.step == 0 else None
        status = self._train()
        after = self._evaluate(self.training.engine.step)
        if before is None:
            before = self.metrics.find(self._metric, 0)
        statement = self._conclude(status, before, after)
        self.training.close()
        return Outcome(statement, status, before, after, self.folder.path if self.folder else None)

    def _train(self) -> str:
        while True:
            try:
                self._steps()
                return "complete"
            except BudgetExceededError as reason:
                self.listener.log(f"the budget is used up: {reason}")
                return "budget exhausted"
            except ReplayError as reason:
                self._start_afresh(str(reason))

    def _steps(self) -> None:
        job, training = self.job, self.training
        job.loaded.model.train()
        for batch in training.batches():
            with training.microbatch(batch):
                training.backward(job.task.losses(job.loaded.model, batch))
            training.step()

    # --- StepObserver -----------------------------------------------------------------------------

    def on_step_begin(self, step: int, generation: int) -> None:
        """The learning rate depends on the step alone, so that a replay is the same."""
        for group in self.training.engine.optimizer.param_groups:
            group["lr"] = self.job.learning_rate(step)

    def on_step_end(self, step: int, released: Released[StepRelease]) -> None:
        norm = released.map(
            lambda r: math.sqrt(sum(float(t.double().square().sum()) for t in r.gradient))
        )
        done, plan = step + 1, self.job.plan
        epsilon = epsilon_after(self.spend, released.receipt.planned_steps, plan.target_epsilon)
        values = {
            "released_gradient_norm": norm.value,
            "learning_rate": self.job.learning_rate(step),
            **self.training.engine.rule.metrics(),
            **{
                name: value
                for c in self.training.engine.postprocess
                for name, value in c.metrics().items()
            },
        }
        line = {**values, "epsilon": epsilon} if plan.private else values
        self.metrics.add(done, line)
        self.listener.on_step(done, epsilon, values)
        every = self.job.settings.eval_every
        if every and done % every == 0 and done < plan.steps:
            self._evaluate(done)
        if done % self._checkpoint_every == 0 or done == plan.steps:
            self.record.save()

    @property
    def _checkpoint_every(self) -> int:
        return self.job.settings.checkpoint_every or max(1, self.job.plan.steps // 20)

    # --- evaluation -------------------------------------------------------------------------------

    @property
    def _metric(self) -> str:
        return f"held_out_{self.job.task.metric}"

    def _evaluate(self, step: int) -> float | None:
        if not self.job.held_out:
            return None
        known = self.metrics.find(self._metric, step)
        if known is not None:
            return known
        value = self.job.task.evaluate(self.job.loaded.model, self.job.held_out)
        self.metrics.add(step, {self._metric: value} if math.isfinite(value) else {})
        self.listener.on_evaluate(step, self.job.task.metric, value)
        return value

    def _start_afresh(self, reason: str) -> None:
        assert self.folder is not None
        self.listener.log(self.record.start_afresh(reason))
        self.metrics = MetricsLog(self.folder.metrics_path, upto=self.training.engine.step)

    # --- the end ----------------------------------------------------------------------------------

    def _conclude(self, status: str, before: float | None, after: float | None) -> dict[str, Any]:
        if self.folder is None:
            return {}
        if status != "complete":
            self.record.save()
        # before adapters are merged away
        facts = run_facts(self.job, status, self.spend, before, after)
        save_model(self.job.loaded, self.folder.public / "model")
        statement = compile_statement(self.training, facts)
        write_atomically(self.folder.statement_path, to_json(statement))
        report.write(self.folder.path)
        return statement


def _private_training(job: Job, ledger: Ledger) -> PrivateTraining:
    settings, model = job.settings, job.loaded.model
    parameters = list(trainable_parameters(model).values())
    return build_private_training(
        model,
        job.optimizer.build(parameters, job.peak_learning_rate),
        job.examples,
        job.index,
        plan=job.plan,
        key=job.key,
        ledger=ledger,
        rule=job.rule,
        grad_sample_mode=settings.grad_sample_mode,
        physical_batch_size=job.physical_batch_size,
        rows_per_unit=settings.rows_per_unit,
        collate=job.task.collate,
        examples=job.public_examples,
        postprocess=job.postprocess,
        accept_conditional=settings.accept_conditional,
        recheck=False,
    )
