"""The contract of a controller: released values in, settings of the clipping rule out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from dpclip.clipping.control.observation import Summary
from dpclip.clipping.rule import ParameterKind
from dpclip.clipping.state import Stateful
from dpclip.released import Released

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
        moved: how far the last update moved each group (`Movement.lengths`); empty before there was one.
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


class Controller(Stateful, ABC):
    """Chooses, every few steps, how far the rule departs from its analytic settings.

    An action is a tensor [K, A] in [-1, 1]: for each of the K groups, how far its threshold lies from the rule's own
    (0: not at all; 1: as far up as may be), how much more than its share of the noise budget it gets, its learning
    rate and, in runs that choose their noise, a fourth column for that, whose mean over the groups counts. A new
    controller is one file and one line in
    `control/__init__.py`. All of its state follows from released values.
    """

    name: ClassVar[str]
    tracks: ClassVar[bool] = True
    """Whether thresholds follow the released quantiles (where the mode has them); otherwise they stay as they began."""

    def begin_with(self, policy: Path) -> None:
        """Told before `start` of networks to begin with, by a rule that was given none."""
        return None

    def start(self, groups: int, actions: int) -> None:
        """Told once how many groups and how many columns there are; forgets everything."""
        return None

    @abstractmethod
    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        """The next action, [K, A].

        Args:
            seen: the steps since the last decision, made of what they released.
            context: what is public anyway.
        """

    def executed(self, action: Tensor) -> None:
        """What was made of the action: changes are limited a decision."""
        return None

    def describe(self) -> dict[str, Any]:
        """For the statement."""
        return {"controller": self.name}
