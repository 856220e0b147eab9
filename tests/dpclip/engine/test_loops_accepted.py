"""Loops that compute each row by itself: accepted as worst-case, and one added unit moves the sum
within its bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dpclip.errors import InputError
from tests.support.loop_trial import (
    WITHIN,
    Net,
    Releases,
    begin,
    distance,
    hidden,
    releases,
    rows,
    squared,
    train,
    weighed,
    within,
)

__all__ = ["releases"]


def recomputed(reentrant: bool) -> Callable[[Any, Any], Tensor]:
    def losses(model: Any, batch: Any) -> Tensor:
        inputs = batch[0].clone().requires_grad_(True)
        return squared(
            lambda x: model.last(checkpoint(model.hidden, x, use_reentrant=reentrant)),
            (inputs, batch[1]),
        )

    return losses


ACCEPTED: dict[str, Callable[[Any, Any], Tensor]] = {
    "squares": squared,
    "bfloat16": weighed(lambda x: x.bfloat16()),
    "float64": weighed(lambda x: x.double()),
    "recomputed, reentrant": recomputed(True),
    "recomputed": recomputed(False),
    "huge": weighed(lambda x: 1e12 * x),
    "weights of one's own row": lambda m, b: squared(m, b) * (1 + b[1].abs().flatten()),
    "another power of each loss": weighed(lambda x: (1 + x).log()),
}


@pytest.mark.parametrize("size", [1, 3, 64])
@pytest.mark.parametrize("name", ACCEPTED)
def test_an_added_row_moves_the_sum_within_its_bound(
    name: str, size: int, releases: Releases
) -> None:
    assert 0 < releases.movement(ACCEPTED[name], Net, rows, physical_batch_size=size) <= WITHIN


@pytest.mark.parametrize("each", [2, 3, 8])
def test_an_added_unit_of_several_rows_moves_the_sum_within_its_bound(
    each: int, releases: Releases
) -> None:
    def data(added: bool) -> list[tuple[Tensor, Tensor]]:
        return rows(count=4 * each) + [(100 * x, -100 * y) for x, y in rows(count=each)] * added

    torch.manual_seed(0)
    for added in (False, True):
        model = Net()
        model.load_state_dict(
            {name: torch.full_like(v, 0.3) for name, v in model.state_dict().items()}
        )
        names = [row // each for row in range(len(data(added)))]
        private = begin(model, data(added), 5, units=names)
        train(private, model, squared)
        private.close()
    before, after = releases.sums
    assert 0.5 < distance(before, after) <= WITHIN


def test_rows_that_are_not_finite_move_nothing(releases: Releases) -> None:
    def data(value: float) -> Callable[[bool], list[tuple[Tensor, Tensor]]]:
        return lambda added: rows() + [(torch.full((4,), value), torch.ones(1))] * added

    for value in (float("nan"), float("inf"), 1e30):
        assert releases.movement(squared, Net, data(value)) == 0


def test_random_numbers_of_every_row_are_accepted(releases: Releases) -> None:
    """Drawn in evaluation mode, too, they hide whether a row's place matters, and the guarantee
    says so.
    """
    for losses in (within(lambda x: x + torch.randn_like(x)), hidden(lambda x: F.dropout(x, 0.5))):
        model = Net()
        private = begin(model, rows(), steps=2)
        train(private, model, losses)
        assert "could not be tried, as random numbers" in str(private.guarantee())
        private.close()
    assert len(releases.sums) == 4


def test_rows_that_are_all_alike(releases: Releases) -> None:
    """Floating point numbers are varied for the check; whole numbers cannot be, so that nothing is
    known.
    """
    same = [(torch.ones(4), torch.ones(1))] * 12
    assert releases.movement(squared, Net, lambda added: same + rows(True)[-1:] * added) <= WITHIN
    releases.sums.clear()
    model = Net()
    mean = weighed(lambda x: x / x.detach().mean())
    releases.refused(
        InputError, "changes with the other rows", model, lambda p: train(p, model, mean), same
    )

    table, words = nn.Embedding(9, 1), [torch.tensor([3, 3])] * 12
    releases.refused(
        InputError, "give public rows that differ", table, lambda p: train(p, table, sizes), words
    )
    private = begin(table, words, accept_conditional=True)
    train(private, table, sizes)
    assert private.guarantee().kind == "conditional"
    assert "could not be tried" in str(private.guarantee())
    private.close()


def sizes(table: Any, batch: Any) -> Tensor:
    return table(batch).square().mean((1, 2))


def test_a_second_run_on_one_model_after_the_first(releases: Releases) -> None:
    model = Net()
    for _ in range(2):
        private = begin(model, rows())
        train(private, model, squared)
        private.close()
    assert len(releases.sums) == 2


def test_empty_batches_are_steps_like_any_other(releases: Releases) -> None:
    model = Net()
    private = begin(model, rows(count=40), steps=6, expected_batch_size=1)
    train(private, model, squared)
    assert (private.engine.ledger.charges, len(releases.sums)) == (6, 6)
    private.close()
