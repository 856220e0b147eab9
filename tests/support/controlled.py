"""Small private runs under a controller, and what they released."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import dpclip
from dpclip.clipping import ControlledClipping, StepRelease
from dpclip.engine.private_training import PrivateTraining
from dpclip.noise.keystream import SecretKey
from dpclip.released import Released


def model(width: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
    )


def training(
    rule: ControlledClipping, data: Tensor, steps: int = 24
) -> tuple[PrivateTraining, nn.Module]:
    net = model()
    rows = [(row, int(row.sum() > 0)) for row in data]
    private = dpclip.make_private(
        net,
        torch.optim.SGD(net.parameters(), lr=0.5),
        rows,
        target_epsilon=8,
        expected_batch_size=16,
        steps=steps,
        physical_batch_size=5,
        clipping=rule,
        key=SecretKey.for_tests(3),
    )
    return private, net


def steps_of(private: PrivateTraining, net: nn.Module) -> Iterator[None]:
    """Takes the steps of a run; yields after each micro-batch."""
    for inputs, targets in private.batches():
        with private.microbatch((inputs, targets)):
            private.backward(nn.functional.cross_entropy(net(inputs), targets, reduction="none"))
        yield
        private.step()


class Recorder:
    """Keeps each step's release, and what the rule made of it."""

    def __init__(self, private: PrivateTraining) -> None:
        self.rule = private.engine.rule
        self.seen: list[tuple[Released[StepRelease], list[float], list[float], list[float]]] = []
        self.private = private
        private.observers.append(self)
        observe = self.rule.observe

        def kept(released: Released[StepRelease]) -> None:
            copied = released.map(copy.deepcopy)
            observe(released)
            self.seen.append(
                (
                    copied,
                    self.rule.bounds(),
                    self.rule.shares(),
                    self.rule.learning_rate_multipliers(),
                )
            )

        self.rule.observe = kept  # type: ignore[method-assign]

    def on_step_begin(self, step: int, generation: int) -> None: ...

    def on_step_end(self, step: int, released: Released[StepRelease]) -> None: ...
