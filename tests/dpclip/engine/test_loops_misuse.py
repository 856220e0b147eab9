"""Calls in another order, changed models, copies of a run: refused, and never a step that was not
watched.
"""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpclip.engine.private_training import PrivateTraining
from dpclip.errors import InputError, PrivacyError
from tests.support.loop_trial import Net, Releases, begin, releases, rows, squared, train, values

__all__ = ["releases"]

Loop = Callable[[PrivateTraining, Any], object]
UNUSED = "a micro-batch was not used"


def block(inside: Callable[[PrivateTraining, Any, Any], object]) -> Loop:
    """A loop with this in its block."""

    def loop(private: PrivateTraining, model: Any) -> None:
        for batch in private.batches():
            with private.microbatch(batch):
                inside(private, model, batch)
            private.step()

    return loop


def twice(private: PrivateTraining, model: Any, batch: Any) -> None:
    private.backward(squared(model, batch))
    private.backward(squared(model, batch))


def plainly_first(private: PrivateTraining, model: Any, batch: Any) -> None:
    losses = squared(model, batch)
    losses.mean().backward(retain_graph=True)
    private.backward(losses)


def plainly_after(private: PrivateTraining, model: Any, batch: Any) -> None:
    private.backward(squared(model, batch))
    squared(model, batch).mean().backward()


def scaled_by_gradient(private: PrivateTraining, model: Any, batch: Any) -> None:
    losses = squared(model, batch)
    (found, *_) = torch.autograd.grad(
        losses.mean(), list(model.parameters()), retain_graph=True, allow_unused=True
    )
    private.backward(losses if found is None else losses / found.norm())


def copy_trained(private: PrivateTraining, model: Any, batch: Any) -> None:
    squared(copy.deepcopy(model), batch).mean().backward()
    private.backward(squared(model, batch))


def steps_by_hand(private: PrivateTraining, model: Any, batch: Any) -> None:
    private.backward(squared(model, batch))
    private.engine.optimizer.step()


def kept_losses(private: PrivateTraining, model: Any) -> None:
    for batch in private.batches():
        with private.microbatch(batch):
            losses = squared(model, batch)
        private.backward(losses)


def out_of_the_block(private: PrivateTraining, model: Any) -> None:
    for batch in private.batches():
        private.backward(squared(model, batch))


def unused(private: PrivateTraining, model: Any) -> None:
    for _ in private.batches():
        private.step()


def no_step(private: PrivateTraining, model: Any) -> None:
    for batch in private.batches():
        with private.microbatch(batch):
            private.backward(squared(model, batch))


def block_twice(private: PrivateTraining, model: Any) -> None:
    for batch in private.batches():
        for _ in range(2):
            with private.microbatch(batch):
                private.backward(squared(model, batch))


def former_batch(private: PrivateTraining, model: Any) -> None:
    former = None
    for batch in private.batches():
        with private.microbatch(former or batch):
            private.backward(squared(model, batch))
        former = batch


def part_of_the_batch(private: PrivateTraining, model: Any) -> None:
    for batch in private.batches():
        with private.microbatch(batch[0]):
            private.backward(squared(model, batch))


def deaf(private: PrivateTraining, model: Any) -> None:
    """Goes on whatever is refused."""
    for batch in private.batches():
        try:
            with private.microbatch(batch):
                losses = squared(model, batch)
                private.backward(losses / losses.max())
        except InputError:
            pass
        private.step()


MISUSED: dict[str, tuple[Loop, type[Exception], str]] = {
    "a second backward pass": (block(twice), PrivacyError, "called twice"),
    "a plain backward pass first": (
        block(plainly_first),
        PrivacyError,
        "other than private.backward",
    ),
    "a plain backward pass after": (
        block(plainly_after),
        PrivacyError,
        "other than private.backward",
    ),
    "gradients read by autograd.grad": (
        block(scaled_by_gradient),
        PrivacyError,
        "other than private.backward",
    ),
    "a copy of the model trained": (
        block(copy_trained),
        PrivacyError,
        "other than private.backward",
    ),
    "a step by hand": (block(steps_by_hand), PrivacyError, "outside of private.step"),
    "no backward pass": (block(lambda *_: None), PrivacyError, "no loss was handed over"),
    "a backward pass after the block": (kept_losses, PrivacyError, "no loss was handed over"),
    "no block": (out_of_the_block, RuntimeError, UNUSED),
    "no computation": (unused, RuntimeError, UNUSED),
    "no step": (no_step, RuntimeError, r"call step\(\) after each micro-batch"),
    "a block twice": (block_twice, RuntimeError, "once"),
    "the batch before": (former_batch, PrivacyError, "another batch"),
    "a part of the batch": (part_of_the_batch, PrivacyError, "another batch"),
    "refusals not heard": (deaf, RuntimeError, UNUSED),
}


@pytest.mark.parametrize("name", MISUSED)
def test_another_order_of_calls_is_refused(name: str, releases: Releases) -> None:
    loop, error, message = MISUSED[name]
    model = Net()
    releases.refused(error, message, model, lambda private: loop(private, model))


class Writes(Net):
    """Writes into itself."""

    seen: Tensor

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        output = super().forward(inputs)
        if self.where == "buffer":
            self.seen += inputs.mean()
        elif self.where == "new buffer":
            self.register_buffer("more", inputs.mean())
        else:
            with torch.no_grad():
                self.last.bias.add_(0.0)
        return output


@pytest.mark.parametrize(
    ("where", "name"), [("buffer", "seen"), ("new buffer", "more"), ("parameter", "last.bias")]
)
def test_a_model_that_writes_into_itself_is_refused(
    where: str, name: str, releases: Releases
) -> None:
    model = Writes(where)
    releases.refused(PrivacyError, name, model, lambda private: train(private, model, squared))


def half_frozen() -> Net:
    model = Net()
    model.first.weight.requires_grad_(False)
    return model


def add(private: PrivateTraining, model: Any) -> None:
    model.more = nn.Parameter(torch.zeros(1))
    private.engine.optimizer.add_param_group({"params": [model.more]})


def replace(private: PrivateTraining, model: Any) -> None:
    model.last = nn.Linear(6, 1)


def unfreeze(private: PrivateTraining, model: Any) -> None:
    model.first.weight.requires_grad_(True)


def step_of_another(private: PrivateTraining, model: Any) -> None:
    (model.first(torch.ones(2, 4)).sum() + model.last(torch.ones(2, 6)).sum()).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()


@pytest.mark.parametrize(
    ("between", "error", "message"),
    [
        (add, PrivacyError, "'more' was unfrozen or added"),
        (replace, PrivacyError, r"'last\.\w+' was replaced or removed"),
        (unfreeze, PrivacyError, r"'first\.weight' was unfrozen or added"),
        (
            lambda private, _: private.engine.optimizer.step(),
            PrivacyError,
            "outside of private.step",
        ),
        (step_of_another, PrivacyError, r"another optimizer \(SGD\)"),
        (lambda private, _: copy.copy(private), PrivacyError, "cannot be copied"),
        (lambda private, _: copy.deepcopy(private), PrivacyError, "cannot be copied"),
        (lambda private, _: pickle.dumps(private), PrivacyError, "cannot be copied"),
        (lambda private, _: private.close(), PrivacyError, "ended by private.close"),
        (lambda private, _: private.backward(torch.ones(8)), RuntimeError, "inside microbatch"),
    ],
)
def test_what_is_refused_between_steps(
    between: Any, error: type[Exception], message: str, releases: Releases
) -> None:
    """The first step stands; no other is released, and the weights stay as it left them."""
    model = half_frozen()
    private = begin(model, rows(), steps=3)
    after_first: list[Tensor] = []

    def loop() -> None:
        for batch in private.batches():
            with private.microbatch(batch):
                private.backward(squared(model, batch))
            if private.step():
                after_first.extend(values(model))
                between(private, model)

    kept = list(model.parameters())
    with pytest.raises(error, match=message):
        loop()
    assert len(releases.sums) == 1
    assert all(torch.equal(a, b) for a, b in zip(after_first, kept, strict=True))
    private.close()


def test_a_block_that_broke_off_can_be_repeated(releases: Releases) -> None:
    def loop(private: PrivateTraining, model: Any) -> None:
        for turn, batch in enumerate(private.batches()):
            if turn % 3 == 0:
                with suppress(MemoryError), private.microbatch(batch):
                    model(batch[0])
                    raise MemoryError
            with private.microbatch(batch):
                private.backward(squared(model, batch))
            private.step()

    for broken in (False, True):
        torch.manual_seed(0)
        model = Net()
        private = begin(model, rows())
        loop(private, model) if broken else train(private, model, squared)
        private.close()
    assert all(torch.equal(a, b) for a, b in zip(*releases.sums, strict=True))


def test_a_step_that_was_left_is_not_released(releases: Releases) -> None:
    """batches() begins a step anew after a break; each step is charged once and released once."""
    model = Net()
    private = begin(model, rows(), steps=3)
    for turn, batch in enumerate(private.batches()):
        if turn == 20:
            break
        with private.microbatch(batch):
            private.backward(squared(model, batch))
        private.step()
    train(private, model, squared)
    assert (private.engine.step, private.engine.ledger.charges, len(releases.sums)) == (3, 3, 3)
    private.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_releases_nothing(releases: Releases) -> None:
    model = Net()
    private = begin(model, rows())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            train(private, model, squared)
        except Exception as error:
            os.write(writing, f"{len(releases.sums)} {type(error).__name__} {error}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    said = os.read(reading, 10_000).decode()
    os.close(reading)
    assert said.startswith("0 PrivacyError")
    assert "forked" in said
    train(private, model, squared)
    assert len(releases.sums) == 1
    private.close()
