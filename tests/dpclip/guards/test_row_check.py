"""The check that rows do not depend on one another: what it tries, what it finds, and when it knows
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from dpclip.errors import InputError
from dpclip.guards.row_check import RowCheck, Turn
from dpclip.guards.row_prints import loud, stilled
from dpclip.guards.seeding import seeded
from dpclip.per_sample import make_backend
from dpclip.sampling.micro_batches import Packer, Unit

Losses = Callable[[Any, Tensor], Tensor]
WIDTH = 32  # of every layer: vector kernels then leave nothing over, however many rows there are


def numbers(count: int, start: int = 0) -> list[Tensor]:
    """Rows that are all different."""
    return [
        torch.randn(WIDTH, generator=torch.Generator().manual_seed(start + row))
        for row in range(count)
    ]


def packer(size: int, rows: list[Tensor] | None = None, rows_per_unit: int = 1) -> Packer:
    return Packer(rows or numbers(64), default_collate, size, rows_per_unit)


def units(packer: Packer, count: int, start: int = 0) -> list[Unit]:
    return [packer.unit([row]) for row in range(start, start + count)]


class Net(nn.Module):
    """A loss a row is the mean of the outputs' squares."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(inputs)))


def alone(model: Any, inputs: Tensor) -> Tensor:
    return model(inputs).square().mean(1)


def checked(losses: Losses, check: RowCheck, model: nn.Module | None = None) -> list[Turn]:
    """Take every turn of a check; those it had."""
    torch.manual_seed(0)
    model = model or Net()
    parameters = list(model.parameters())
    backend = make_backend("auto", model, parameters, [0] * len(parameters), "sum")
    taken = []
    try:
        for turn in check.turns():
            micro = turn.micro
            capture = backend.capture(micro.units, micro.rows_each)
            kept = torch.ones(micro.units, dtype=torch.bool) if turn.kept is None else turn.kept
            louder = loud(model, kept.repeat_interleave(micro.rows_each), turn.loud)
            with stilled(model, turn.still), louder, seeded(turn.seed) as dice, capture as view:
                found = losses(model, micro.batch)
                torch.autograd.backward(found, micro.weights.to(found))
                random = dice.thrown()
            check.judge(turn, found, view, random)  # type: ignore[arg-type]
            taken.append(turn)
    finally:
        backend.close()
    return taken


def of(size: int, others: int = 0, **changes: Any) -> RowCheck:
    pack = packer(size)
    return RowCheck(pack, units(pack, size), units(pack, others, 32), **changes)


# --- what it tries --------------------------------------------------------------------------------


def halves(check: RowCheck) -> Iterator[Tensor]:
    """Which units were kept, in the turns that replaced some."""
    for turn in checked(alone, check):
        if (
            turn.kept is not None
            and not turn.moved
            and turn.loud == 1
            and not bool(turn.kept.all())
        ):
            yield turn.kept


@pytest.mark.parametrize("size", range(2, 10))
def test_every_unit_is_kept_once_while_any_other_is_not(size: int) -> None:
    apart = torch.zeros(size, size, dtype=torch.bool)
    for kept in halves(of(size, size)):
        apart |= kept.unsqueeze(1) & ~kept.unsqueeze(0)
    assert torch.equal(apart, ~torch.eye(size, dtype=torch.bool))


@pytest.mark.parametrize("others", [0, 1, 8])
def test_who_is_kept_stays_and_who_is_not_is_replaced(others: int) -> None:
    turns = checked(alone, of(8, others))
    first = next(turn.micro.batch for turn in turns if turn.kept is not None)
    for turn in turns:
        if turn.kept is None or turn.moved or turn.loud != 1:
            continue
        same = (turn.micro.batch == first).all(1)
        assert torch.equal(same, turn.kept)
        assert torch.equal(turn.micro.weights, turn.kept.float())


def test_the_turns_in_order() -> None:
    turns = checked(alone, of(8))
    assert [turn.micro.units for turn in turns[:3]] == [1, 2, 8]
    assert [turn.kept is None for turn in turns[:3]] == [True, True, False]
    assert [turn.loud == 1 for turn in turns[-5:]] == [True, False, False, False, False]
    moved, last = turns[-6:-4]
    first = turns[2].micro.batch
    assert moved.moved == 1
    assert torch.equal(moved.micro.batch, first.roll(1, 0))
    assert torch.equal(last.micro.batch, first)
    assert not any(turn.still for turn in turns)
    assert len(turns) == 2 + 1 + 2 * 3 + 1 + 1 + 4


def test_fewer_turns_for_a_further_shape_and_none_without_privacy() -> None:
    assert [turn.kept is None for turn in checked(alone, of(8, probe=False))].count(True) == 0
    assert len(checked(alone, of(8, compare="two", probe=False))) == 1 + 2 + 1 + 1
    assert len(checked(alone, of(8, compare="none"))) == 2
    assert len(checked(alone, of(8, compare="none", probe=False))) == 0


def test_place_is_tried_without_dropout() -> None:
    def dropped(model: Any, inputs: Tensor) -> Tensor:
        return alone(model, F.dropout(inputs, 0.5, model.training))

    turns = checked(dropped, of(8))
    last = [turn for turn in turns if turn.loud == 1][-4:]
    assert [turn.alike for turn in last] == [True, False, False, False]
    assert [turn.still for turn in last] == [False, True, True, False]
    assert [turn.moved for turn in last] == [0, 0, 1, 0]


def test_one_row_is_tried_with_another_in_between() -> None:
    turns = checked(alone, of(1, 1))
    batches = [turn.micro.batch for turn in turns if turn.kept is not None]
    assert torch.equal(batches[0], batches[-1])
    assert any(not torch.equal(batches[0], batch) for batch in batches)


def test_the_same_modes_as_before() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2))
    model[1].eval()
    for wanted in (False, True):
        with stilled(model, wanted):
            assert [m.training for m in model.modules()] == (
                [False] * 3 if wanted else [True, True, False]
            )
        assert [m.training for m in model.modules()] == [True, True, False]


# --- what it finds --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [6, 8])
def test_a_coupling_that_one_row_alone_has_is_found(size: int) -> None:
    def looks(reads: int, read: int, amount: float) -> Losses:
        def losses(model: Any, inputs: Tensor) -> Tensor:
            found = alone(model, inputs)
            if len(found) <= max(reads, read):
                return found
            more = torch.zeros(len(found)).index_fill(0, torch.tensor(reads), amount)
            return found + more * inputs[read].detach().square().sum()

        return losses

    for reads, read in ((0, 5), (5, 0), (2, 3), (4, 0), (1, 5)):
        with pytest.raises(InputError, match="loss changes with the other rows"):
            checked(looks(reads, read, 1e-6), of(size))


def test_a_gradient_in_another_row_is_found_whatever_the_values() -> None:
    """A term that is always 0 and has a gradient: no value tells of it."""

    def losses(model: Any, inputs: Tensor) -> Tensor:
        found = alone(model, inputs)
        return found + (found.mean() - found.mean().detach())

    with pytest.raises(InputError, match=r"row's gradient changes|gradient in other rows"):
        checked(losses, of(8))


class Keeping(Net):
    """Remembers the first rows, or counts; both without a trace in its state dict."""

    def __init__(self, counts: bool) -> None:
        super().__init__()
        self.counts, self.number, self.held = counts, 0, torch.zeros(WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        output = super().forward(inputs + self.held)
        self.number += 1
        self.held = torch.full((WIDTH,), 1e-3 * self.number) if self.counts else inputs.detach()[0]
        return output


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_what_is_carried_from_one_turn_to_the_next_is_found(counts: bool, size: int) -> None:
    with pytest.raises(InputError, match=r"kept from one batch to the next|with the other rows"):
        checked(alone, of(size, 1), Keeping(counts))


def test_rows_from_elsewhere_are_found() -> None:
    own = torch.stack(numbers(8, 50))
    check = of(8)
    checked(lambda model, inputs: alone(model, own[: len(inputs)]), check)
    assert check.place_matters
    with pytest.raises(InputError, match="do not change with the rows that were handed out"):
        checked(lambda model, inputs: alone(model, own[:1].expand(len(inputs), -1)), of(8))


def test_a_place_that_matters_is_found() -> None:
    def placed(model: Any, inputs: Tensor) -> Tensor:
        return alone(model, inputs) * (1 + 1e-6 * torch.arange(len(inputs)))

    for losses, matters in ((alone, False), (placed, True)):
        check = of(8)
        checked(losses, check)
        assert check.place_matters is matters


# --- when it knows nothing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "vacuous"),
    [
        ([torch.ones(4, dtype=torch.long)] * 4, True),
        ([torch.arange(4)] * 4, False),  # varied
        ([torch.arange(4)] * 3 + [torch.tensor([3, 2, 1, 0])], False),
        ([torch.ones(4)] * 4, False),  # varied
    ],
)
def test_rows_that_are_all_alike_tell_nothing_unless_they_can_be_varied(
    rows: list[Tensor], vacuous: bool
) -> None:
    def losses(model: Any, batch: Tensor) -> Tensor:
        return model(batch.float()).square().mean(1)

    pack = packer(4, rows)
    check = RowCheck(pack, units(pack, 4))
    checked(losses, check, nn.Linear(4, WIDTH))
    assert check.vacuous is vacuous


def test_one_row_a_micro_batch_cannot_be_coupled() -> None:
    pack = packer(1, [torch.ones(WIDTH)])
    check = RowCheck(pack, units(pack, 1))
    checked(alone, check)
    assert not check.vacuous


def test_units_of_several_rows_may_couple_their_own() -> None:
    pack = packer(8, rows_per_unit=4)
    members = [pack.unit(range(4 * unit, 4 * unit + 4)) for unit in range(2)]

    def within(model: Any, inputs: Tensor) -> Tensor:
        found = alone(model, inputs).view(-1, 4)
        return (found / found.detach().amax(1, keepdim=True) + found.mean(1, keepdim=True)).reshape(
            -1
        )

    def across(model: Any, inputs: Tensor) -> Tensor:
        return alone(model, inputs.roll(1, 0) if len(inputs) > 4 else inputs)

    checked(within, RowCheck(pack, members))
    with pytest.raises(InputError, match="with the other rows"):
        checked(across, RowCheck(pack, members))


def test_a_collate_function_draws_the_same_in_every_turn() -> None:
    def masked(rows: list[Tensor]) -> Tensor:
        batch = torch.stack(rows)
        return batch * (torch.rand(len(batch), WIDTH) > 0.5)

    pack = Packer(numbers(8), masked, 8, 1)
    check = RowCheck(pack, units(pack, 8))
    first, *turns = [turn for turn in checked(alone, check) if turn.kept is not None]
    for turn in turns:
        if not turn.moved:
            assert torch.equal(turn.micro.batch[turn.kept], first.micro.batch[turn.kept])
