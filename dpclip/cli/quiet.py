"""Keeps libraries from talking over the verbs that train."""

from __future__ import annotations

import os
import warnings


def quieten_libraries() -> None:
    """Before torch and transformers are imported; warnings of our own still show."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # an unreachable hub is reported once, by us
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings(
        "ignore", category=UserWarning, module=r"(torch|opacus|transformers|peft)\b.*"
    )
