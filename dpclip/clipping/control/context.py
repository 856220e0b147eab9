"""What a controller may know besides released values, and what its actions are made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dpclip.clipping.rule import ParameterKind

THRESHOLD, ALLOCATION, RATE, NOISE = 0, 1, 2, 3
"""Columns of an action."""


@dataclass(frozen=True)
class Context:
    """What a controller may know besides released values; all of it public.

    Attributes:
        step: logical steps done.
        steps: planned steps, 0 if not known.
        budget_left: part of the budget that is not spent, 1 at the start.
        sizes: elements of each group, shape [K].
        executed: the action in force, [K, A].
        interval: steps from one decision to the next.
        noise_level: norm that the noise of a released gradient has, over the joint threshold.
        kinds: what the largest parameter of each group is, [K]; empty if not known.
        moved: how far the last update moved each group (`Movement.lengths`), [K]; empty before
            there was one.
    """

    step: int
    steps: int
    budget_left: float
    sizes: tuple[int, ...]
    executed: Tensor
    interval: int
    noise_level: float = 1.0
    kinds: tuple[ParameterKind, ...] = ()
    moved: tuple[float, ...] = ()

    @property
    def progress(self) -> float:
        """Part of the run that is done, in [0, 1]; 0 if the planned steps are not known."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0
