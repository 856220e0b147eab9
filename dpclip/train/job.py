"""From settings to everything a run needs: records, task, model, plan."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from dpclip.budget.plan import Plan, make_plan
from dpclip.clipping import ClippingRule
from dpclip.diagnosis.model_check import check_model, check_rows
from dpclip.engine.setup import configure_rule
from dpclip.errors import InputError
from dpclip.models.loading import LoadedModel, load_model
from dpclip.noise.keystream import SecretKey
from dpclip.postprocess import GradientClipper
from dpclip.sampling.units import UnitIndex
from dpclip.tasks.base import Task
from dpclip.tasks.padding import buckets
from dpclip.tasks.reading import read_records
from dpclip.tasks.records import Records
from dpclip.train.choices import Choices
from dpclip.train.optimization import LearningRateSchedule, OptimizerChoice
from dpclip.train.rows import rows_that_fit, vocabulary_of
from dpclip.train.settings import Settings, option

_LONGEST = 128  # default record length in tokens, if the model has room for it
_LONGEST_BATCH = 256
_EPOCHS = 3.0
_FEW_ROWS = 4  # that are enough to find a model that mixes rows, before anything is written
_PUBLIC_ROWS = 8  # made up of each padded length
_USUAL_WIDTH = 768  # of a model that does not say its own


@dataclass(frozen=True)
class Job:
    """A run that is ready to start.

    Attributes:
        settings: what was asked for.
        key: the run's secret.
        rule: clips; told of the run when training begins.
        postprocess: clippers of the released gradient, in order.
        optimizer: to be built over the model's parameters.
        lr_schedule: of the learning rate.
        task: tokenises, collates, computes losses, evaluates.
        loaded: the model and its tokenizer.
        plan: the one plan object.
        records: the private records (sensitive).
        examples: the private records, tokenised (sensitive).
        index: which rows belong to which unit.
        public_examples: made-up rows of every padded length, for the checks before the first step.
        held_out: evaluation examples, or none.
        evaluation_records: where they come from, or None.
        physical_batch_size: rows computed at once.
    """

    settings: Settings
    key: SecretKey
    rule: ClippingRule
    postprocess: tuple[GradientClipper, ...]
    optimizer: OptimizerChoice
    lr_schedule: LearningRateSchedule
    task: Task
    loaded: LoadedModel
    plan: Plan
    records: Records
    examples: list[Any]
    index: UnitIndex
    public_examples: list[Any]
    held_out: list[Any]
    evaluation_records: Records | None
    physical_batch_size: int

    def data_digest(self) -> str:
        """Fingerprint of the private records. Sensitive: stays in `private/`."""
        state = hashlib.blake2b(digest_size=32)
        r = self.records
        for column in (r.texts, r.inputs, r.targets, r.labels, r.units):
            for value in column or ():
                state.update(len(value).to_bytes(8, "little"))
                state.update(value.encode("utf-8", "surrogatepass"))
            state.update(b"|")
        return state.hexdigest()

    @property
    def peak_learning_rate(self) -> float:
        """The given rate, or the optimizer's usual one for a model of this width."""
        if self.settings.lr is not None:
            return self.settings.lr
        width = getattr(self.loaded.model.config, "hidden_size", None)
        adapters = self.loaded.lora_rank is not None
        return self.optimizer.default_learning_rate(
            width if isinstance(width, int) else _USUAL_WIDTH, adapters
        )

    def learning_rate(self, step: int) -> float:
        """The rate of one step, a function of the step number alone."""
        return self.peak_learning_rate * self.lr_schedule.factor(step, self.plan.steps)

    def resolved(self) -> Settings:
        """The settings with every default that this run chose written out."""
        return self.settings.changed(
            delta=self.plan.delta,
            batch_size=self.plan.expected_batch_size,
            epochs=None if self.settings.steps else (self.settings.epochs or _EPOCHS),
            physical_batch_size=self.physical_batch_size,
            max_length=self.task.max_length,
            lr=self.peak_learning_rate,
            **self.task.resolved(),
        )

    def without_privacy(self) -> Job:
        """The same run with epsilon = inf, from a freshly loaded model."""
        settings = self.settings.changed(epsilon=math.inf, baseline=False)
        plan = replace(self.plan, target_epsilon=math.inf, noise_multiplier=0.0)
        kind = type(self.task)
        options = kind.options(self.records, _declared_labels(self.settings))
        loaded = _load(settings, kind, options, self.key)
        return replace(self, settings=settings, plan=plan, loaded=loaded)


def prepare(settings: Settings, key: SecretKey, fixed: Plan | None = None) -> Job:
    """Read, check and tokenise everything before anything is written.

    Args:
        settings: the run's settings.
        key: without a seed, chooses the weights that start at random (adapters, a new head), too,
            so that a replay starts equally.
        fixed: the plan of a run that is resumed; a plan that comes out differently is refused.

    Raises:
        InputError: whatever cannot work, with the remedy.
    """
    chosen = Choices.of(settings)
    records = _read(settings.data, settings)
    index = UnitIndex(records.rows, records.units)
    plan = _plan(settings, chosen.rule.sampling, index, fixed)
    evaluation = _read_evaluation(settings)
    options = chosen.task.options(records, _declared_labels(settings))
    loaded = _load(settings, chosen.task, options, key)
    if plan.private:
        configure_rule(chosen.rule, plan, loaded.model, settings.accept_conditional)
    task = chosen.task(loaded.tokenizer, _length(settings, loaded), **options)
    if settings.long_records == "refuse":
        _refuse_long(task, records)
    examples = task.encode(records)
    held_out = task.encode(evaluation) if evaluation else []
    vocabulary = vocabulary_of(loaded)
    _check_rows_and_model(settings.grad_sample_mode, task, loaded, vocabulary)
    rows = settings.physical_batch_size or rows_that_fit(
        loaded.model, task, vocabulary, settings.grad_sample_mode, chosen.rule.transforms
    )
    return Job(
        settings=settings,
        key=key,
        rule=chosen.rule,
        postprocess=chosen.postprocess,
        optimizer=chosen.optimizer,
        lr_schedule=chosen.lr_schedule,
        task=task,
        loaded=loaded,
        plan=plan,
        records=records,
        examples=examples,
        index=index,
        public_examples=_public_examples(task, vocabulary),
        held_out=held_out,
        evaluation_records=evaluation,
        physical_batch_size=rows,
    )


def _check_rows_and_model(mode: str, task: Task, loaded: LoadedModel, vocabulary: int) -> None:
    """On made-up rows, before anything is written."""
    few = task.synthetic(_FEW_ROWS, vocabulary, length=buckets(task.max_length)[0])
    check_rows(loaded.model.train(), task.losses, task.collate, few, _FEW_ROWS, mode)
    check_model(loaded.model, task.losses, task.collate, task.synthetic(4, vocabulary), mode)


def _public_examples(task: Task, vocabulary: int) -> list[Any]:
    lengths = buckets(task.max_length)
    return [row for n in lengths for row in task.synthetic(_PUBLIC_ROWS, vocabulary, length=n)]


def _read(data: str, settings: Settings, *, private: bool = True) -> Records:
    return read_records(
        data,
        task=settings.task,
        text_column=settings.text_column,
        input_column=settings.input_column,
        target_column=settings.target_column,
        label_column=settings.label_column,
        unit_column=settings.unit_column if private else None,
    )


def _read_evaluation(settings: Settings) -> Records | None:
    if settings.eval_data is not None:
        return _read(settings.eval_data, settings, private=False)
    if settings.data == "builtin":
        return _read("builtin:public", settings, private=False)
    return None


def _plan(settings: Settings, sampling: str, index: UnitIndex, fixed: Plan | None) -> Plan:
    units = settings.public_units or len(index)
    epochs = None if settings.steps is not None else (settings.epochs or _EPOCHS)
    plan = make_plan(
        units=units,
        expected_batch_size=settings.batch_size or max(1, min(_LONGEST_BATCH, units // 4)),
        target_epsilon=settings.epsilon,
        target_delta=settings.delta,
        epochs=epochs,
        steps=settings.steps,
        accountant=fixed.accountant if fixed else settings.accountant,
        unit=f"all rows with one value of {settings.unit_column!r}"
        if settings.unit_column
        else "one row of the training data",
        noise_multiplier=fixed.noise_multiplier if fixed else None,
        sampling=sampling,
        arithmetic=settings.arithmetic,
    )
    if fixed is not None and plan != fixed:
        changed = [k for k, v in plan.to_json().items() if fixed.to_json()[k] != v]
        raise InputError(
            f"the plan has changed since the run began ({', '.join(changed)}): resume with the "
            "original data and settings, or start a new run"
        )
    return plan


def _load(
    settings: Settings, task: type[Task], options: dict[str, Any], key: SecretKey
) -> LoadedModel:
    torch.manual_seed(key.integer("initial weights") if settings.seed is None else settings.seed)
    return load_model(
        settings.model,
        task.head(**options),
        tokenizer=settings.tokenizer,
        from_scratch=settings.from_scratch,
        lora=settings.lora,
        device=settings.device,
    )


def _declared_labels(settings: Settings) -> list[str] | None:
    if settings.labels is None:
        return None
    return [label.strip() for label in settings.labels.split(",")]


def _length(settings: Settings, loaded: LoadedModel) -> int:
    """Longest record in tokens."""
    if settings.max_length is not None and settings.max_length > loaded.context:
        raise InputError(
            f"{option('max_length')} {settings.max_length} is longer than the model's context "
            f"of {loaded.context} tokens"
        )
    return settings.max_length or min(_LONGEST, loaded.context)


def _refuse_long(task: Task, records: Records) -> None:
    count = task.truncated(records)
    if count:
        raise InputError(
            f"some records of {records.source} are longer than {task.max_length} tokens: raise "
            "--max-length, or allow --long-records truncate (a record is never split into several "
            "units)"
        )
