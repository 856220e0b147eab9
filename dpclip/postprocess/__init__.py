"""Clippers of a batch's gradient: after a private step's release, or in any other loop.

What they make of a released gradient is free. A new one is one file and one line here.
"""

from __future__ import annotations

from dpclip.errors import InputError
from dpclip.postprocess.adagc import AdaGC as AdaGC
from dpclip.postprocess.agc import AGC as AGC
from dpclip.postprocess.autoclip import AutoClip as AutoClip
from dpclip.postprocess.by_norm import NormClipper as NormClipper
from dpclip.postprocess.clipper import CLIPPERS as CLIPPERS
from dpclip.postprocess.clipper import ClipReport as ClipReport
from dpclip.postprocess.clipper import GradientClipper as GradientClipper
from dpclip.postprocess.clipper import GradientStep as GradientStep
from dpclip.postprocess.fixed import FixedNorm as FixedNorm
from dpclip.postprocess.fixed import Normalized as Normalized
from dpclip.postprocess.spike_aware import SpikeAware as SpikeAware
from dpclip.postprocess.stable_spam import StableSPAM as StableSPAM
from dpclip.postprocess.zclip import ZClip as ZClip

CLIPPERS.alias("quirks", "match_published")  # as runs before version 0.2 spelt it


def make_postprocessors(text: str) -> list[GradientClipper]:
    """Build clippers from `NAME[:key=value,…][+NAME…]`.

    Args:
        text: names and settings; "none" or "" for no clippers.

    Returns:
        the clippers, in the order in which they are applied.

    Raises:
        InputError: unknown name, setting or value, or "none" beside others.
    """
    if text in ("", "none"):
        return []
    parts = text.split("+")
    if "none" in parts:
        raise InputError(f"--postprocess {text!r}: none stands alone")
    return [CLIPPERS.make(part) for part in parts]
