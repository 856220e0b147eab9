"""Loading a Hugging Face model and its tokenizer, from a folder, a hub name or the package
itself.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from dpclip.errors import InputError
from dpclip.models import builtin_model_path
from dpclip.models.heads import ModelHead


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for training.

    Attributes:
        model: the module, in float32.
        tokenizer: its tokenizer, with a padding token.
        name: what the user called it.
        context: most tokens a record can have.
        lora_rank: rank of the adapters, or None for full fine-tuning.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    context: int
    lora_rank: int | None = None


def load_model(
    name: str,
    head: ModelHead,
    *,
    tokenizer: str | None = None,
    from_scratch: bool = False,
    lora: int | None = None,
    device: str = "cpu",
) -> LoadedModel:
    """Load (or, from scratch, initialise) a model for a task.

    Args:
        name: "builtin", a local folder, or a hub name.
        head: what the task asks of the model.
        tokenizer: another folder or hub name for the tokenizer.
        from_scratch: build the architecture of the folder's config.json with random weights.
        lora: train adapters of this rank instead of all weights.
        device: where the model computes: "cpu", "cuda", …, or "auto" for a GPU if there is one.

    Raises:
        InputError: the model or tokenizer cannot be read; LoRA does not know the architecture.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    source = str(builtin_model_path()) if name == "builtin" else name
    text = _load_tokenizer(tokenizer or source, name)
    model = _load_weights(source, name, head, from_scratch)
    if len(text) > model.get_input_embeddings().num_embeddings:
        raise InputError(
            f"the tokenizer of {tokenizer or name!r} has {len(text)} tokens, the model {name!r} "
            f"only {model.get_input_embeddings().num_embeddings}: they do not belong together"
        )
    model.config.pad_token_id = text.pad_token_id
    if lora is not None:
        model = _add_adapters(model, head, lora, name)
    context = getattr(model.config, "max_position_embeddings", None) or 1024
    return LoadedModel(model.to(find_device(device)), text, name, int(context), lora)


def find_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one.

    Raises:
        InputError: torch cannot use it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {name!r} cannot be used: {str(error).splitlines()[0]}; leave it out, or "
            "give cpu"
        ) from error


def _load_weights(source: str, name: str, head: ModelHead, from_scratch: bool) -> Any:
    extra = dict(head.config)
    try:
        if from_scratch:
            config = AutoConfig.from_pretrained(source, **extra)
            return head.auto_class.from_config(config, dtype=torch.float32)
        return head.auto_class.from_pretrained(source, dtype=torch.float32, **extra)
    except Exception as error:
        raise InputError(_cannot_load("model", name, source, error)) from error


def _load_tokenizer(source: str, name: str) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:
        raise InputError(_cannot_load("tokenizer of", name, source, error)) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise InputError(
            f"the tokenizer of {name!r} has no padding and no end token: add one to its folder"
        )
    return tokenizer


def _cannot_load(what: str, name: str, source: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if Path(source).is_dir():
        return (
            f"cannot read the {what} {name!r}: {reason[:200]}; the folder needs config.json, "
            "weights and a tokenizer"
        )
    return (
        f"cannot load the {what} {name!r}: there is no such folder here and the hub could not give "
        f"it ({reason[:160]}); check the name, or give a local folder, or builtin"
    )


def _add_adapters(model: Any, head: ModelHead, rank: int, name: str) -> nn.Module:
    from peft import LoraConfig, TaskType, get_peft_model

    kind = TaskType(head.adapter_task)
    if rank < 1:
        raise InputError(f"LoRA rank {rank}: at least 1 is needed; 8 is common")
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, task_type=kind, target_modules="all-linear"
    )
    try:
        with warnings.catch_warnings():
            # peft sets it right for GPT-2 itself
            warnings.filterwarnings("ignore", message="fan_in_fan_out")
            return get_peft_model(model, settings)
    except ValueError as error:
        raise InputError(
            f"LoRA cannot be added to {name!r}: {str(error).splitlines()[0][:200]}; "
            "train all weights by leaving out --lora"
        ) from error


def save_model(loaded: LoadedModel, folder: Path) -> None:
    """Write a standard Hugging Face folder; adapters are merged into the weights they adapt."""
    model: Any = loaded.model
    if loaded.lora_rank is not None:
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
