"""Physical micro-batches, each of one shape.

What is computed of a unit then cannot depend on who else is there. Vendors' kernels are chosen by
shape: the same row may round differently in a batch of 15 rows than in one of 16. So the number of
rows is fixed, missing ones are filled up with dummies that count for nothing, and units share a
micro-batch only if they have the same shape by themselves. How long a unit is padded is its own
affair, never its neighbours'.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpclip.sampling.units import RowDataset

# rows of a unit, and of each tensor that they are collated to
Shape = tuple[int, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True)
class Unit:
    """The rows of one privacy unit that take part in a step.

    Attributes:
        examples: as the data set gives them, filled up to a public number with copies of the first.
        count: how many of them are its own.
        shape: rows of `examples`, and of each tensor that they are collated to by themselves.
    """

    examples: list[Any]
    count: int
    shape: Shape


@dataclass(frozen=True)
class MicroBatch:
    """A physical batch, dummies included; `units` units of `rows_each` rows.

    Attributes:
        batch: as collated.
        units: privacy units, dummies included.
        rows_each: rows of each.
        weights: what each row's loss counts in its unit's, [rows]; 0 for dummies.
        present: which units are no dummies, bool, [units].
        members: those.
    """

    batch: Any
    units: int
    rows_each: int
    weights: Tensor
    present: Tensor
    members: tuple[Unit, ...]

    @property
    def shape(self) -> Shape:
        """The shape that all its units have."""
        return self.members[0].shape

    @property
    def rows(self) -> int:
        """Rows, dummies included."""
        return self.units * self.rows_each


class Packer:
    """Fetches rows and packs units of one shape into micro-batches of one size.

    Args:
        dataset: rows by index.
        collate: makes a batch of a list of rows, each by itself but for a common length.
        size: rows a micro-batch; a unit is never split, so one with more rows than that has a
            micro-batch of its own.
        rows_per_unit: most rows of a unit.
    """

    def __init__(
        self,
        dataset: RowDataset,
        collate: Callable[[list[Any]], Any],
        size: int,
        rows_per_unit: int,
    ) -> None:
        self._dataset, self._collate = dataset, collate
        self.size, self._rows_per_unit = size, rows_per_unit
        self._rooms: dict[Shape, int] = {}

    def unit(self, rows: Sequence[int]) -> Unit:
        """Fetch a unit's rows.

        Args:
            rows: indices in the data set, at least one.
        """
        return self.unit_of([self._dataset[row] for row in rows])

    def unit_of(self, examples: list[Any]) -> Unit:
        """Make a unit of rows that are at hand.

        Args:
            examples: the unit's own, at least one.

        Returns:
            the unit, filled up to a power of two or to `rows_per_unit`, whichever is less, but
            never below its own count.
        """
        count = len(examples)
        each = min(1 << (count - 1).bit_length(), max(self._rows_per_unit, count))
        filled = examples + [examples[0]] * (each - count)
        return Unit(
            filled, count, (each, tuple(tuple(t.shape) for t in tensors_in(self._collate(filled))))
        )

    def room(self, shape: Shape) -> int:
        """Count the units of a micro-batch of this shape.

        Args:
            shape: of a unit.

        Returns:
            at least 1.
        """
        return self._rooms.get(shape, max(1, self.size // shape[0]))

    def widen(self, shape: Shape, step: int) -> bool:
        """Make room for a multiple of `step` units.

        Args:
            shape: of a unit.
            step: at least 1.

        Returns:
            whether there is more room than before.
        """
        before = self.room(shape)
        self._rooms[shape] = -(-before // step) * step
        return self.room(shape) > before

    def pack(self, drawn: Iterable[Sequence[int]]) -> Iterator[MicroBatch]:
        """Pack the units of a logical batch into micro-batches; what is left over is filled up.

        Sums do not depend on the order of units, nor on who shares a micro-batch.

        Args:
            drawn: each unit's row indices.
        """
        waiting: dict[Shape, list[Unit]] = {}
        for rows in drawn:
            unit = self.unit(rows)
            held = waiting.setdefault(unit.shape, [])
            held.append(unit)
            if len(held) == self.room(unit.shape):
                yield self.compose(waiting.pop(unit.shape))
        for held in waiting.values():
            yield self.compose(held)

    def compose(self, units: Sequence[Unit], room: int | None = None) -> MicroBatch:
        """Make one micro-batch of units of one shape.

        Args:
            units: at least one, and at most as many as there is room for.
            room: units of the micro-batch; by default `room` of their shape.

        Returns:
            the micro-batch, [room * rows_each] rows; copies of the first unit stand in for missing
            ones, with weight 0.
        """
        shape = units[0].shape
        room = room or self.room(shape)
        filled = [*units, *[units[0]] * (room - len(units))]
        batch = self._collate([example for unit in filled for example in unit.examples])
        weights = [
            self._weights(unit) if place < len(units) else [0.0] * shape[0]
            for place, unit in enumerate(filled)
        ]
        present = torch.arange(room) < len(units)
        return MicroBatch(
            batch, room, shape[0], torch.tensor(weights).reshape(-1), present, tuple(units)
        )

    @staticmethod
    def _weights(unit: Unit) -> list[float]:
        return [
            1.0 / unit.count if place < unit.count else 0.0 for place in range(len(unit.examples))
        ]


def with_last(items: Iterable[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
    """Pair each item with whether it is the last.

    Args:
        items: micro-batches; one is held back until the next is there.
    """
    held: MicroBatch | None = None
    for item in items:
        if held is not None:
            yield held, False
        held = item
    if held is not None:
        yield held, True


def tensors_in(batch: Any) -> list[Tensor]:
    """List the tensors of a batch, in order.

    Args:
        batch: a tensor, or a mapping, sequence or dataclass-like object of them, nested or not.
    """
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        return [tensor for value in batch.values() for tensor in tensors_in(value)]
    if isinstance(batch, list | tuple):
        return [tensor for value in batch for tensor in tensors_in(value)]
    return [
        tensor for value in getattr(batch, "__dict__", {}).values() for tensor in tensors_in(value)
    ]


def changed(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Make the same batch with other tensors; what it is made of is not modified.

    Args:
        batch: as in `tensors_in`.
        change: a tensor -> what stands in its place; called in the order of `tensors_in`.
    """
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        new = copy.copy(batch)
        for key, value in batch.items():
            new[key] = changed(value, change)  # type: ignore[index]
        return new
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(changed(value, change) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(changed(value, change) for value in batch)
    if tensors_in(batch):
        new = copy.copy(batch)
        new.__dict__.update({key: changed(value, change) for key, value in vars(batch).items()})
        return new
    return batch
