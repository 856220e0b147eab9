"""Right loops over models and batches of many kinds are accepted as worst-case, under a
secret key.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate
from transformers import (
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from dpclip import losses as row_losses
from dpclip.errors import InputError
from tests.support.loop_trial import Losses, Net, Releases, begin, releases, rows, squared, train

__all__ = ["releases"]

WORDS, LENGTH = 40, 12
Pair = namedtuple("Pair", "x y")


@dataclass
class Held:
    """A batch with named fields."""

    x: Tensor
    y: Tensor


def texts(labels: Callable[[int, Tensor], Tensor]) -> list[dict[str, Tensor]]:
    """Texts of several lengths, padded to one."""
    generator, found = torch.Generator().manual_seed(0), []
    for i in range(12):
        ids = torch.randint(3, WORDS, (LENGTH,), generator=generator)
        mask = (torch.arange(LENGTH) < 4 + i % 8).long()
        found.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "labels": labels(i, ids.masked_fill(mask == 0, -100)),
            }
        )
    return found


def encoded(batch: list[Any]) -> BatchEncoding:
    return BatchEncoding(default_collate(batch))


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=1, n_head=2, n_positions=16, **changes)
    )


def recomputed() -> nn.Module:
    model = gpt2()
    # by its later name
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable()
    return model


def adapted() -> nn.Module:
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_dropout=0.1)
    return get_peft_model(gpt2(), config)


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=WORDS,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        )
    )


def t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=WORDS,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
    )


class Recurrent(nn.Module):
    """An LSTM with dropout between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = (
            nn.LSTM(4, 5, num_layers=2, dropout=0.1, batch_first=True),
            nn.Linear(5, 1),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.cells(inputs)[0][:, -1])


class Attending(nn.Module):
    """Attention with the time first or second."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.start, self.head, self.batch_first = nn.Linear(4, 8), nn.Linear(8, 1), batch_first
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=batch_first)

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.start(inputs if self.batch_first else inputs.transpose(0, 1))
        found = self.attention(found, found, found)[0]
        return self.head(found[:, 0] if self.batch_first else found[0])


def convolving() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def series() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(6, 4, generator=generator), torch.randn(1, generator=generator))
        for _ in range(12)
    ]


def pictures() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(3, 8, 8, generator=generator), torch.tensor(i % 3)) for i in range(12)]


def classes(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(
        model(batch[0]), batch[1], reduction="none", weight=torch.tensor([1.0, 2.0, 3.0])
    )


def tokens(model: Any, batch: Any) -> Tensor:
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    return losses.sum(1) / LENGTH


def same(_: int, ids: Tensor) -> Tensor:
    return ids


def kind(i: int, _: Tensor) -> Tensor:
    return torch.tensor(i % 2)


def target(_: int, ids: Tensor) -> Tensor:
    return ids[:6]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], Losses]] = {
    "gpt2": (gpt2, lambda: texts(same), row_losses.causal_lm),
    "gpt2, by hand": (gpt2, lambda: texts(same), tokens),
    "gpt2, recomputed": (recomputed, lambda: texts(same), row_losses.causal_lm),
    "gpt2, bfloat16": (lambda: gpt2().bfloat16(), lambda: texts(same), row_losses.causal_lm),
    "gpt2, adapters": (adapted, lambda: texts(same), row_losses.causal_lm),
    "bert": (bert, lambda: texts(kind), row_losses.classification),
    "t5": (t5, lambda: texts(target), row_losses.seq2seq),
    "lstm": (Recurrent, series, squared),
    "attention": (lambda: Attending(True), series, squared),
    "attention, time first": (lambda: Attending(False), series, squared),
    "convolutions": (convolving, pictures, classes),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_accepted(name: str, releases: Releases) -> None:
    make, data, losses = MODELS[name]
    model = make().train()
    private = begin(
        model, data(), steps=2, collate_fn=encoded if "input_ids" in data()[0] else default_collate
    )
    train(private, model, losses)
    assert private.guarantee().kind == "worst-case"
    assert len(releases.sums) == 2
    private.close()


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (lambda model, batch: model(**batch).loss, "it takes one loss a row.*causal_lm"),
        (
            lambda model, batch: model(**batch).loss.expand(len(batch["labels"])),
            "changes with the other rows",
        ),
    ],
)
def test_the_loss_of_a_hugging_face_model_is_refused(
    losses: Losses, message: str, releases: Releases
) -> None:
    model = gpt2(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    releases.refused(
        InputError, message, model, lambda private: train(private, model, losses), texts(same)
    )


def named(found: list[Any]) -> dict[str, Tensor]:
    return dict(zip("xy", default_collate(found), strict=True))


BATCHES: dict[str, tuple[Callable[[list[Any]], Any], Callable[[Any], Any]]] = {
    "tuple": (lambda found: tuple(default_collate(found)), lambda batch: batch),
    "named tuple": (lambda found: Pair(*default_collate(found)), lambda batch: (batch.x, batch.y)),
    "dict": (
        lambda found: dict(zip("xy", default_collate(found), strict=True)),
        lambda batch: (batch["x"], batch["y"]),
    ),
    "encoding": (lambda found: BatchEncoding(named(found)), lambda batch: (batch["x"], batch["y"])),
    "data class": (lambda found: Held(*default_collate(found)), lambda batch: (batch.x, batch.y)),
    "list of rows": (list, default_collate),
    "arrays": (
        lambda found: [tensor.numpy() for tensor in default_collate(found)],
        lambda batch: [torch.from_numpy(array) for array in batch],
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_accepted(name: str, releases: Releases) -> None:
    collate, taken = BATCHES[name]
    model = Net()
    private = begin(model, rows(), collate_fn=collate)
    train(private, model, lambda m, batch: squared(m, taken(batch)))
    assert private.guarantee().kind == "worst-case"
    assert len(releases.sums) == 1
    private.close()


def test_a_batch_may_be_moved(releases: Releases) -> None:
    """What is watched may be another object, with the same rows in another dtype."""
    model = Net().double()
    private = begin(model, rows())
    for batch in private.batches():
        moved = [tensor.double() for tensor in batch]
        with private.microbatch(moved), torch.autocast("cpu", enabled=False):
            private.backward(squared(model, moved))
        private.step()
    assert len(releases.sums) == 1
    private.close()
