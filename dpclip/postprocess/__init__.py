"""Free transforms of the released gradient, once per logical step."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from dpclip.released import Released

__all__ = ["PostProcessor"]


class PostProcessor(Protocol):
    """Maps a released mean gradient to another; by post-processing it costs no privacy."""

    def apply(self, gradient: Released[list[Tensor]]) -> Released[list[Tensor]]:
        """One tensor a parameter, in, and one out."""
        ...
