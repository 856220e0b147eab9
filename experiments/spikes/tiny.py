"""A tiny GPT-2 on bytes of WikiText-2, with weights of few bits if wanted."""

from __future__ import annotations

import gzip
import statistics
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT = 64


@cache
def text(folder: Path, part: str) -> Tensor:
    """The bytes of train.txt.gz or valid.txt.gz, int64."""
    raw = gzip.decompress((folder / f"{part}.txt.gz").read_bytes())
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).long()


def windows(source: Tensor, count: int, seed: int) -> Tensor:
    """Windows of CONTEXT + 1 bytes from random places, [count, CONTEXT + 1]."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(source) - CONTEXT, (count, 1), generator=draw)
    return source[starts + torch.arange(CONTEXT + 1)]


def tiny_gpt(seed: int, width: int = 64, bits: int | None = None) -> nn.Module:
    """Two layers, two heads, from random weights; 120,576 parameters at width 64."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=256,
        n_positions=CONTEXT,
        n_embd=width,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.1,
    )
    model = GPT2LMHeadModel(config)
    if bits is not None:
        for name, module in model.named_modules():
            if name.endswith(("c_attn", "c_proj", "c_fc")):
                parametrize.register_parametrization(module, "weight", Rounded(bits))
    return model


class Rounded(nn.Module):
    """Weights rounded to symmetric integers, a scale for each output; the gradient passes straight
    through.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.most = 2 ** (bits - 1) - 1

    def forward(self, weight: Tensor) -> Tensor:  # [in, out], as GPT-2 has it
        scale = weight.detach().abs().amax(0, keepdim=True).clamp(min=1e-12) / self.most
        rounded = (weight.detach() / scale).round() * scale
        return weight + (rounded - weight).detach()


def loss_of(model: nn.Module, rows: Tensor) -> Tensor:
    """Mean negative log likelihood of the next byte, in nats."""
    logits = model(input_ids=rows[:, :-1]).logits
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def validation(model: nn.Module, rows: Tensor) -> float:
    """Over all windows, 64 at a time."""
    return statistics.fmean(float(loss_of(model, part)) for part in rows.split(64))
