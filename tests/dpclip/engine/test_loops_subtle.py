"""Loops whose coupling, or whose innocence, is hard to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dpclip.errors import InputError, PrivacyError
from tests.support.loop_trial import (
    Losses,
    Net,
    Releases,
    begin,
    hidden,
    releases,
    rows,
    squared,
    train,
    weighed,
    within,
)

__all__ = ["releases"]

Rows = list[tuple[Tensor, Tensor]]
DATA = rows(count=40)


def moderate(losses: Tensor) -> Tensor:
    """Nothing while losses are small, and the batch's maximum once one is large."""
    return losses / losses.detach().max().clamp(min=1)


def all_or_none(losses: Tensor) -> Tensor:
    return losses if losses.isfinite().all() else 0 * losses


def spoilt(added: bool) -> Rows:
    return DATA[:23] + [(torch.full((4,), torch.nan), torch.ones(1))] * added


def half_away(values: Tensor) -> Tensor:
    return values + values.roll(len(values) // 2, 0) if len(values) > 1 else values


def test_a_coupling_that_only_an_extreme_row_causes(releases: Releases) -> None:
    with pytest.raises(InputError, match="other rows"):
        releases.movement(weighed(moderate), Net, rows, examples=rows())
    with pytest.raises(InputError, match="other rows"):
        releases.movement(weighed(all_or_none), Net, spoilt, examples=rows())


def test_the_maximum_of_rows_that_are_all_alike(releases: Releases) -> None:
    model, same = nn.Linear(4, 1), [(torch.ones(4), torch.zeros(1))] * 12
    nn.init.ones_(model.weight)
    coupled = weighed(lambda x: x / x.detach().max())
    releases.refused(
        InputError, "other rows", model, lambda private: train(private, model, coupled), same
    )


def test_a_coupling_in_the_second_shape(releases: Releases) -> None:
    """Units of 8 rows come first, and there is room for one: nothing is learned of several."""

    names = [0] * 8 + list(range(1, 33))
    model = Net()
    releases.refused(
        InputError,
        "other rows",
        model,
        lambda p: train(p, model, hidden(half_away)),
        DATA,
        units=names,
    )


def test_two_shapes_with_as_many_rows(releases: Releases) -> None:
    model = nn.Linear(32, 32)
    data = [(x.repeat(8), y.repeat(32)) for x, y in DATA]
    private = begin(model, data, units=[0] * 8 + list(range(1, 33)))
    train(private, model, squared)
    assert private.guarantee().kind == "worst-case"


def test_rows_from_elsewhere_with_random_numbers(releases: Releases) -> None:
    def losses(model: Any, batch: Any) -> Tensor:
        targets = torch.stack([DATA[i % 40][1] for i in range(len(batch[0]))])
        return squared(model, (F.dropout(batch[0], 0.1), targets))

    model = Net()
    private = begin(model, DATA)
    train(private, model, losses)
    assert private.guarantee().kind == "conditional"


class Varied:
    """Rows that are different each time."""

    def __init__(self, given: Rows) -> None:
        self._rows = given

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        inputs, target = self._rows[row]
        return 100 * inputs * (torch.rand(4) > 0.5), target


def masked(batch: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    inputs = torch.stack([row[0] for row in batch])
    return [inputs * (torch.rand(inputs.shape) > 0.5), torch.stack([row[1] for row in batch])]


def test_random_numbers_of_a_data_set_come_from_the_key(releases: Releases) -> None:
    """With a seed that everybody knows, an added row would give all later rows other numbers, and
    be found by them.
    """
    for _ in range(2):
        torch.manual_seed(0)
        model = Net()
        private = begin(model, Varied(rows()))  # type: ignore[arg-type]
        train(private, model, squared)
        private.close()
    first, second = releases.sums
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_collate_function_that_draws(releases: Releases) -> None:
    model = Net()
    private = begin(model, rows(), collate_fn=masked)
    train(private, model, squared)
    assert private.guarantee().kind == "worst-case"


def test_a_seed_of_ones_own(releases: Releases) -> None:
    def losses(model: Any, batch: Any) -> Tensor:
        torch.manual_seed(0)
        return squared(model, (F.dropout(batch[0], 0.5), batch[1]))

    model = Net()
    releases.refused((PrivacyError, InputError), "seed", model, lambda p: train(p, model, losses))  # type: ignore[arg-type]


def test_two_iterators_of_one_run(releases: Releases) -> None:
    model = Net(32, 32)
    private = begin(model, [(x.repeat(8), y.repeat(32)) for x, y in DATA], steps=3)
    one, other = private.batches(), private.batches()

    def loop() -> None:
        for turn in range(100):
            batch = next(other if turn % 2 else one)
            with private.microbatch(batch):
                private.backward(squared(model, batch))
            private.step()

    with pytest.raises(PrivacyError):
        loop()


def words(lengths: Sequence[int]) -> list[Tensor]:
    return [
        torch.randint(1, 9, (n,), generator=torch.Generator().manual_seed(i))
        for i, n in enumerate(lengths)
    ]


def test_a_text_of_a_length_of_its_own(releases: Releases) -> None:
    def losses(model: Any, batch: Any) -> Tensor:
        return model(batch).square().mean((1, 2))

    model = nn.Embedding(9, 32)
    private = begin(
        model,
        words([4, 5] * 8 + [9]),
        collate_fn=lambda batch: pad_sequence(batch, batch_first=True),
    )
    train(private, model, losses)
    assert private.guarantee().kind == "worst-case"


def test_numbers_that_must_keep_a_property(releases: Releases) -> None:
    def labelled(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1].flatten().long(), reduction="none")

    data = [(x, torch.tensor([float(i % 3) if i % 4 else -100.0])) for i, (x, _) in enumerate(DATA)]
    model = Net(outputs=3)
    private = begin(model, data)
    train(private, model, labelled)
    assert private.guarantee().kind == "worst-case"


def test_a_batch_that_was_made_narrower(releases: Releases) -> None:
    model = Net().bfloat16()
    private = begin(model, DATA)
    for batch in private.batches():
        moved = [tensor.bfloat16() for tensor in batch]
        with private.microbatch(moved):
            private.backward(squared(model, moved))
        private.step()


def test_one_draw_for_a_whole_micro_batch(releases: Releases) -> None:
    """A layer left out for all rows at once: a row that comes first moves others to another
    micro-batch's draw.
    """
    losses: Losses = within(lambda x: x * (torch.rand(()) > 0.5))
    model = Net()
    private = begin(model, DATA)
    with pytest.raises(InputError, match="one random number decides for all rows"):
        train(private, model, losses)
