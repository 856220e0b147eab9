"""Clippers of a batch's gradient: free transforms of what a private step released, drop-ins for any other loop.

A new one is one file and one line here.
"""

from __future__ import annotations

from dpclip.errors import BadInput
from dpclip.postprocess.adagc import AdaGC
from dpclip.postprocess.agc import AGC
from dpclip.postprocess.autoclip import AutoClip
from dpclip.postprocess.by_norm import NormClipper
from dpclip.postprocess.clipper import GradientClipper, Report, Seen
from dpclip.postprocess.fixed import FixedNorm, Normalized
from dpclip.postprocess.spike_aware import SpikeAware
from dpclip.postprocess.stable_spam import StableSPAM
from dpclip.postprocess.zclip import ZClip
from dpclip.settings_text import made_from

__all__ = [
    "AGC",
    "AdaGC",
    "AutoClip",
    "FixedNorm",
    "GradientClipper",
    "NormClipper",
    "Normalized",
    "Report",
    "Seen",
    "SpikeAware",
    "StableSPAM",
    "ZClip",
    "make_postprocessors",
    "postprocessor_names",
    "register",
]

_CLIPPERS: dict[str, type[GradientClipper]] = {}


def register(clipper: type[GradientClipper]) -> type[GradientClipper]:
    """Make a clipper available by its name, here and to `--postprocess`."""
    _CLIPPERS[clipper.name] = clipper
    return clipper


for _clipper in (FixedNorm, Normalized, AutoClip, ZClip, AdaGC, AGC, SpikeAware, StableSPAM):
    register(_clipper)


def postprocessor_names() -> list[str]:
    """The names that `make_postprocessors` knows."""
    return sorted(_CLIPPERS)


def make_postprocessors(text: str) -> list[GradientClipper]:
    """Build clippers from `NAME[:key=value,…][+NAME…]`, in the order in which they are applied; none from "none".

    Raises:
        BadInput: unknown name, setting or value.
    """
    if text in ("", "none"):
        return []
    parts = text.split("+")
    if "none" in parts:
        raise BadInput(f"--postprocess {text!r}: none stands alone")
    return [made_from(part, _CLIPPERS, "post-processor") for part in parts]
