"""Which head a task puts on a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelHead:
    """What a task asks of a model.

    Attributes:
        auto_class: one of transformers' AutoModelFor… classes.
        adapter_task: peft's name for the task ("CAUSAL_LM", "SEQ_CLS", …), for adapters.
        config: entries of the model's configuration (its classes, say).
    """

    auto_class: Any
    adapter_task: str
    config: Mapping[str, Any] = field(default_factory=dict)
