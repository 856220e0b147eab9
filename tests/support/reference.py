"""Slow oracles: per-sample gradients by one-at-a-time autograd in float64, and tiny models to try
them on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.utils import logging

logging.set_verbosity_error()

VOCABULARY = 61
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
_IDS = {"bos_token_id": 1, "eos_token_id": 2}


def gpt2(tie: bool = True, width: int = 16, **extra: Any) -> nn.Module:
    """A tiny GPT-2 with default position ids."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=width,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=tie,
        **_IDS,
        **extra,
    )
    return GPT2LMHeadModel(config)


def llama(tie: bool = True) -> nn.Module:
    """A tiny Llama."""
    return LlamaForCausalLM(LlamaConfig(**_COMMON, tie_word_embeddings=tie, **_IDS))


def opt(tie: bool = True) -> nn.Module:
    """A tiny OPT: integer positional arguments, flattened activations."""
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
        dropout=0.0,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
        tie_word_embeddings=tie,
        **_IDS,
    )
    return OPTForCausalLM(config)


def gemma(tie: bool = True) -> nn.Module:
    """A tiny Gemma: a scaled embedding with a buffer."""
    return GemmaForCausalLM(
        GemmaConfig(**_COMMON, head_dim=8, num_key_value_heads=1, tie_word_embeddings=tie, **_IDS)
    )


def bert() -> nn.Module:
    """A tiny BERT classifier."""
    return BertForSequenceClassification(BertConfig(**_COMMON, **_NO_DROPOUT))


def lora(base: nn.Module, targets: list[str]) -> nn.Module:
    """Adapters of rank 2, with both factors away from zero so that both have gradients."""
    transposed = isinstance(base, GPT2LMHeadModel)
    model = get_peft_model(
        base, LoraConfig(r=2, lora_alpha=4, target_modules=targets, fan_in_fan_out=transposed)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2 tied": lambda: gpt2(True),
    "gpt2 untied": lambda: gpt2(False),
    "llama tied": lambda: llama(True),
    "llama untied": lambda: llama(False),
    "opt tied": lambda: opt(True),
    "opt untied": lambda: opt(False),
    "gemma tied": lambda: gemma(True),
    "gemma untied": lambda: gemma(False),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_COMMON, num_key_value_heads=2, **_IDS)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_COMMON, **_IDS)),
    "bert": bert,
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**_COMMON, **_NO_DROPOUT)),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=VOCABULARY,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=32,
            max_position_embeddings=32,
        )
    ),
    "gpt2 classifier": lambda: GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=2,
            pad_token_id=0,
            **_IDS,
        )
    ),
    "gpt2 lora": lambda: lora(gpt2(True), ["c_attn", "c_proj"]),
    "llama lora": lambda: lora(llama(True), ["q_proj", "v_proj"]),
    "opt lora": lambda: lora(opt(True), ["q_proj", "v_proj"]),
    "gemma lora": lambda: lora(gemma(True), ["q_proj", "v_proj"]),
    "bert lora": lambda: lora(bert(), ["query", "value"]),
}


# transformers computes these models' RMSNorm and rotary embeddings in float32, whatever the model's
# dtype.
SINGLE_INSIDE = ("llama", "gemma", "qwen2", "neox")


def tolerance(name: str) -> float:
    """How far a backend may be from one-at-a-time autograd with the model in float64."""
    return 2e-7 if name.startswith(SINGLE_INSIDE) else 1e-12


def batch(rows: int, length: int = 9, seed: int = 0) -> dict[str, Tensor]:
    """Random token rows of which every second one ends in padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1::2, length - 2 :] = 0
    return {
        "input_ids": torch.randint(3, VOCABULARY, (rows, length), generator=generator),
        "attention_mask": mask,
        "labels": torch.arange(rows) % 2,
    }


def losses(model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
    """One loss a row: mean over the row's own tokens, or cross entropy for classifiers."""
    logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    if logits.dim() == 2:
        return F.cross_entropy(logits, rows["labels"], reduction="none")
    targets = rows["input_ids"][:, 1:]
    flat = F.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), targets.reshape(-1), reduction="none"
    )
    counted = rows["attention_mask"][:, 1:]
    return (flat.view(targets.shape) * counted).sum(1) / counted.sum(1)


def row(rows: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """A batch of one."""
    return {name: tensor[index : index + 1] for name, tensor in rows.items()}


def one_at_a_time(
    model: nn.Module, rows: dict[str, Tensor], parameters: list[nn.Parameter]
) -> Iterator[list[Tensor]]:
    """The gradient of each row alone, by plain autograd."""
    for index in range(len(rows["input_ids"])):
        found = torch.autograd.grad(
            losses(model, row(rows, index)).sum(), parameters, allow_unused=True
        )
        yield [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        ]


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    """L2 distance of two lists of tensors, in float64."""
    gaps = [(a.double() - b.double()).square().sum() for a, b in zip(left, right, strict=True)]
    return float(torch.stack(gaps).sum().sqrt())


def length(tensors: list[Tensor]) -> float:
    """L2 norm of a list of tensors, in float64."""
    return float(torch.stack([t.double().square().sum() for t in tensors]).sum().sqrt())
