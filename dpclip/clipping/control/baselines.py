"""Controllers without learning, against which a learning one has to prove itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from dpclip.clipping.control.context import THRESHOLD, Context
from dpclip.clipping.control.controller import CONTROLLERS, Controller, ControllerSettings
from dpclip.clipping.control.summary import Summary
from dpclip.released import Released


@CONTROLLERS.register
class Constant(Controller):
    """Thresholds as they began, noise by the rule's allocation."""

    name: ClassVar[str] = "constant"
    tracks: ClassVar[bool] = False

    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        """Depart by nothing.

        Args:
            seen: unused.
            context: for the shape of an action.

        Returns:
            zeros, [K, A].
        """
        return torch.zeros_like(context.executed)


@CONTROLLERS.register
class FollowQuantile(Constant):
    """Thresholds at the released quantile of each group's norms.

    The analytic controller that others depart from.
    """

    name: ClassVar[str] = "quantile"
    tracks: ClassVar[bool] = True


@CONTROLLERS.register
class Random(Controller):
    """Uniform actions: what an agent does that has learned nothing and never will.

    Args:
        seed: of its own generator, which protects nothing.
    """

    name: ClassVar[str] = "random"

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    @classmethod
    def made(cls, settings: ControllerSettings) -> Controller:
        """One with the rule's seed."""
        return cls(settings.seed)

    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        """Draw an action.

        Args:
            seen: unused.
            context: for the shape of an action.

        Returns:
            uniform on [-1, 1), [K, A].
        """
        return 2 * torch.rand(context.executed.shape, generator=self._generator) - 1

    def tensor_state(self) -> dict[str, Tensor]:
        return {"random": self._generator.get_state()}

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the generator.

        Args:
            state: "random": the generator's state, bytes.
        """
        self._generator.set_state(state["random"])


@CONTROLLERS.register
class ThresholdSchedule(Controller):
    """Thresholds that fall evenly, in log, from the highest to the lowest reach.

    Late gradients are small.
    """

    name: ClassVar[str] = "schedule"

    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        """Place the thresholds by the progress of the run; all other columns stay 0.

        Args:
            seen: unused.
            context: for the progress and the shape of an action.

        Returns:
            [K, A]; the threshold column runs from 1 at the start to -1 at the end.
        """
        action = torch.zeros_like(context.executed)
        action[:, THRESHOLD] = 1 - 2 * context.progress
        return action
