"""Loops of one's own that couple rows: each is refused before anything is released."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dpclip.engine.private_training import PrivateTraining
from dpclip.errors import InputError
from tests.support.loop_trial import (
    COUNT,
    Losses,
    Net,
    Releases,
    hidden,
    releases,
    rows,
    squared,
    train,
    weighed,
    within,
)

__all__ = ["releases"]

NEIGHBOURS = (
    "a row's (loss|gradient) changes with the other rows of its batch|gradient in other rows of "
    "its batch"
)
PLACE = "a row's gradient changes with its place"
ONE_A_ROW = "it takes one loss a row"


class Backwards(torch.autograd.Function):
    """Leaves values alone and hands gradients on as `change` makes them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.change(gradients[0]), None


def backwards(change: Callable[[Tensor], Tensor]) -> Losses:
    """A loop whose backward pass alone is changed."""
    return hidden(lambda values: Backwards.apply(values, change))


def paired(values: Tensor) -> Tensor:
    """Each row meets the one half a batch away."""
    return values + 0.1 * values.roll(len(values) // 2, 0)


def contrastive(model: Any, batch: Any) -> Tensor:
    codes = F.normalize(model.hidden(batch[0]), dim=1)
    return F.cross_entropy(codes @ codes.T, torch.arange(len(codes)), reduction="none") + 0 * model(
        batch[0]
    ).sum(1)


def hardest(losses: Tensor) -> Tensor:
    kept = losses.detach().topk(max(1, len(losses) // 2)).indices
    return losses * torch.zeros_like(losses).index_fill(0, kept, 1.0)


def hooked(losses: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    losses.register_hook(change)
    return losses


def one_looks(inputs: Tensor) -> Tensor:
    """Only row 0 looks at another one, the sixth."""
    return torch.cat([inputs[:1] + inputs[5:6].sum(0), inputs[1:]])


def fixed(place: int) -> Callable[[Tensor], Tensor]:
    """The same rows in every turn, whatever was handed out."""
    own = [row[place] for row in rows()]
    return lambda like: torch.stack([own[i % COUNT] for i in range(len(like))])


COUPLED: dict[str, tuple[Losses, str]] = {
    "the mean, as one value": (weighed(lambda x: x.mean()), ONE_A_ROW),
    "the sum": (weighed(lambda x: x.sum()), ONE_A_ROW),
    "the mean, repeated": (weighed(lambda x: x.mean().expand(len(x))), NEIGHBOURS),
    "weights that add up to one": (
        weighed(lambda x: x * x.detach() / x.detach().sum()),
        NEIGHBOURS,
    ),
    "the batch's maximum": (weighed(lambda x: x / x.max()), NEIGHBOURS),
    "the batch's maximum, detached": (weighed(lambda x: x / x.detach().max()), NEIGHBOURS),
    "standardised by hand": (within(lambda x: (x - x.mean(0)) / (x.std(0, False) + 1)), NEIGHBOURS),
    "batch norm": (
        hidden(lambda x: F.batch_norm(x, None, None, training=True) if len(x) > 1 else x),
        NEIGHBOURS,
    ),
    "contrastive": (contrastive, NEIGHBOURS),
    "rows flipped": (weighed(lambda x: x.flip(0)), NEIGHBOURS),
    "only the inputs flipped": (within(lambda x: x.flip(0)), NEIGHBOURS),
    "rows shuffled": (weighed(lambda x: x[torch.randperm(len(x))]), NEIGHBOURS),
    "losses sorted": (weighed(lambda x: x.sort().values), NEIGHBOURS),
    "the hardest rows": (weighed(hardest), NEIGHBOURS),
    "only the hardest rows": (weighed(lambda x: x.topk(max(1, len(x) // 2)).values), ONE_A_ROW),
    "mixup": (within(lambda x: 0.7 * x + 0.3 * x[torch.randperm(len(x))]), NEIGHBOURS),
    "cutmix": (within(lambda x: torch.cat([x[:, :1].roll(1, 0), x[:, 1:]], 1)), NEIGHBOURS),
    "pairs half a batch apart": (within(paired), NEIGHBOURS),
    "one row looks at one": (within(one_looks), NEIGHBOURS),
    "attention over rows": (hidden(lambda x: torch.softmax(x @ x.T, 1) @ x), NEIGHBOURS),
    "a detached mean put straight through": (
        hidden(lambda x: x + (m := x.mean(0)) - m.detach()),
        NEIGHBOURS,
    ),
    "gradients mixed": (backwards(lambda g: g + g.mean(0)), NEIGHBOURS),
    "gradients moved on": (backwards(lambda g: g.roll(1, 0)), NEIGHBOURS),
    "gradients normalized together": (backwards(lambda g: g / g.norm()), NEIGHBOURS),
    "weights of losses set by a hook": (
        weighed(lambda x: hooked(x, torch.ones_like)),
        "gradient in other rows",
    ),
    "weights of losses shared by a hook": (
        weighed(lambda x: hooked(x, lambda g: g / g.sum())),
        NEIGHBOURS,
    ),
    "targets from elsewhere": (lambda m, b: squared(m, (b[0], fixed(1)(b[0]))), PLACE),
    "inputs from elsewhere": (within(fixed(0)), PLACE),
    "a batch of one's own": (lambda m, b: squared(m, (fixed(0)(b[0]), fixed(1)(b[0]))), PLACE),
    "a constant": (weighed(lambda x: 0 * x + 1), "do not change with the rows"),
    "shape [rows, 1]": (lambda m, b: (m(b[0]) - b[1]).square(), ONE_A_ROW),
    "without a gradient": (lambda m, b: squared(m, b).detach(), "have no gradient"),
}


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_rows_are_refused(name: str, releases: Releases) -> None:
    losses, message = COUPLED[name]
    model = Net()
    releases.refused(InputError, message, model, lambda private: train(private, model, losses))


class Remembers(Net):
    """Centres its inputs on what it saw before; of the ways to remember, this one leaves no trace
    in a state dict.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.zeros(4)

    def forward(self, inputs: Tensor) -> Tensor:
        output = super().forward(inputs - self.mean)
        self.remember(inputs.detach().mean(0))
        return output

    def remember(self, seen: Tensor) -> None:
        self.mean = 0.9 * self.mean + 0.1 * seen


class Hides(Remembers):
    """In a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        del self.mean
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def remember(self, seen: Tensor) -> None:
        self.mean.mul_(0.9).add_(0.1 * seen)


class Bank(Net):
    """Keeps hidden layers of earlier micro-batches."""

    def __init__(self) -> None:
        super().__init__()
        self.bank: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        found = self.hidden(inputs)
        near = 0.1 * torch.cat(self.bank).mean(0) if self.bank else torch.zeros(6)
        self.bank = [*self.bank, found.detach()][-3:]
        return self.last(found + near)


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("kind", [Remembers, Hides, Bank])
def test_what_a_model_keeps_between_batches_is_found(
    kind: type[Net], size: int, releases: Releases
) -> None:
    model = kind()
    message = NEIGHBOURS if size > 1 else "something is kept from one batch to the next"
    releases.refused(
        InputError, message, model, lambda p: train(p, model, squared), physical_batch_size=size
    )


def test_what_a_loop_keeps_between_batches_is_found(releases: Releases) -> None:
    kept: dict[str, Any] = {"mean": 1.0}

    def scaled(model: Any, batch: Any) -> Tensor:
        losses = squared(model, batch)
        kept["mean"] = 0.9 * kept["mean"] + 0.1 * float(losses.detach().mean())
        return losses / kept["mean"]

    def late(model: Any, batch: Any) -> Tensor:
        held = kept.get(str(len(batch[0])), batch)
        kept[str(len(batch[0]))] = batch
        return squared(model, held)

    for losses in (scaled, late):
        model = Net()
        releases.refused(InputError, NEIGHBOURS, model, lambda p, m=model, f=losses: train(p, m, f))  # type: ignore[misc]


def test_random_numbers_from_outside_the_block_are_refused(releases: Releases) -> None:
    model, own = Net(), torch.Generator().manual_seed(0)

    def noisy(private: PrivateTraining) -> None:
        for batch in private.batches():
            inputs = batch[0] + torch.randn_like(batch[0])
            with private.microbatch(batch):
                private.backward(squared(model, (inputs, batch[1])))

    releases.refused(InputError, NEIGHBOURS, model, noisy)
    drawn = within(lambda x: x + torch.randn(x.shape, generator=own))
    releases.refused(InputError, NEIGHBOURS, model, lambda private: train(private, model, drawn))


def normalized(batch: list[Any]) -> list[Tensor]:
    inputs = torch.stack([row[0] for row in batch])
    return [inputs - inputs.mean(0) * (len(batch) > 1), torch.stack([row[1] for row in batch])]


def turned(batch: list[Any]) -> list[Tensor]:
    return list(torch.utils.data.default_collate(batch[::-1]))


def in_order(batch: list[Any]) -> list[Tensor]:
    return list(torch.utils.data.default_collate(sorted(batch, key=lambda row: float(row[1]))))


@pytest.mark.parametrize("collate", [normalized, turned, in_order])
def test_a_collate_function_that_couples_rows_is_refused(
    collate: Callable[..., Any], releases: Releases
) -> None:
    model = Net()
    releases.refused(
        InputError, NEIGHBOURS, model, lambda p: train(p, model, squared), collate_fn=collate
    )
