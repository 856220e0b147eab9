"""Optimizers that clip inside their step: from the theory of clipping.

They train with and without privacy. In a private run they only see the released gradient, so what
they do with it costs no privacy.
"""

from __future__ import annotations

from dpclip.optim.adaptive_coordinates import ClipAdaGrad, ClipAdam
from dpclip.optim.adaptive_norm import ClipAdaGradNorm, ClipAdamNorm
from dpclip.optim.descent import ClippedSGD, NormalizedSGD
from dpclip.optim.spam import SPAM
from dpclip.optim.stable_spam import StableSPAM

__all__ = [
    "SPAM",
    "ClipAdaGrad",
    "ClipAdaGradNorm",
    "ClipAdam",
    "ClipAdamNorm",
    "ClippedSGD",
    "NormalizedSGD",
    "StableSPAM",
]
