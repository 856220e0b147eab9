"""Sequence classification: one label a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from dpclip.errors import InputError
from dpclip.memory import device_of
from dpclip.models.heads import ModelHead
from dpclip.tasks.base import Task
from dpclip.tasks.padding import padded_length
from dpclip.tasks.records import Columns, Records, default_label, default_text
from dpclip.tasks.tables import RecordTable


@dataclass(frozen=True)
class LabelledExample:
    """One tokenised record with its class index."""

    ids: list[int]
    label: int


@dataclass(frozen=True)
class Classification(Task):
    """Tokenises records, pads batches and computes one loss a row.

    Args:
        tokenizer: a Hugging Face tokenizer with a padding token.
        max_length: longest record in tokens; longer ones are truncated, never split into several
            units.
        labels: the class names, in the order of the model's outputs; taken as public.
    """

    tokenizer: Any
    max_length: int
    labels: tuple[str, ...]
    metric: str = "accuracy"
    name: ClassVar[str] = "classification"

    @classmethod
    def columns(cls, table: RecordTable, asked: Columns) -> Mapping[str, str | None]:
        others = {"units": asked.unit, "labels": asked.label or default_label(table)}
        if asked.input is not None or asked.target is not None:
            raise InputError(
                "--input-column and --target-column are for language modelling; give --text-column"
            )
        return {**others, "texts": asked.text or default_text(table, {*others.values()})}

    @classmethod
    def options(cls, records: Records, labels: Sequence[str] | None) -> dict[str, Any]:
        """The classes: as declared, or as the records have them."""
        return {"labels": tuple(sorted(set(records.labels or [])) if labels is None else labels)}

    @classmethod
    def stand_in_options(cls) -> dict[str, Any]:
        return {"labels": ("a", "b")}

    @classmethod
    def head(cls, **options: Any) -> ModelHead:
        names = options["labels"]
        numbers = {name: number for number, name in enumerate(names)}
        config = {"id2label": dict(enumerate(names)), "label2id": numbers}
        return ModelHead(AutoModelForSequenceClassification, "SEQ_CLS", config)

    def facts(self) -> dict[str, Any]:
        return {"labels": list(self.labels)}

    def resolved(self) -> dict[str, Any]:
        plain = not any("," in label for label in self.labels)
        return {"labels": ",".join(self.labels)} if self.labels and plain else {}

    def encode(self, records: Records) -> list[LabelledExample]:
        """One example a record.

        Raises:
            InputError: a label that is not among the declared ones.
        """
        index = {label: i for i, label in enumerate(self.labels)}
        unknown = sorted(set(records.labels or []) - set(index))
        if unknown:
            raise InputError(
                f"label {unknown[0]!r} in {records.source} is not among the labels "
                f"{', '.join(self.labels)}: correct the file, or declare all labels with --labels"
            )
        encoded = self.tokenizer(
            list(records.texts or []), truncation=True, max_length=self.max_length, verbose=False
        )["input_ids"]
        pad = self.tokenizer.pad_token_id
        return [
            LabelledExample(ids or [pad], index[label])
            for ids, label in zip(encoded, records.labels or [], strict=True)
        ]

    def truncated(self, records: Records) -> int:
        """How many records are longer than the context (a private number)."""
        lengths = self.tokenizer(list(records.texts or []), verbose=False)["input_ids"]
        return sum(len(ids) > self.max_length for ids in lengths)

    def cost(self, example: LabelledExample) -> int:
        """Padded length is what a row costs."""
        return len(example.ids)

    def collate(self, examples: Sequence[LabelledExample]) -> dict[str, Tensor]:
        """Right-padded `input_ids` and `attention_mask` [rows, length], and `labels` [rows]."""
        length = padded_length(max(len(e.ids) for e in examples), self.max_length)
        ids = torch.full((len(examples), length), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(examples), length, dtype=torch.long)
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.ids)] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": torch.tensor([e.label for e in examples]),
        }

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Cross entropy, shape [rows]."""
        logits = self._logits(model, batch)
        return F.cross_entropy(logits, batch["labels"].to(logits.device), reduction="none")

    def _logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        device = device_of(model)
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        return model(input_ids=ids, attention_mask=mask).logits.float()

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, examples: Sequence[LabelledExample], rows: int = 32
    ) -> float:
        """Share of examples whose most likely class is right."""
        model.eval()
        right = 0
        ordered = sorted(examples, key=self.cost)
        for start in range(0, len(ordered), rows):
            batch = self.collate(ordered[start : start + rows])
            right += int((self._logits(model, batch).argmax(1).cpu() == batch["labels"]).sum())
        model.train()
        return right / max(len(examples), 1)

    def synthetic(
        self, rows: int, vocabulary: int, length: int | None = None
    ) -> list[LabelledExample]:
        """Public stand-in examples: fixed random tokens, of different lengths or of the
        given one.
        """
        generator = torch.Generator().manual_seed(0)
        return [
            LabelledExample(
                torch.randint(
                    vocabulary, (length or min(self.max_length, 5 + 2 * row),), generator=generator
                ).tolist(),
                row % len(self.labels),
            )
            for row in range(rows)
        ]
