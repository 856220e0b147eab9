"""Causal language modelling: the loss of a record is the mean over its own target tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dpclip.errors import InputError
from dpclip.losses import IGNORED, causal_lm, causal_lm_tokens
from dpclip.models.heads import ModelHead
from dpclip.tasks.base import Task
from dpclip.tasks.padding import padded_length
from dpclip.tasks.records import Columns, Records, default_text
from dpclip.tasks.tables import RecordTable

_LOGITS = 1 << 26  # most logits held at once in evaluation


@dataclass(frozen=True)
class Example:
    """One tokenised record.

    Attributes:
        ids: token ids, at most the context.
        start: index of the first token that the loss counts.
    """

    ids: list[int]
    start: int


@dataclass(frozen=True)
class LanguageModelling(Task):
    """Tokenises records, pads batches and computes one loss a row.

    Args:
        tokenizer: a Hugging Face tokenizer with a padding token.
        max_length: longest record in tokens; longer ones are truncated, never split into several
            units.
    """

    tokenizer: Any
    max_length: int
    metric: str = "perplexity"
    name: ClassVar[str] = "lm"

    @classmethod
    def columns(cls, table: RecordTable, asked: Columns) -> Mapping[str, str | None]:
        others = {"units": asked.unit, "labels": asked.label}
        if asked.input is None and asked.target is None:
            return {**others, "texts": asked.text or default_text(table, {*others.values()})}
        _check_pair(asked.text, asked.input, asked.target)
        return {**others, "inputs": asked.input, "targets": asked.target}

    @classmethod
    def head(cls, **options: Any) -> ModelHead:
        return ModelHead(AutoModelForCausalLM, "CAUSAL_LM")

    def encode(self, records: Records) -> list[Example]:
        """One example a record: begin token, text (or input, newline, target), end token."""
        if records.texts is not None:
            return [self._example([], ids) for ids in self._ids(records.texts)]
        inputs = self._ids([text + "\n" for text in records.inputs or []])
        targets = self._ids(records.targets or [])
        return [
            self._example(source, target) for source, target in zip(inputs, targets, strict=True)
        ]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def _example(self, source: list[int], target: list[int]) -> Example:
        begin, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        head = [] if begin is None else [begin]
        tail = [] if end is None else [end]
        room = self.max_length - len(head)
        kept = (target + tail)[: max(room - len(source), room // 2)]
        source = source[: room - len(kept)]
        ids = head + source + kept
        return Example(ids or [self.tokenizer.pad_token_id], len(head) + len(source))

    def truncated(self, records: Records) -> int:
        """How many records are longer than the context (a private number)."""
        lengths = [len(i) for i in self._ids(records.texts or records.targets or [])]
        if records.inputs is not None:
            lengths = [n + len(i) for n, i in zip(lengths, self._ids(records.inputs), strict=True)]
        return sum(n + 2 > self.max_length for n in lengths)

    def cost(self, example: Example) -> int:
        """Padded length is what a row costs."""
        return len(example.ids)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Right-padded `input_ids`, `attention_mask` and `labels`, each [rows, length]."""
        length = padded_length(max(len(e.ids) for e in examples), self.max_length)
        ids = torch.full((len(examples), length), self.tokenizer.pad_token_id)
        mask = torch.zeros(len(examples), length, dtype=torch.long)
        labels = torch.full((len(examples), length), IGNORED)
        for row, example in enumerate(examples):
            n = len(example.ids)
            ids[row, :n] = torch.tensor(example.ids)
            mask[row, :n] = 1
            labels[row, example.start : n] = ids[row, example.start : n]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Mean negative log-likelihood a target token, shape [rows]; 0 for a row without one."""
        return causal_lm(model, batch)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, examples: Sequence[Example]) -> float:
        """Perplexity a target token over all examples; inf for a model that has diverged."""
        rows = max(1, min(32, _LOGITS // (len(self.tokenizer) * self.max_length)))
        model.eval()
        total, tokens = 0.0, 0
        ordered = sorted(examples, key=self.cost)
        for start in range(0, len(ordered), rows):
            token_losses, counted = causal_lm_tokens(
                model, self.collate(ordered[start : start + rows])
            )
            total += float(token_losses.double().sum())
            tokens += int(counted.sum())
        model.train()
        mean = total / max(tokens, 1)
        return math.exp(mean) if mean < 700 else math.inf

    def synthetic(self, rows: int, vocabulary: int, length: int | None = None) -> list[Example]:
        """Public stand-in examples: fixed random tokens, of different lengths or of the
        given one.
        """
        generator = torch.Generator().manual_seed(0)
        lengths = [length or min(self.max_length, 5 + 2 * row) for row in range(rows)]
        return [
            Example(torch.randint(vocabulary, (n,), generator=generator).tolist(), 1 + row % 2)
            for row, n in enumerate(lengths)
        ]


def _check_pair(text: str | None, given: str | None, target: str | None) -> None:
    if text is not None:
        raise InputError(
            f"--text-column {text} excludes --input-column and --target-column; give one or the "
            "other"
        )
    if given is None or target is None:
        column, lacking = (
            (given, "--target-column") if target is None else (target, "--input-column")
        )
        raise InputError(f"column {column!r} is one half of input and target; give {lacking} too")
