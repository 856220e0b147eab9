"""Clipping rules and their registry. A new rule is one file and one line here."""

from __future__ import annotations

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
from dpclip.clipping.rule import ClippingRule, Gradients, ParameterKind, RunShape, SideQuery, StepRelease
from dpclip.clipping.unclipped import Unclipped
from dpclip.clipping.value import Value
from dpclip.settings_text import made_from

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
    "ParameterKind",
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
    return made_from(text, _RULES, "clipping rule")
