"""Where a step's sums meet those of other processes, after clipping and before the release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from dpclip.released import Sum

Sums = Mapping[str, Sum]
Sides = Mapping[str, Tensor]


class Reduction(Protocol):
    """Adds up what every process has of one logical step."""

    def __call__(self, sums: Sums, sides: Sides) -> tuple[Sums, Sides]:
        """The sums over all processes.

        Args:
            sums: this process's sum for each of the rule's factors, by name.
            sides: this process's sums of side statistics, by name, float64, each [m].
        """
        ...


def one_process(sums: Sums, sides: Sides) -> tuple[Sums, Sides]:
    """The identity: there is nobody to meet."""
    return sums, sides
