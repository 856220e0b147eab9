"""Small private runs, and what they release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import dpclip
from dpclip.clipping import StepRelease
from dpclip.engine.private_training import PrivateTraining
from dpclip.noise.keystream import SecretKey
from dpclip.released import Released

ROWS = 40


def data(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(ROWS, 4, generator=generator)
    return [(x, x.sum().reshape(1)) for x in inputs]


def make(
    dataset: Sequence[Any] | None = None, model: nn.Module | None = None, **changes: Any
) -> PrivateTraining:
    torch.manual_seed(1)
    model = model or nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    settings: dict[str, Any] = {
        "target_epsilon": 8.0, "target_delta": 1e-3, "steps": 6, "expected_batch_size": 10,
        "physical_batch_size": 4, "accountant": "rdp", "key": SecretKey.for_tests(5),
    }  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    private = dpclip.make_private(model, optimizer, dataset or data(), **(settings | changes))  # type: ignore[arg-type]
    return private


def row_losses(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return (model(inputs) - targets).square().mean(1)


def run(private: PrivateTraining) -> list[Tensor]:
    model = private.model
    for batch in private.batches():
        with private.microbatch(batch):
            private.backward(row_losses(model, batch))
        private.step()
    private.close()
    return [p.detach().clone() for p in model.parameters()]


class Recorder:
    """Keeps every release."""

    def __init__(self, private: PrivateTraining) -> None:
        self.releases: list[StepRelease] = []
        private.observers.append(self)

    def on_step_begin(self, step: int, generation: int) -> None: ...

    def on_step_end(self, step: int, released: Released[StepRelease]) -> None:
        self.releases.append(released.value)
