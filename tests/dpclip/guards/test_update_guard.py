"""Nothing but released gradients reaches the weights, whatever is done to the model and the
optimizer.
"""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import StepLR

from dpclip.errors import InputError, PrivacyError
from dpclip.guards.update_guard import UpdateGuard, check_optimizer_kind


class Factored(Optimizer):
    """Second moments by rows and columns, as in Adafactor."""

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    squares = p.grad.square() + 1e-6
                    p -= (
                        group["lr"]
                        * p.grad
                        / (squares.mean(0, keepdim=True) * squares.mean(-1, keepdim=True)) ** 0.25
                    )


class Centred(SGD):
    """Works on the gradients in place, or puts others there, before the step of the class below."""

    def step(self, closure: Any = None) -> Any:
        for number, p in enumerate(self.param_groups[0]["params"]):
            if number % 2:
                p.grad = p.grad - p.grad.mean()
            else:
                p.grad.sub_(p.grad.mean())
        return super().step(closure)


class Both(Optimizer):
    """Two optimizers in one."""

    def __init__(self, parameters: Any) -> None:
        held = list(parameters)
        super().__init__(held, {})
        self.parts = [SGD(held[:1], lr=0.1), Adam(held[1:], lr=0.1)]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def scheduled(parameters: Any) -> Optimizer:
    optimizer = SGD(parameters, lr=0.1)
    optimizer.schedule = StepLR(optimizer, 1)  # type: ignore[attr-defined]
    return optimizer


def prepared(parameters: Any) -> Any:
    return Accelerator(cpu=True).prepare_optimizer(AdamW(parameters, lr=0.1))


KINDS: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: Adam(p, lr=0.1),
    "AdamW": lambda p: AdamW(p, lr=0.1, foreach=True),
    "Factored": Factored,
    "Centred": lambda p: Centred(p, lr=0.1),
    "Both": Both,
    "scheduled": scheduled,
    "prepared": prepared,
}


class Run:
    """A model, an optimizer and a guard."""

    def __init__(self, kind: str = "SGD", frozen: tuple[str, ...] = ()) -> None:
        self.model = Net()
        named = {n: p for n, p in self.model.named_parameters() if n not in frozen}
        self.parameters = list(named.values())
        self.optimizer = KINDS[kind](self.model.parameters() if frozen else self.parameters)
        self.guard = UpdateGuard(self.optimizer, self.parameters, list(named))

    def values(self) -> list[Tensor | None]:
        return [torch.full_like(p, 0.5) + torch.rand_like(p) for p in self.parameters]

    def backward(self) -> None:
        self.model(torch.ones(1, 3)).sum().backward()

    def weights(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def moved(self, before: list[Tensor]) -> list[bool]:
        return [
            not torch.equal(p, old) for p, old in zip(self.model.parameters(), before, strict=True)
        ]


@contextmanager
def refused_unmoved(run: Run, message: str) -> Iterator[None]:
    """A refusal by its message, which leaves the weights where they were."""
    before = run.weights()
    with pytest.raises(PrivacyError, match=message) as refusal:
        yield
    assert not any(run.moved(before))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("kind", KINDS)
def test_released_gradients_move_the_weights_as_without_a_guard(kind: str) -> None:
    run = Run(kind)
    model = copy.deepcopy(run.model)
    plain = KINDS[kind](model.parameters())
    for _ in range(3):
        values = run.values()
        for p, value in zip(model.parameters(), values, strict=True):
            p.grad = None if value is None else value.clone()
        plain.step()
        before = run.weights()
        with run.guard.update(values):
            run.optimizer.step()
        assert all(run.moved(before))
        assert all(p.grad is None for p in run.model.parameters())
        if kind == "scheduled":
            plain.schedule.step()
            run.optimizer.schedule.step()
    assert all(
        torch.equal(p, q) for p, q in zip(run.model.parameters(), model.parameters(), strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after_backward", [True, False])
def test_a_step_outside_of_an_update_is_refused(kind: str, after_backward: bool) -> None:
    run = Run(kind)
    if after_backward:
        run.backward()
    with refused_unmoved(run, r"step\(\) was called outside of private\.step\(\).*remove the call"):
        run.optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_a_backward_pass_within_an_update_is_refused(kind: str) -> None:
    run = Run(kind)
    message = (
        r"update parameter 'first\.weight' with a gradient that was not released.* "
        r"call make_private again"
    )
    with refused_unmoved(run, message), run.guard.update(run.values()):
        run.backward()
        run.optimizer.step()
    assert all(p.grad is None for p in run.parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replaced_gradient_is_refused(kind: str) -> None:
    run = Run(kind)
    with refused_unmoved(run, "update parameter 'second.bias'"), run.guard.update(run.values()):
        run.parameters[-1].grad = torch.ones(2)
        run.optimizer.step()


def test_a_second_backward_pass_before_the_update_does_no_harm() -> None:
    run = Run()
    run.backward()
    expected = [p.detach() - 0.1 * (1 + 0.1 * p.detach()) for p in run.parameters]
    with run.guard.update([torch.ones_like(p) for p in run.parameters]):
        run.optimizer.step()
    assert all(torch.allclose(p, e) for p, e in zip(run.parameters, expected, strict=True))


def test_a_head_outside_of_the_model_is_refused() -> None:
    run, head = Run(), nn.Linear(2, 2)
    run.optimizer.add_param_group({"params": list(head.parameters())})
    head(run.model(torch.ones(1, 3))).sum().backward()
    message = "update a parameter that does not belong to the private model"
    with refused_unmoved(run, message), run.guard.update(run.values()):
        run.optimizer.step()


def test_an_unfrozen_parameter_is_refused_by_its_name() -> None:
    run = Run(frozen=("first.weight",))
    run.guard.check_model(_frozen(run.model, "first.weight"))
    run.model.first.weight.requires_grad_(True)
    run.backward()
    with (
        refused_unmoved(run, "update parameter 'first.weight' with"),
        run.guard.update(run.values()),
    ):
        run.optimizer.step()
    with pytest.raises(
        PrivacyError,
        match=r"parameter 'first.weight' was unfrozen or added .*private\.close\(\) and",
    ):
        run.guard.check_model(run.model)


def _frozen(model: nn.Module, name: str) -> nn.Module:
    model.get_parameter(name).requires_grad_(False)
    return model


def test_a_parameter_without_a_value_is_left_alone() -> None:
    run = Run(frozen=("first.weight",))
    before = run.weights()
    with run.guard.update([None, *run.values()[1:]]):
        run.optimizer.step()
    assert run.moved(before) == [False, False, True, True]


def test_a_raw_gradient_of_a_parameter_without_a_value_is_refused() -> None:
    run = Run()
    with (
        refused_unmoved(run, "update parameter 'first.weight' with"),
        run.guard.update([None, *run.values()[1:]]),
    ):
        run.parameters[0].grad = torch.ones(3, 3)
        run.optimizer.step()


@pytest.mark.parametrize("how", ["argument", "keyword"])
def test_a_closure_is_refused(how: str) -> None:
    run = Run()
    with refused_unmoved(run, "was given a closure"), run.guard.update(run.values()):
        if how == "argument":
            run.optimizer.step(lambda: 0.0)
        else:
            run.optimizer.step(closure=lambda: 0.0)


def test_another_optimizer_over_the_same_parameters_is_refused() -> None:
    run = Run()
    other = SGD(run.parameters, lr=0.1)
    other.step()  # nothing to move anything with
    run.backward()
    with refused_unmoved(run, r"another optimizer \(SGD\) would update parameter 'first.weight'"):
        other.step()
    run.guard.close()
    other.step()


def test_optimizers_of_other_models_are_left_alone() -> None:
    run, other = Run(), Net()
    optimizer = Adam(other.parameters())
    other(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with run.guard.update(run.values()):
        optimizer.step()
        run.optimizer.step()


def test_gradients_are_cleared_after_an_error() -> None:
    run = Run()
    with pytest.raises(ZeroDivisionError), run.guard.update(run.values()):
        raise ZeroDivisionError
    assert all(p.grad is None for p in run.parameters)
    with (
        pytest.raises(ValueError, match="argument 2 is shorter"),
        run.guard.update(run.values()[:-1]),
    ):
        pass
    assert all(p.grad is None for p in run.parameters)
    with run.guard.update(run.values()):
        run.optimizer.step()


def test_values_take_the_type_of_their_parameters() -> None:
    run = Run()
    with run.guard.update([torch.ones_like(p, dtype=torch.float64) for p in run.parameters]):
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in run.parameters)
        run.optimizer.step()


def test_what_hooks_and_subclasses_make_of_released_gradients_is_theirs() -> None:
    model = Net()
    optimizer = SGD(model.parameters(), lr=1.0)

    def double(optimizer: Any, *_: Any) -> None:
        for p in optimizer.param_groups[0]["params"]:
            p.grad.mul_(2)

    optimizer.register_step_pre_hook(double)
    names, parameters = zip(*model.named_parameters(), strict=True)
    guard = UpdateGuard(optimizer, parameters, names)
    before = model.second.bias.detach().clone()
    with guard.update([torch.ones_like(p) for p in parameters]):
        optimizer.step()
    assert torch.equal(model.second.bias.detach(), before - 2)


def test_an_optimizer_that_goes_past_the_hooks_is_found_out() -> None:
    run = Run()
    run.optimizer.step = lambda: None
    message = "did not step, or stepped past torch's step hooks"
    with pytest.raises(PrivacyError, match=message), run.guard.update(run.values()):
        run.optimizer.step()


def test_after_the_end_of_the_run_the_optimizer_is_free_and_the_guard_updates_nothing() -> None:
    run = Run()
    run.guard.close()
    run.guard.close()
    run.backward()
    run.optimizer.step()
    with (
        pytest.raises(PrivacyError, match=r"ended by private\.close\(\)"),
        run.guard.update(run.values()),
    ):
        pass


def test_an_optimizer_has_one_run_at_a_time() -> None:
    run = Run("prepared")
    with pytest.raises(
        InputError,
        match=r"this AdamW belongs to a private run .*private\.close\(\), or build a new",
    ):
        UpdateGuard(run.optimizer.optimizer, [], [])
    run.guard.close()
    UpdateGuard(run.optimizer, [], [])


def test_a_guard_goes_with_its_optimizer() -> None:
    run = Run()
    guard = weakref.ref(run.guard)
    other = SGD(run.parameters, lr=0.1)
    run.backward()
    del run.optimizer, run.guard
    gc.collect()
    assert guard() is None
    other.step()


def test_a_copied_optimizer_carries_no_guard() -> None:
    run = Run()
    twin = copy.deepcopy(run.optimizer)
    for p in twin.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    twin.step()


def test_optimizers_whose_updates_cannot_be_checked_are_refused() -> None:
    parameters = list(Net().parameters())
    for fine in KINDS.values():
        check_optimizer_kind(fine(parameters))
    with pytest.raises(InputError, match="LBFGS computes raw gradients itself, by a closure"):
        check_optimizer_kind(torch.optim.LBFGS(parameters))
    with pytest.raises(InputError, match=r"object is not a torch\.optim\.Optimizer"):
        check_optimizer_kind(object())
    with pytest.raises(InputError, match=r"StepLR is not a torch\.optim\.Optimizer"):
        check_optimizer_kind(StepLR(SGD(parameters), 1))


def test_a_model_that_is_as_it_was_passes() -> None:
    run = Run()
    for _ in range(2):
        run.guard.check_model(run.model)
    _frozen(run.model, "first.bias")
    run.model.second.register_parameter("none", None)
    run.model.extra = nn.Linear(2, 2).requires_grad_(False)
    run.guard.check_model(run.model)
    tied = Net()
    tied.second = tied.first
    UpdateGuard(SGD(tied.parameters()), list(tied.parameters()), ["w", "b"]).check_model(tied)


def test_added_and_replaced_parameters_are_refused() -> None:
    added = Run()
    added.model.first.adapter = nn.Linear(2, 2, bias=False)
    with pytest.raises(
        PrivacyError,
        match=r"parameter 'first\.adapter\.weight' was unfrozen or added after make_priv",
    ):
        added.guard.check_model(added.model)
    replaced = Run()
    replaced.model.first.weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(
        PrivacyError, match=r"parameter 'first\.weight' was replaced or removed after make_private"
    ):
        replaced.guard.check_model(replaced.model)
    tied = Run()
    tied.model.second.bias = None  # type: ignore[assignment]
    with pytest.raises(PrivacyError, match=r"parameter 'second\.bias' was replaced or removed"):
        tied.guard.check_model(tied.model)
