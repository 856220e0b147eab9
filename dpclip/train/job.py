"""From settings to everything a run needs: records, task, model, plan."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from dpclip.budget.plan import Plan, make_plan
from dpclip.clipping import ClippingRule, make_rule
from dpclip.diagnosis.footprint import footprint
from dpclip.diagnosis.model_check import check_model, check_rows
from dpclip.engine.setup import check_assumption, configure_rule
from dpclip.errors import InputError
from dpclip.memory import free_bytes
from dpclip.models.loading import LoadedModel, load_model
from dpclip.noise.keystream import SecretKey
from dpclip.per_sample import BACKENDS
from dpclip.postprocess import make_postprocessors
from dpclip.sampling.units import UnitIndex
from dpclip.tasks.classification import Classification
from dpclip.tasks.language_modelling import LanguageModelling
from dpclip.tasks.padding import buckets
from dpclip.tasks.records import Records, read_records
from dpclip.train.settings import Settings, option

_LONGEST = 128  # default record length in tokens, if the model has room for it
_LONGEST_BATCH = 256
_EPOCHS = 3.0
# more are no faster on a CPU, and leave more dummies in the last micro-batch of each length
_MOST_ROWS = 16
_FEW_ROWS = 4  # that are enough to find a model that mixes rows, before anything is written
_PUBLIC_ROWS = 8  # made up of each padded length
_MEMORY_SHARE = 0.6  # of what is free; the rest is for evaluation, and for other programs


@dataclass(frozen=True)
class Job:
    """A run that is ready to start.

    Attributes:
        settings: what was asked for.
        key: the run's secret.
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
    task: LanguageModelling | Classification
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
    def learning_rate(self) -> float:
        """Peak learning rate."""
        width = getattr(self.loaded.model.config, "hidden_size", None)
        return self.settings.learning_rate(width if isinstance(width, int) else 768)

    def resolved(self) -> Settings:
        """The settings with every default that this run chose written out."""
        labels = getattr(self.task, "labels", None)
        return self.settings.changed(
            delta=self.plan.delta,
            batch_size=self.plan.expected_batch_size,
            epochs=None if self.settings.steps else (self.settings.epochs or _EPOCHS),
            physical_batch_size=self.physical_batch_size,
            max_length=self.task.max_length,
            lr=self.learning_rate,
            labels=",".join(labels)
            if labels and not any("," in label for label in labels)
            else self.settings.labels,
        )

    def without_privacy(self) -> Job:
        """The same run with epsilon = inf, from a freshly loaded model."""
        settings = self.settings.changed(epsilon=math.inf, baseline=False)
        plan = replace(self.plan, target_epsilon=math.inf, noise_multiplier=0.0)
        return replace(
            self, settings=settings, plan=plan, loaded=_load(settings, self.records, self.key)
        )


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
    _check_names(settings)
    records = _read(settings.data, settings)
    index = UnitIndex(records.rows, records.units)
    plan = _plan(settings, index, fixed)
    evaluation = _read_evaluation(settings)
    loaded = _load(settings, records, key)
    if plan.private:
        configure_rule(
            make_rule(settings.clipping), plan, loaded.model, settings.accept_conditional
        )
    task = _task(settings, loaded, records)
    if settings.long_records == "refuse":
        _refuse_long(task, records)
    examples = task.encode(records)
    held_out = task.encode(evaluation) if evaluation else []
    vocabulary = min(len(loaded.tokenizer), loaded.model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    few = task.synthetic(_FEW_ROWS, vocabulary, length=buckets(task.max_length)[0])
    check_rows(
        loaded.model.train(), task.losses, task.collate, few, _FEW_ROWS, settings.grad_sample_mode
    )
    check_model(
        loaded.model,
        task.losses,
        task.collate,
        task.synthetic(4, vocabulary),
        settings.grad_sample_mode,
    )
    rows = settings.physical_batch_size or _rows_that_fit(settings, task, loaded, vocabulary)
    public = [
        row
        for n in buckets(task.max_length)
        for row in task.synthetic(_PUBLIC_ROWS, vocabulary, length=n)
    ]
    return Job(
        settings,
        key,
        task,
        loaded,
        plan,
        records,
        examples,
        index,
        public,
        held_out,
        evaluation,
        rows,
    )


def _check_postprocess(settings: Settings, rule: ClippingRule) -> None:
    for clipper in make_postprocessors(settings.postprocess):
        if clipper.needs_floor and rule.transforms and math.isfinite(settings.epsilon):
            raise InputError(
                f"--postprocess {settings.postprocess} needs the norm that noise alone has, and "
                f"with --clipping {rule.name} the noise differs between coordinates: choose "
                "input=noised"
            )


def _rows_that_fit(
    settings: Settings,
    task: LanguageModelling | Classification,
    loaded: LoadedModel,
    vocabulary: int,
) -> int:
    """At most 16 rows, and few enough for the longest of them to fit into memory (a public
    question).
    """
    longest = task.synthetic(3, vocabulary, length=task.max_length)
    free = _MEMORY_SHARE * free_bytes(next(loaded.model.parameters()).device)
    materialized = make_rule(settings.clipping).transforms
    needed = footprint(
        loaded.model, task.losses, task.collate, longest, settings.grad_sample_mode, materialized
    )
    rows = needed.rows(free)
    if rows < 1:
        raise InputError(
            f"one record of {task.max_length} tokens needs about "
            f"{(needed.fixed + needed.row) / 2**30:.1f} GiB and {free / 2**30:.1f} GiB may be "
            "used: shorten --max-length, train adapters with --lora 8, or give "
            "--physical-batch-size 1 to try all the same"
        )
    return min(_MOST_ROWS, rows)


def _check_names(settings: Settings) -> None:
    rule = make_rule(settings.clipping)
    bounds = rule.bounds()
    if math.isfinite(settings.epsilon) and not all(math.isfinite(bound) for bound in bounds):
        raise InputError(
            f"--clipping {settings.clipping} bounds nothing, so no noise suffices for epsilon = "
            f"{settings.epsilon:g}: choose another rule, or --epsilon inf"
        )
    check_assumption(rule, settings.accept_conditional)
    _check_postprocess(settings, rule)
    if settings.grad_sample_mode not in BACKENDS.names():
        raise InputError(
            f"--grad-sample-mode {settings.grad_sample_mode!r} is unknown: choose one of "
            f"{', '.join(BACKENDS.names())}"
        )
    if settings.accountant not in ("prv", "rdp"):
        raise InputError(f"--accountant {settings.accountant!r} is unknown: choose one of prv, rdp")


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


def _plan(settings: Settings, index: UnitIndex, fixed: Plan | None) -> Plan:
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
        sampling=make_rule(settings.clipping).sampling,
        arithmetic=settings.arithmetic,
    )
    if fixed is not None and plan != fixed:
        changed = [k for k, v in plan.to_json().items() if fixed.to_json()[k] != v]
        raise InputError(
            f"the plan has changed since the run began ({', '.join(changed)}): resume with the "
            "original data and settings, or start a new run"
        )
    return plan


def _load(settings: Settings, records: Records, key: SecretKey) -> LoadedModel:
    torch.manual_seed(key.integer("initial weights") if settings.seed is None else settings.seed)
    return load_model(
        settings.model,
        settings.task,
        labels=_labels(settings, records) if settings.task == "classification" else None,
        tokenizer=settings.tokenizer,
        from_scratch=settings.from_scratch,
        lora=settings.lora,
        device=settings.device,
    )


def _labels(settings: Settings, records: Records) -> list[str]:
    if settings.labels is not None:
        return [label.strip() for label in settings.labels.split(",")]
    return sorted(set(records.labels or []))


def _task(
    settings: Settings, loaded: LoadedModel, records: Records
) -> LanguageModelling | Classification:
    if settings.max_length is not None and settings.max_length > loaded.context:
        raise InputError(
            f"{option('max_length')} {settings.max_length} is longer than the model's context "
            f"of {loaded.context} tokens"
        )
    length = settings.max_length or min(_LONGEST, loaded.context)
    if settings.task == "lm":
        return LanguageModelling(loaded.tokenizer, length)
    return Classification(loaded.tokenizer, length, tuple(_labels(settings, records)))


def _refuse_long(task: LanguageModelling | Classification, records: Records) -> None:
    count = task.truncated(records)
    if count:
        raise InputError(
            f"some records of {records.source} are longer than {task.max_length} tokens: raise "
            "--max-length, or allow --long-records truncate (a record is never split into several "
            "units)"
        )
