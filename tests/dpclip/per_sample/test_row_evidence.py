"""Rows are told from positions; modules that are repeated draw the same random numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpclip.errors import BatchDimensionError
from dpclip.gradient_sum import GradientSum
from dpclip.per_sample import make_backend
from tests.support.per_sample import (
    MODES,
    B,
    D,
    Net,
    SharedPositions,
    T,
    UsesBoth,
    captured,
    clipped_sum,
    one_at_a_time,
    relative_gap,
)


@pytest.mark.parametrize("mode", MODES)
def test_dropout_of_a_repeated_module_is_the_same(mode: str) -> None:
    torch.manual_seed(0)
    model, x = Net(UsesBoth()).double().train(), torch.randn(B, T, D, dtype=torch.float64)
    (parameter,) = model.parameters()
    backend = make_backend(mode, model, [parameter], [0])
    for _ in range(2):  # the first pass is checked against autograd, the second is not
        torch.manual_seed(7)
        with backend.capture(B) as view:
            model(x).mean().backward()
        total = GradientSum.zeros([parameter], [0])
        view.weighted_sum(torch.ones(1, B, dtype=torch.float64), into=total)
        torch.manual_seed(7)
        expected = torch.autograd.grad(model(x).sum(), [parameter])
        assert relative_gap(total.tensors, list(expected)) <= 1e-12
    backend.close()


def test_rows_that_cannot_be_told_from_positions_are_in_doubt() -> None:
    model, x = Net(SharedPositions()).double(), torch.randn(B, B, D, dtype=torch.float64)
    parameters = list(model.parameters())
    backend = make_backend("bookkeeping", model, parameters, [0] * len(parameters))
    with backend.capture(B) as view:
        model(x).mean().backward()
    assert any("inner.table" in name for name in view.doubts())
    with (
        pytest.raises(BatchDimensionError, match=r"inner\.table.*begin again"),
        backend.capture(B - 1),
    ):
        model(x[:-1]).mean().backward()
    with backend.capture(B) as view:
        model(x).mean().backward()
    assert not any("inner.table" in name for name in view.doubts())
    lengths, _ = clipped_sum(one_at_a_time(model, x, parameters), 1.0)
    assert view.squared_norms().sqrt()[0].tolist() == pytest.approx(lengths, rel=1e-12)


def test_a_layer_that_no_module_with_rows_surrounds_is_refused() -> None:
    class Queries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(D, D)

        def forward(self) -> Tensor:
            return self.layer(torch.ones(T, D)).sum() * torch.ones(B)

    model = Queries()
    backend = make_backend("bookkeeping", model, list(model.parameters()), [0, 0])
    with (
        pytest.raises(BatchDimensionError, match="neither does a module around it"),
        backend.capture(B),
    ):
        model().mean().backward()


class OneTable(nn.Module):
    """The same table for tokens, which have rows, and for positions, which have none."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(11, D), nn.Linear(D, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return (
            self.layer(self.table(ids) + self.table(torch.arange(ids.shape[1])))
            .square()
            .sum((1, 2))
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [1, 2, B, 7])
def test_a_layer_called_with_rows_and_without(mode: str, length: int) -> None:
    torch.manual_seed(0)
    model, x = OneTable().double(), torch.randint(11, (B, length))
    lengths, expected = clipped_sum(one_at_a_time(model, x, list(model.parameters())), 0.5)
    captured(mode, model, torch.randint(11, (1, 5)), [1], 0.5)
    for chunks in ([1, 1, 2], [B], [2, 2]):
        norms, total = captured(mode, model, x, chunks, 0.5)
        assert norms == pytest.approx(lengths, rel=1e-12)
        assert relative_gap(total, expected) <= 1e-12


def test_an_input_shared_by_all_rows_is_in_doubt_while_it_could_be_a_position() -> None:
    """[1, 4, d] in a batch of 4 may be one position of every row, in a model with the time
    first.
    """

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, D)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.table(torch.arange(x.shape[1]).unsqueeze(0))).square().sum((1, 2))

    model = Positions()
    backend = make_backend("bookkeeping", model, list(model.parameters()), [0])
    for rows, length, certain in (
        (B, B, False),
        (B - 1, B - 1, False),
        (B, 1, False),
        (B, 7, True),
        (B, B, True),
    ):
        with backend.capture(rows) as view:
            model(torch.randn(rows, length, D)).mean().backward()
        assert any("table" in name for name in view.doubts()) is not certain
