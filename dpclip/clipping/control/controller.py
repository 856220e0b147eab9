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
        policy: file of networks to begin with; None for fresh ones.
        reward: what it is rewarded for: "loss", "signal" or "both".
    """

    seed: int = 0
    policy: Path | None = None
    reward: str = "both"


class Controller(Stateful, ABC):
    """Chooses, every few steps, how far the rule departs from its analytic settings.

    An action is a tensor [K, A] in [-1, 1]. For each of the K groups its columns are how far the
    threshold lies from the rule's own (0: not at all; 1: as far up as may be), how much more than
    its share of the noise budget the group gets, its learning rate and, in runs that choose their
    noise, a fourth column for that, whose mean over the groups counts. A new controller is one file
    and one line in `control/__init__.py`. All of its state follows from released values.
    """

    name: ClassVar[str]
    tracks: ClassVar[bool] = True
    """Whether thresholds follow the released quantiles, where the mode has them.

    Otherwise they stay as they began.
    """

    @classmethod
    def made(cls, settings: ControllerSettings) -> Controller:
        """Make one as the clipping rule's settings say; they say nothing unless overridden.

        Args:
            settings: of the rule.
        """
        return cls()

    def begin_with(self, policy: Path) -> None:
        """Begin with networks that the rule has chosen; called before `start`, or not at all.

        Args:
            policy: file of networks, as `SoftActorCritic.policy` makes them.
        """
        return None

    def start(self, groups: int, actions: int) -> None:
        """Begin afresh for a run of this shape, and forget everything.

        Args:
            groups: K, what the controller sees apart.
            actions: A, columns of an action: 3, or 4 where the noise is chosen, too.
        """
        return None

    @abstractmethod
    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        """Choose the next action.

        Args:
            seen: the steps since the last decision, made of what they released.
            context: what is public anyway.

        Returns:
            the action that is wanted, [K, A]; the rule clamps it to [-1, 1] and limits its change.
        """

    def executed(self, action: Tensor) -> None:
        """Learn what was made of the action, whose change from one decision to the next is limited.

        Args:
            action: the action now in force, [K, A], in [-1, 1].
        """
        return None

    def describe(self) -> dict[str, Any]:
        """Return the controller's name and settings for the statement, as JSON."""
        return {"controller": self.name}


CONTROLLERS: Registry[Controller] = Registry("controller", "dpclip.controllers")
"""Classes of controllers; `Controller.made` makes one."""
