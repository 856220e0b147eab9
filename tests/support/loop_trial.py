"""Training loops on trial: what they release, and how far one added unit moves it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dpclip
from dpclip.budget.plan import make_plan
from dpclip.clipping import Flat
from dpclip.engine.private_training import PrivateTraining
from dpclip.loop import make_private as assembly
from dpclip.noise.release import WhiteGaussian
from dpclip.noise.scale import FLOAT_SLACK

Losses = Callable[[Any, Any], Tensor]
Sum = list[Tensor]
COUNT = 23  # rows; with one more, a micro-batch of 8 is full
WITHIN = 1 + FLOAT_SLACK  # of the bound, which noise is scaled to
PLAN = functools.cache(make_plan)


class Net(nn.Module):
    """A few weights, whose layers a loop can call one by one."""

    def __init__(self, width: int = 4, outputs: int = 1) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, 6), nn.Linear(6, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(self.hidden(inputs))

    def hidden(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.first(inputs))


def rows(
    added: bool = False, count: int = COUNT, place: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Small rows and perhaps one that is unlike all others, by default the last."""
    generator = torch.Generator().manual_seed(1)
    found = [
        tuple((0.02 * torch.randn(5, generator=generator)).split([4, 1])) for _ in range(count)
    ]
    if added:
        found.insert(
            count if place is None else place, (torch.full((4,), 100.0), torch.full((1,), 100.0))
        )
    return found


def squared(model: Any, batch: Any) -> Tensor:
    """One loss a row."""
    return (model(batch[0]) - batch[1]).square().mean(1)


def within(inputs: Callable[[Tensor], Tensor]) -> Losses:
    """A loop that changes its inputs first."""
    return lambda model, batch: squared(model, (inputs(batch[0]), batch[1]))


def hidden(change: Callable[[Tensor], Tensor]) -> Losses:
    """A loop that changes the hidden layer."""
    return lambda model, batch: (
        (model.last(change(model.hidden(batch[0]))) - batch[1]).square().mean(1)
    )


def weighed(change: Callable[[Tensor], Tensor]) -> Losses:
    """A loop that changes its losses."""
    return lambda model, batch: change(squared(model, batch))


def begin(
    model: nn.Module, data: Sequence[Any], public: int | None = None, **changes: Any
) -> PrivateTraining:
    """A run whose batches have every unit in them."""
    public = public or len(data)
    settings: dict[str, Any] = {
        "target_epsilon": 8.0,
        "target_delta": 1e-3,
        "steps": 1,
        "expected_batch_size": public,
        "public_units": public,
        "physical_batch_size": 8,
        "accountant": "rdp",
        "clipping": Flat(1.0),
    }
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return dpclip.make_private(model, optimizer, data, **(settings | changes))


def train(private: PrivateTraining, model: nn.Module, losses: Losses) -> int:
    """The whole loop; how many turns it took."""
    turns = 0
    for batch in private.batches():
        with private.microbatch(batch):
            private.backward(losses(model, batch))
        private.step()
        turns += 1
    return turns


def values(model: nn.Module) -> list[Tensor]:
    """The weights as they are now."""
    return [p.detach().clone() for p in model.parameters()]


def distance(one: Sum, other: Sum) -> float:
    """Between two sums."""
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(one, other, strict=True)))


class Releases:
    """Every sum that is released while a test runs, without its noise."""

    def __init__(self) -> None:
        self.sums: list[Sum] = []

    def movement(
        self,
        losses: Losses,
        model: Callable[[], nn.Module],
        data: Callable[[bool], Sequence[Any]],
        **changes: Any,
    ) -> float:
        """How far one added unit moves the first sum; the loop must be accepted as worst-case under
        a secret key.
        """
        self.sums.clear()
        for added in (False, True):
            torch.manual_seed(0)
            trained = model()
            private = begin(trained, data(added), len(data(True)), **changes)
            train(private, trained, losses)
            assert private.guarantee().kind == "worst-case"
            private.close()
        before, after = self.sums
        return distance(before, after)

    def refused(
        self,
        error: type[Exception],
        message: str,
        model: nn.Module,
        loop: Callable[[PrivateTraining], object],
        data: Sequence[Any] = (),
        **changes: Any,
    ) -> None:
        """The loop ends in this error, in one line, before a weight has moved or anything was
        released.
        """
        before = values(model)
        private = begin(model, data or rows(), **changes)
        try:
            with pytest.raises(error, match=message) as caught:
                loop(private)
        finally:
            private.close()
        assert "\n" not in str(caught.value)
        assert self.sums == []
        assert all(torch.equal(a, b) for a, b in zip(before, values(model), strict=True))


@pytest.fixture
def releases(monkeypatch: pytest.MonkeyPatch) -> Releases:
    """What is released; plans are made once for all tests."""
    seen, release = Releases(), WhiteGaussian().release

    def watched(total: Any, *args: Any, **kwargs: Any) -> Any:
        seen.sums.append([tensor.double().clone() for tensor in total.tensors])
        return release(total, *args, **kwargs)

    monkeypatch.setattr(WhiteGaussian, "release", staticmethod(watched))
    monkeypatch.setattr(assembly, "make_plan", PLAN)
    return seen
