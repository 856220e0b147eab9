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
        budget_left: part of the budget that is not spent.
        sizes: elements of each group, shape [K].
        executed: the action in force, [K, A].
        interval: steps from one decision to the next.
        noise_level: norm that the noise of a released gradient has, over the joint threshold.
        kinds: what most of each group's weights are.
        moved: how far the last update moved each group (`Movement.lengths`); empty before there was
            one.
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
        """Part of the run that is done."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0
