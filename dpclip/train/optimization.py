"""Optimizers and learning-rate schedules of `dpclip train`: a new one is a class with a name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from dpclip.registry import Registry

if TYPE_CHECKING:  # the names are listed where torch is not loaded
    from torch import nn
    from torch.optim import Optimizer


class OptimizerChoice(ABC):
    """An optimizer with its usual learning rate."""

    name: ClassVar[str]

    @abstractmethod
    def default_learning_rate(self, width: int, adapters: bool) -> float:
        """The peak learning rate unless one is given.

        Args:
            width: of the model's hidden states.
            adapters: only adapters are trained.
        """

    @abstractmethod
    def build(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> Optimizer:
        """The optimizer over these parameters."""


OPTIMIZERS: Registry[OptimizerChoice] = Registry("optimizer", "dpclip.optimizers")


@OPTIMIZERS.register
class AdamW(OptimizerChoice):
    """torch's AdamW without weight decay; 1e-3 at width 768, four times that for adapters."""

    name: ClassVar[str] = "adamw"

    def default_learning_rate(self, width: int, adapters: bool) -> float:
        return (4 if adapters else 1) * 0.768 / width

    def build(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> Optimizer:
        import torch

        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)


@OPTIMIZERS.register
class SGD(OptimizerChoice):
    """torch's SGD without momentum; 0.5."""

    name: ClassVar[str] = "sgd"

    def default_learning_rate(self, width: int, adapters: bool) -> float:
        return 0.5

    def build(self, parameters: Sequence[nn.Parameter], learning_rate: float) -> Optimizer:
        import torch

        return torch.optim.SGD(parameters, lr=learning_rate)


class LearningRateSchedule(ABC):
    """A function of the step number alone, so that a resumed run needs no state of it."""

    name: ClassVar[str]

    @abstractmethod
    def factor(self, step: int, steps: int) -> float:
        """What the peak rate is multiplied by.

        Args:
            step: from 0.
            steps: planned.
        """


SCHEDULES: Registry[LearningRateSchedule] = Registry("schedule", "dpclip.schedules")


@SCHEDULES.register
class Constant(LearningRateSchedule):
    """The peak rate throughout."""

    name: ClassVar[str] = "constant"

    def factor(self, step: int, steps: int) -> float:
        return 1.0


@SCHEDULES.register
class Linear(LearningRateSchedule):
    """From the peak rate down to 0 in a straight line."""

    name: ClassVar[str] = "linear"

    def factor(self, step: int, steps: int) -> float:
        return 1 - step / steps


@SCHEDULES.register
class Cosine(LearningRateSchedule):
    """From the peak rate down to 0 by half a cosine."""

    name: ClassVar[str] = "cosine"

    def factor(self, step: int, steps: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * step / steps))
