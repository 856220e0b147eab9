"""Clipping rules. A new rule is one file and one line here."""

from __future__ import annotations

from dpclip.clipping.adaclip import AdaClip as AdaClip
from dpclip.clipping.automatic import Automatic as Automatic
from dpclip.clipping.automatic import AutomaticV as AutomaticV
from dpclip.clipping.control.rule import ControlledClipping as ControlledClipping
from dpclip.clipping.error_feedback import ErrorFeedback as ErrorFeedback
from dpclip.clipping.flat import Flat as Flat
from dpclip.clipping.geoclip import GeoClip as GeoClip
from dpclip.clipping.global_scaling import Global as Global
from dpclip.clipping.histogram import HistogramError as HistogramError
from dpclip.clipping.histogram import HistogramQuantile as HistogramQuantile
from dpclip.clipping.normalized import Normalized as Normalized
from dpclip.clipping.per_group import PerBlock as PerBlock
from dpclip.clipping.per_group import PerGroup as PerGroup
from dpclip.clipping.per_group import PerLayer as PerLayer
from dpclip.clipping.per_group import PerTensor as PerTensor
from dpclip.clipping.psac import Psac as Psac
from dpclip.clipping.quantile import PerLayerQuantile as PerLayerQuantile
from dpclip.clipping.quantile import Quantile as Quantile
from dpclip.clipping.rule import RULES as RULES
from dpclip.clipping.rule import ClippingRule as ClippingRule
from dpclip.clipping.rule import Gradients as Gradients
from dpclip.clipping.rule import ParameterKind as ParameterKind
from dpclip.clipping.rule import RunShape as RunShape
from dpclip.clipping.unclipped import Unclipped as Unclipped
from dpclip.clipping.value import Value as Value
from dpclip.released import SideQuery as SideQuery
from dpclip.released import StepRelease as StepRelease

RULES.alias("normalised", "normalized")  # as runs before version 0.2 spelt it


def make_rule(text: str) -> ClippingRule:
    """Build a rule from `NAME` or `NAME:key=value,key=value`.

    Args:
        text: a name of `RULES` and settings of that rule, as on the command line.

    Raises:
        InputError: unknown rule or setting (the known ones are listed), or a value that is not a
            number.
    """
    return RULES.make(text)
