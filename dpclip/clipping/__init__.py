"""Clipping rules and their registry. A new rule is one file and one line here."""

from __future__ import annotations

import inspect
from typing import Any

from dpclip.clipping.adaclip import AdaClip
from dpclip.clipping.automatic import Automatic, AutomaticV
from dpclip.clipping.control.rule import Controlled
from dpclip.clipping.error_feedback import ErrorFeedback
from dpclip.clipping.flat import Flat
from dpclip.clipping.geoclip import GeoClip
from dpclip.clipping.global_scaling import Global
from dpclip.clipping.histogram import HistogramError, HistogramQuantile
from dpclip.clipping.normalised import Normalised
from dpclip.clipping.per_group import PerBlock, PerGroup, PerLayer, PerTensor
from dpclip.clipping.psac import Psac
from dpclip.clipping.quantile import PerLayerQuantile, Quantile
from dpclip.clipping.rule import ClippingRule, Gradients, RunShape, SideQuery, StepRelease
from dpclip.clipping.unclipped import Unclipped
from dpclip.clipping.value import Value
from dpclip.errors import BadInput

__all__ = [
    "AdaClip",
    "Automatic",
    "AutomaticV",
    "ClippingRule",
    "Controlled",
    "ErrorFeedback",
    "Flat",
    "GeoClip",
    "Global",
    "Gradients",
    "HistogramError",
    "HistogramQuantile",
    "Normalised",
    "PerBlock",
    "PerGroup",
    "PerLayer",
    "PerLayerQuantile",
    "PerTensor",
    "Psac",
    "Quantile",
    "RunShape",
    "SideQuery",
    "StepRelease",
    "Unclipped",
    "Value",
    "make_rule",
    "register",
    "rule_names",
]

_RULES: dict[str, type[ClippingRule]] = {}


def register(rule: type[ClippingRule]) -> type[ClippingRule]:
    """Make a rule available by its name, here and to `--clipping`."""
    _RULES[rule.name] = rule
    return rule


for _rule in (
    Flat, PerLayer, PerBlock, PerTensor, Automatic, AutomaticV, Normalised, Psac, Global,
    Quantile, PerLayerQuantile, HistogramQuantile, HistogramError, Value, AdaClip, GeoClip, ErrorFeedback, Controlled,
    Unclipped,
):  # fmt: skip
    register(_rule)


def rule_names() -> list[str]:
    """The names that `make_rule` knows."""
    return sorted(_RULES)


def make_rule(text: str) -> ClippingRule:
    """Build a rule from `NAME` or `NAME:key=value,key=value`.

    Raises:
        BadInput: unknown rule or setting (the known ones are listed), or a value that is not a number.
    """
    name, _, settings = text.partition(":")
    if name not in _RULES:
        raise BadInput(f"clipping rule {name!r} is unknown: choose one of {', '.join(rule_names())}")
    rule = _RULES[name]
    kinds = {key: _KINDS.get(p.annotation) for key, p in inspect.signature(rule).parameters.items()}
    known = [key for key, kind in kinds.items() if kind is not None]
    values: dict[str, Any] = {}
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        kind = kinds.get(key)
        if kind is None:
            raise BadInput(f"clipping rule {name!r} has no setting {key!r}: it knows {', '.join(known) or 'none'}")
        try:
            values[key] = kind(value)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise BadInput(f"clipping setting {setting!r}: {value!r} is not {wanted}") from None
    return rule(**values)


_KINDS: dict[str, type] = {
    "float": float,
    "float | None": float,
    "int": int,
    "str": str,
}  # by annotation; other settings are for Python
