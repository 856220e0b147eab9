"""The contract of a controller: released values in, settings of the clipping rule out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from dpclip.clipping.control.context import Context
from dpclip.clipping.control.summary import Summary
from dpclip.clipping.state import Stateful
from dpclip.registry import Registry
from dpclip.released import Released


@dataclass(frozen=True)
class ControllerSettings:
    """What the rule's settings say to a controller.

    Attributes:
        seed: of the controller's own random numbers, which protect nothing.
        policy: file of networks to begin with.
        reward: what it is rewarded for: "loss", "signal" or "both".
    """

    seed: int = 0
    policy: Path | None = None
    reward: str = "both"


class Controller(Stateful, ABC):
    """Chooses, every few steps, how far the rule departs from its analytic settings.

    An action is a tensor [K, A] in [-1, 1]: for each of the K groups, how far its threshold lies
    from the rule's own
    (0: not at all; 1: as far up as may be), how much more than its share of the noise budget it
    gets, its learning rate and, in runs that choose their noise, a fourth column for that, whose
    mean over the groups counts. A new controller is one file and one line in `control/__init__.py`.
    All of its state follows from released values.
    """

    name: ClassVar[str]
    tracks: ClassVar[bool] = True
    """Whether thresholds follow the released quantiles (where the mode has them); otherwise they
    stay as they began.
    """

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


CONTROLLERS: Registry[Controller] = Registry("controller", "dpclip.controllers")
"""Makers of controllers of `ControllerSettings`."""
