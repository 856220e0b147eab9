"""A tiny model folder and tiny files, for tests of whole runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

WORDS = [
    "pain",
    "cough",
    "fever",
    "knee",
    "rash",
    "left",
    "right",
    "mild",
    "since",
    "Monday",
    "rest",
    "tablet",
]


def notes(count: int) -> list[str]:
    """Short different sentences."""
    return [
        " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 4 + i % 4)) for i in range(count)
    ]


def write_csv(path: Path, count: int = 60, column: str = "text") -> Path:
    """Notes with a label, a person and an input, in a CSV file."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([column, "label", "person", "question"])
        table.writerows(
            [n, "ab"[i % 2], f"p{i % 20}", n.split()[0]] for i, n in enumerate(notes(count))
        )
    return path


def _tokenizer(folder: Path, pad: bool) -> int:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    specials = ["<|endoftext|>", "<|pad|>"] if pad else ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(notes(60), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=specials[0],
        eos_token=specials[0],
        pad_token=specials[-1] if pad else None,
    )
    fast.save_pretrained(folder)
    return bpe.get_vocab_size()


def gpt2_folder(folder: Path, *, pad: bool = False, dropout: float = 0.1) -> Path:
    """A GPT-2 of width 16, with dropout, saved as a Hugging Face folder."""
    size = _tokenizer(folder, pad)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=size,
        n_positions=32,
        n_embd=16,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def bert_folder(folder: Path) -> Path:
    """A BERT classifier of width 16, saved as a Hugging Face folder."""
    size = _tokenizer(folder, True)
    config = BertConfig(
        vocab_size=size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def statement(run: Path) -> dict[str, Any]:
    """The statement of a run."""
    return json.loads((run / "public" / "statement.json").read_text())


def ledger_steps(run: Path) -> list[tuple[int, int]]:
    """(step, generation) of every charge in the ledger."""
    bodies = [json.loads(line)["body"] for line in (run / "ledger.jsonl").read_text().splitlines()]
    return [(b["step"], b["generation"]) for b in bodies if b.get("kind") == "step"]
