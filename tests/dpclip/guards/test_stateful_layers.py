"""What a forward pass writes into a model is refused: by the layer's type before, and by trying
during a run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dpclip.errors import InputError, PrivacyError
from dpclip.guards.model_state import StateWatch, check_stateful_layers


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            nn.Embedding(3, 2, max_norm=1.0),
            r"module '1.0' \(Embedding\) has max_norm, .* set max_norm=None",
        ),
        (nn.EmbeddingBag(3, 2, max_norm=1.0), r"\(EmbeddingBag\) has max_norm"),
        (
            nn.Embedding(3, 2, scale_grad_by_freq=True),
            r"has scale_grad_by_freq, .* set scale_grad_by_freq=False",
        ),
        (
            nn.InstanceNorm1d(2, track_running_stats=True),
            r"\(InstanceNorm1d\) keeps running statistics .*=False",
        ),
        (
            nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
            r"\(InstanceNorm2d\) keeps running statistics",
        ),
    ],
)
def test_layers_that_are_known_to_write_are_refused(layer: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_stateful_layers(nn.Sequential(nn.Linear(2, 2), nn.Sequential(layer)))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Embedding(3, 2),
        nn.InstanceNorm1d(2),
        nn.LayerNorm(2),
        nn.GroupNorm(1, 2),
        nn.BatchNorm1d(2),
    ],
)
def test_other_layers_are_accepted(layer: nn.Module) -> None:
    check_stateful_layers(nn.Sequential(layer))


class Book(nn.Module):
    """A layer with a code book, and what is done to it in the forward pass."""

    def __init__(
        self, does: Callable[[Any, Tensor], None] = lambda self, x: None, persistent: bool = True
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.linear.weight
        self.register_buffer("mean", torch.zeros(2), persistent=persistent)
        self.register_buffer("unknown", torch.tensor([torch.nan, torch.inf, 1.0]))
        self.register_buffer("none", None)
        self.does = does

    def forward(self, x: Tensor) -> Tensor:
        self.does(self, x)
        return self.tied(self.linear(x))


def assigned(book: Any, x: Tensor) -> None:
    book.mean = 0.9 * book.mean + 0.1 * x.mean(0)


def copied(book: Any, x: Tensor) -> None:
    book.mean.copy_(x.mean(0))


def averaged(book: Any, x: Tensor) -> None:
    with torch.no_grad():
        book.mean.mul_(0.9).add_(0.1 * x.mean(0))


def by_data(book: Any, x: Tensor) -> None:
    book.mean.data.mul_(0.9).add_(0.1 * x.mean(0))


def set_data(book: Any, x: Tensor) -> None:
    book.mean.data = x.mean(0)


def rolled(book: Any, x: Tensor) -> None:
    book.unknown.data = book.unknown.roll(1)


def made(book: Any, x: Tensor) -> None:
    book.linear.register_buffer("queue", x.detach())


def removed(book: Any, x: Tensor) -> None:
    del book.mean


def shrunk(book: Any, x: Tensor) -> None:
    with torch.no_grad():
        book.linear.weight.mul_(0.5)


def replaced(book: Any, x: Tensor) -> None:
    book.linear.weight = nn.Parameter(book.linear.weight.detach() * 0.5)


def shrunk_by_data(book: Any, x: Tensor) -> None:
    book.linear.weight.data.mul_(0.5)


def one_pass(model: nn.Module, x: Tensor, read_parameters: bool = False) -> None:
    watch = StateWatch(model)
    watch.mark(read_parameters)
    model(x).sum().backward()
    watch.check()


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (
            assigned,
            r"buffer 'book\.mean' is changed by the forward pass and saved with the model, "
            r"unprotected: .*non-p",
        ),
        (copied, r"buffer 'book\.mean' is changed"),
        (averaged, r"buffer 'book\.mean' is changed"),
        (by_data, r"buffer 'book\.mean' is changed"),
        (set_data, r"buffer 'book\.mean' is changed"),
        (rolled, r"buffer 'book\.unknown' is changed"),
        (made, r"buffer 'book\.linear\.queue' is made by the forward pass"),
        (removed, r"buffer 'book\.mean' is changed"),
        (
            shrunk,
            r"parameter 'book\.linear\.weight' is changed by the forward pass .*max_norm=None",
        ),
        (replaced, r"parameter 'book\.linear\.weight' is changed"),
    ],
)
def test_what_is_written_is_found(does: Callable[[Any, Tensor], None], message: str) -> None:
    model = nn.ModuleDict({"book": Book(does)})
    watch = StateWatch(model)
    watch.mark()
    model["book"](torch.ones(3, 2)).sum().backward()
    with pytest.raises(PrivacyError, match=message) as refusal:
        watch.check()
    assert "\n" not in str(refusal.value)


def test_parameters_are_read_when_asked_for() -> None:
    with pytest.raises(PrivacyError, match=r"parameter 'linear\.weight' is changed"):
        one_pass(Book(shrunk_by_data), torch.ones(3, 2), read_parameters=True)
    one_pass(
        Book().to(torch.bfloat16), torch.ones(3, 2, dtype=torch.bfloat16), read_parameters=True
    )


@pytest.mark.parametrize("read_parameters", [True, False])
def test_an_ordinary_pass_is_accepted(read_parameters: bool) -> None:
    model = Book()
    watch = StateWatch(model)
    for frozen in (True, False):
        watch.mark(read_parameters)
        model.requires_grad_(not frozen)
        model(torch.ones(3, 2, requires_grad=True)).sum().backward()
        functional_call(model, {n: p * 2 for n, p in model.named_parameters()}, torch.ones(3, 2))
        model.zero_grad()
        watch.check()
    torch.optim.SGD(model.parameters(), lr=0.1).step()  # between passes the weights may move
    one_pass(model, torch.ones(3, 2), read_parameters)


def test_buffers_that_are_not_saved_may_change() -> None:
    one_pass(Book(averaged, persistent=False), torch.ones(3, 2))
    one_pass(Book(assigned, persistent=False), torch.ones(3, 2))


def test_an_embedding_that_rewrites_its_rows_is_found() -> None:
    model = nn.Sequential(nn.Embedding(3, 2, max_norm=0.1))
    with pytest.raises(PrivacyError, match=r"parameter '0\.weight' is changed"):
        one_pass(model, torch.tensor([0, 1]))


def test_running_statistics_are_found() -> None:
    with pytest.raises(PrivacyError, match=r"buffer '1\.running_mean' is changed"):
        one_pass(
            nn.Sequential(
                nn.Identity(), nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
            ),
            torch.randn(3, 2, 4),
        )


def test_a_buffer_that_is_registered_later_is_watched() -> None:
    model = Book()
    watch = StateWatch(model)
    watch.mark()
    watch.check()
    model.linear.register_buffer("late", torch.zeros(2))
    watch.mark()
    model.linear.late.add_(1)  # type: ignore[operator]
    with pytest.raises(PrivacyError, match=r"buffer 'linear\.late' is changed"):
        watch.check()


def test_a_check_needs_a_mark() -> None:
    with pytest.raises(RuntimeError, match=r"mark\(\) comes before check\(\)"):
        StateWatch(Book()).check()
