"""Train and fine-tune models under differential privacy, and prove it afterwards."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpclip import clipping, losses, optim, postprocess
    from dpclip.assembly import make_private
    from dpclip.errors import BadInput, BudgetExhausted
    from dpclip.guarantee import Guarantee
    from dpclip.plan import Plan, make_plan
    from dpclip.preflight import check_model
    from dpclip.private import PrivateTraining

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "BudgetExhausted",
    "Guarantee",
    "Plan",
    "PrivateTraining",
    "check_model",
    "clipping",
    "losses",
    "make_plan",
    "make_private",
    "optim",
    "postprocess",
]

# Where each name lives. Loaded on first use, so that verbs which need no torch start fast.
_HOMES = {
    "BadInput": "dpclip.errors",
    "BudgetExhausted": "dpclip.errors",
    "Guarantee": "dpclip.guarantee",
    "Plan": "dpclip.plan",
    "PrivateTraining": "dpclip.private",
    "check_model": "dpclip.preflight",
    "make_plan": "dpclip.plan",
    "make_private": "dpclip.assembly",
}


def __getattr__(name: str) -> Any:
    if name in ("clipping", "losses", "optim", "postprocess"):
        return importlib.import_module(f"dpclip.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dpclip' has no attribute {name!r}")
