"""Randomly initialised models and batches, one a row of the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Case:
    """A model, a batch of B rows, and one loss a row."""

    model: nn.Module
    batch: Batch
    losses: Callable[[nn.Module, Batch], Tensor]


def gpt2(tied: bool = True, **shape: int) -> nn.Module:
    """GPT-2 without dropout, so that all engines compute the same thing."""
    config = GPT2Config(
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        tie_word_embeddings=tied,
        **shape,
    )
    return GPT2LMHeadModel(config)


def token_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy of each row; position ids have a batch dimension because Opacus
    needs one.
    """
    ids, targets = batch
    positions = torch.arange(ids.shape[1]).repeat(len(ids), 1)
    logits = model(ids, position_ids=positions).logits
    flat = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none"
    )
    return flat.view(targets.shape).mean(1)


def class_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Cross entropy of each row."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def token_batch(rows: int, vocabulary: int, length: int = 128) -> Batch:
    """Few tokens are frequent, as in text, so rows look the same embedding up again and again."""
    ids = (torch.rand(rows, length + 1) ** 3 * vocabulary).long()
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


class Residual(nn.Module):
    """Pre-activation block with group norm."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels_in), nn.GroupNorm(8, channels_out)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        changes = channels_in != channels_out or stride > 1
        self.shortcut = (
            nn.Conv2d(channels_in, channels_out, 1, stride, bias=False) if changes else None
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(h)
        return kept + self.conv2(F.relu(self.norm2(self.conv1(h))))


class WideResNet(nn.Module):
    """WideResNet-16-4 for 3 x 32 x 32 (Zagoruyko and Komodakis 2016), group norm for batch norm."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        blocks, channels = [], 16
        self.stem = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        for width, stride in ((64, 1), (128, 2), (256, 2)):
            blocks += [Residual(channels, width, stride), Residual(width, width, 1)]
            channels = width
        self.blocks, self.norm, self.head = (
            nn.Sequential(*blocks),
            nn.GroupNorm(8, channels),
            nn.Linear(channels, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


class Recurrent(nn.Module):
    """Embedding, LSTM, linear head on the last state. `lstm` may be nn.LSTM or Opacus' DPLSTM."""

    def __init__(self, lstm: type[nn.Module] = nn.LSTM) -> None:
        super().__init__()
        self.table, self.lstm, self.head = (
            nn.Embedding(10_000, 100),
            lstm(100, 128, batch_first=True),
            nn.Linear(128, 2),
        )

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.table(ids))[0][:, -1])


def build(name: str, rows: int | None = None, lstm: type[nn.Module] = nn.LSTM) -> Case:
    """The case of that name, the same weights and data every time.

    Args:
        name: one of NAMES.
        rows: batch size, or the default of the table.
        lstm: the recurrent layer of "lstm".
    """
    torch.manual_seed(0)
    rows = rows or ROWS[name]
    if name.startswith("small GPT-2"):
        model = gpt2(
            "untied" not in name, n_layer=4, n_embd=256, n_head=4, vocab_size=8192, n_positions=128
        )
        return Case(model, token_batch(rows, 8192), token_losses)
    if name.startswith("GPT-2 124M"):
        model = gpt2()
        if "LoRA" in name:
            lora = LoraConfig(
                r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["c_attn"], fan_in_fan_out=True
            )
            model = get_peft_model(model, lora)
        return Case(model, token_batch(rows, 50257), token_losses)
    if name == "MLP":
        layers = [
            nn.Linear(784, 1024),
            nn.ReLU(),
            nn.Linear(1024, 1024),
            nn.ReLU(),
            nn.Linear(1024, 10),
        ]
        return Case(
            nn.Sequential(*layers),
            (torch.randn(rows, 784), torch.randint(10, (rows,))),
            class_losses,
        )
    if name == "WRN-16-4":
        return Case(
            WideResNet(), (torch.randn(rows, 3, 32, 32), torch.randint(10, (rows,))), class_losses
        )
    if name == "LSTM":
        ids = (torch.rand(rows, 64) ** 3 * 10_000).long()
        return Case(Recurrent(lstm), (ids, torch.randint(2, (rows,))), class_losses)
    raise KeyError(name)


ROWS = {
    "small GPT-2": 16,
    "small GPT-2 untied": 16,
    "GPT-2 124M": 2,
    "GPT-2 124M LoRA": 2,
    "MLP": 256,
    "WRN-16-4": 16,
    "LSTM": 64,
}
NAMES = tuple(ROWS)
