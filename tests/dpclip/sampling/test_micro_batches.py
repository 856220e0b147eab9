"""Physical micro-batches: one shape each, dummies that count for nothing, batches of every kind."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate
from transformers import BatchEncoding

from dpclip.sampling.micro_batches import MicroBatch, Packer, changed, tensors_in, with_last

Pair = namedtuple("Pair", "x y")


@dataclass
class Held:
    """A batch with named fields."""

    x: Tensor
    y: Tensor


def texts(lengths: list[int]) -> list[Tensor]:
    """One text a length; its first word is its number."""
    return [
        torch.cat([torch.tensor([100 + row]), torch.ones(length - 1)]).long()
        for row, length in enumerate(lengths)
    ]


def padded(rows: list[Tensor]) -> Tensor:
    return pad_sequence(rows, batch_first=True)


def packed(
    lengths: list[int], size: int, units: list[list[int]] | None = None, most: int = 1
) -> list[MicroBatch]:
    packer = Packer(texts(lengths), padded, size, most)
    return list(packer.pack(units or [[row] for row in range(len(lengths))]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 4), max_size=20), st.integers(1, 9))
def test_units_of_one_shape_share_a_micro_batch_and_others_never(
    lengths: list[int], size: int
) -> None:
    seen = []
    for micro in packed(lengths, size):
        rows = micro.batch[micro.present.repeat_interleave(micro.rows_each)]
        seen += [int(row[0]) - 100 for row in rows]
        own = {lengths[int(row[0]) - 100] for row in rows}
        assert own == {micro.batch.shape[1]} == {micro.shape[1][0][1]}
        assert (
            (micro.rows, micro.units, micro.rows_each)
            == (size, size, 1)
            == (len(micro.batch), size, 1)
        )
        assert torch.equal(micro.weights, micro.present.float())
        assert micro.present.sum() == len(micro.members) > 0
    assert sorted(seen) == list(range(len(lengths)))


def test_full_micro_batches_come_as_they_fill_and_the_rest_in_order_of_first_come() -> None:
    found = packed([2, 3, 2, 3, 3, 4, 2], 2)
    assert [micro.batch[micro.present][:, 0].sub(100).tolist() for micro in found] == [
        [0, 2],
        [1, 3],
        [4],
        [5],
        [6],
    ]


def test_dummies_are_copies_that_are_not_present() -> None:
    (micro,) = packed([3, 3], 8)
    assert micro.present.tolist() == [True] * 2 + [False] * 6
    assert micro.weights.tolist() == [1.0] * 2 + [0.0] * 6
    assert torch.equal(micro.batch[2:], micro.batch[:1].expand(6, -1))


@pytest.mark.parametrize(("rows", "each"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8)])
def test_units_are_filled_up_to_powers_of_two(rows: int, each: int) -> None:
    (micro,) = packed([2] * rows, 16, [list(range(rows))], 8)
    assert (micro.rows_each, micro.units, micro.rows) == (each, 16 // each, 16)
    assert micro.weights[:each].tolist() == pytest.approx([1 / rows] * rows + [0] * (each - rows))
    assert not micro.weights[each:].any()
    assert micro.batch[:each, 0].sub(100).tolist() == [*range(rows), *[0] * (each - rows)]
    assert micro.members[0].count == rows


def test_units_are_not_filled_beyond_the_most_rows_of_a_unit() -> None:
    (micro,) = packed([2] * 5, 8, [list(range(5))], 6)
    assert micro.rows_each == 6


def test_a_unit_with_more_rows_than_a_micro_batch_is_not_split() -> None:
    (micro,) = packed([2] * 5, 2, [list(range(5))], 8)
    assert (micro.units, micro.rows_each, micro.rows) == (1, 8, 8)


def test_units_of_other_numbers_of_rows_never_share() -> None:
    found = packed([2] * 7, 8, [[0], [1, 2], [3], [4, 5, 6]], 4)
    assert [(micro.rows_each, len(micro.members), micro.units) for micro in found] == [
        (1, 2, 8),
        (2, 1, 4),
        (4, 1, 2),
    ]
    assert [float(micro.weights.sum()) for micro in found] == pytest.approx([2, 1, 1])


def test_units_of_as_many_filled_rows_share() -> None:
    (micro,) = packed([2] * 7, 8, [[0, 1, 2], [3, 4, 5, 6]], 4)
    assert micro.weights.tolist() == pytest.approx([1 / 3] * 3 + [0] + [1 / 4] * 4)


def test_what_a_unit_is_padded_to_is_its_own_affair() -> None:
    """Rows of a unit are collated together, and with no others."""
    (first, second) = packed([2, 5, 3, 4], 4, [[0, 1], [2, 3]], 2)
    assert (first.batch.shape, second.batch.shape) == ((4, 5), (4, 4))


def test_a_collate_function_with_a_length_of_its_own_makes_one_shape() -> None:
    packer = Packer(
        texts([2, 5, 3]),
        lambda rows: torch.stack([pad(row, (0, 8 - len(row))) for row in rows]),
        4,
        1,
    )
    (micro,) = packer.pack([[0], [1], [2]])
    assert micro.batch.shape == (4, 8)


def test_more_room_for_one_shape() -> None:
    packer = Packer(texts([2] * 3 + [3] * 3), padded, 5, 1)
    short, long = packer.unit([0]).shape, packer.unit([3]).shape
    assert packer.room(short) == packer.room(long) == 5
    assert packer.widen(short, 4)
    assert not packer.widen(short, 4)
    assert not packer.widen(short, 2)
    assert (packer.room(short), packer.room(long)) == (8, 5)
    assert [micro.rows for micro in packer.pack([[row] for row in range(6)])] == [8, 5]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_the_last_is_known_before_it_is_used(count: int) -> None:
    found = packed([2] * count, 1)
    flags = [last for _, last in with_last(found)]
    assert flags == [False] * (count - 1) + [True] * bool(count)
    assert [micro for micro, _ in with_last(found)] == found


def test_nothing_is_fetched_before_it_is_needed() -> None:
    fetched: list[int] = []

    class Rows:
        def __len__(self) -> int:
            return 9

        def __getitem__(self, row: int) -> Tensor:
            fetched.append(row)
            return torch.zeros(2)

    found = with_last(Packer(Rows(), default_collate, 2, 1).pack([[row] for row in range(9)]))
    next(found)
    assert fetched == [0, 1, 2, 3]


# --- batches of every kind ------------------------------------------------------------------------


def whole(batch: Any) -> list[Any]:
    return [tensor.tolist() for tensor in tensors_in(batch)]


ONE, TWO = torch.tensor([1.0, 2.0]), torch.tensor([3, 4])


@pytest.mark.parametrize(
    "batch",
    [
        {"x": ONE, "y": TWO},
        [ONE, TWO],
        (ONE, TWO),
        Pair(ONE, TWO),
        BatchEncoding({"x": ONE, "y": TWO}),
        {"inputs": {"x": [ONE]}, "y": (TWO,), "texts": ["a", "b"], "none": None},
        [{"x": ONE, "name": "a"}, {"x": TWO}],
    ],
)
def test_tensors_are_found_and_changed_in_any_batch(batch: Any) -> None:
    new = changed(batch, lambda tensor: tensor + 1)
    assert type(new) is type(batch)
    assert whole(new) == [[2.0, 3.0], [4, 5]]
    assert whole(batch) == [[1.0, 2.0], [3, 4]]
    assert repr(new) != repr(batch)


def test_what_holds_no_tensor_stays() -> None:
    batches: tuple[Any, ...] = ("text", ["a", 1], {}, None, 3)
    for batch in batches:
        assert tensors_in(batch) == []
        assert changed(batch, lambda tensor: tensor + 1) == batch


def test_the_fields_of_an_object_are_found() -> None:
    assert whole(Held(ONE, TWO)) == [[1.0, 2.0], [3, 4]]
    assert whole([Held(ONE, TWO)]) == [[1.0, 2.0], [3, 4]]
    assert whole(ONE) == [[1.0, 2.0]]


def test_what_is_alike_of_a_named_tuple_and_an_encoding() -> None:
    new = changed(Pair(ONE, TWO), torch.neg)
    assert new.x.tolist() == [-1.0, -2.0]
    encoding = changed(BatchEncoding({"x": ONE}), torch.neg)
    assert encoding["x"].tolist() == encoding.x.tolist() == [-1.0, -2.0]
