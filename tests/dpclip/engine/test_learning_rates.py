"""Learning rates by group for one update: what is stepped, and what the optimizer is left with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dpclip.engine.learning_rates import multiplied_learning_rates
from dpclip.optim import SPAM


def held() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2)) for _ in range(3)]


def test_each_parameter_moves_at_its_own_rate() -> None:
    parameters = held()
    optimizer = torch.optim.SGD(
        [{"params": parameters[:2], "lr": 0.1}, {"params": parameters[2:], "lr": 0.01}]
    )
    for parameter in parameters:
        parameter.grad = torch.ones(2)
    groups = optimizer.param_groups
    with multiplied_learning_rates(optimizer, {id(parameters[0]): 4.0, id(parameters[2]): 0.5}):
        optimizer.step()
    assert optimizer.param_groups is groups
    assert [g["lr"] for g in groups] == [0.1, 0.01]
    assert [len(g["params"]) for g in groups] == [2, 1]
    moved = [float(1 - p[0].detach()) for p in parameters]
    assert moved == pytest.approx([0.4, 0.1, 0.005])


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, SPAM])
def test_state_is_that_of_an_optimizer_with_such_groups(kind: Any) -> None:
    """Moments, counts in the state and counts in the group go on as if nothing had been split."""
    one, other = held(), held()
    split, apart = (
        kind(one, lr=0.1),
        kind([{"params": [p], "lr": r} for p, r in zip(other, (0.2, 0.1, 0.05), strict=True)]),
    )
    for step in range(5):
        for parameters in (one, other):
            for index, parameter in enumerate(parameters):
                parameter.grad = torch.tensor([1.0 + step, -2.0]) * (index + 1)
        with multiplied_learning_rates(split, {id(one[0]): 2.0, id(one[2]): 0.5}):
            split.step()
        apart.step()
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)
    if kind is SPAM:
        assert split.param_groups[0]["total"] == 5


def test_the_rate_is_back_after_a_step_that_failed() -> None:
    parameters = held()
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    with (
        pytest.raises(RuntimeError),
        multiplied_learning_rates(optimizer, {id(parameters[0]): 2.0}),
    ):
        raise RuntimeError("broken")
    assert [len(g["params"]) for g in optimizer.param_groups] == [3]
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_nothing_is_split_where_nothing_differs() -> None:
    parameters = held()
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    with multiplied_learning_rates(optimizer, {id(p): 1.0 for p in parameters}):
        assert len(optimizer.param_groups) == 1
        assert optimizer.param_groups[0]["lr"] == 0.1
