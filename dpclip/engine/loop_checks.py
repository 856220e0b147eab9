"""When a loop is checked, on which rows, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dpclip.engine.engine import Engine
from dpclip.errors import InputError, PrivacyError
from dpclip.guards.row_check import Extent, RowCheck, Turn, turns_until_placed
from dpclip.per_sample import Backend, FactoredView
from dpclip.sampling.micro_batches import MicroBatch, Packer, Shape, Unit
from dpclip.sampling.units import UnitIndex


class LoopChecks:
    """The checks of one run.

    Args:
        engine: of the run.
        backend: gives per-sample gradients.
        packer: makes micro-batches.
        units: which rows belong to which unit.
        rows_per_unit: most rows of one unit in one step.
        examples: public rows for the checks; otherwise they are made on the data themselves.
        accept_conditional: go on, with a conditional guarantee, where the checks cannot be made.
        recheck: check loop and losses again now and then, which may change their ways.
    """

    def __init__(
        self,
        engine: Engine,
        backend: Backend,
        packer: Packer,
        units: UnitIndex,
        *,
        rows_per_unit: int,
        examples: Sequence[Any] = (),
        accept_conditional: bool = False,
        recheck: bool = True,
    ) -> None:
        self._engine, self._backend, self._packer, self._units = engine, backend, packer, units
        self._rows_per_unit, self._examples = rows_per_unit, list(examples)
        self._accept_conditional, self._recheck = accept_conditional, recheck
        # with the shapes that the model's layers saw
        self._checked: dict[Shape, list[tuple[int, ...]] | None] = {}
        # units of the largest micro-batch of which all pairs of places were compared
        self._tried = 0

    def turns(self, micro: MicroBatch, number: int) -> Iterator[tuple[RowCheck, Turn]]:
        """What the loop is handed before a micro-batch whose shape is new; nothing of it goes into
        a sum.

        A loop may change its ways, so a smaller check is made before the steps 1, 2, 4, 8, … as
        well.
        """
        step = self._engine.step
        again = self._recheck and number == 0 and step > 0 and step & (step - 1) == 0
        if micro.shape in self._checked and not (again and self._engine.plan.private):
            return
        check = yield from turns_until_placed(
            self._packer, micro.shape, lambda: self._new_check(micro)
        )
        if check.vacuous:
            self._assume(
                "rows do not depend on one another, which could not be tried: all rows at hand are "
                "alike"
            )
        if check.assumption is not None and check.assumption not in self._engine.assumptions:
            self._engine.assumptions.append(check.assumption)
        self._checked.setdefault(micro.shape, None)

    def _new_check(self, micro: MicroBatch) -> RowCheck:
        room = self._packer.room(micro.shape)
        compare: Extent = "all" if room > self._tried else "two"
        if micro.shape in self._checked:
            compare = "again"
        if not self._engine.plan.private:
            compare = "none"
        elif compare == "all":
            self._tried = room
        units = self._public_units(micro.shape)
        if not units:
            units = [*micro.members, *(self._units_like(micro.shape) if compare != "none" else ())]
        return RowCheck(
            self._packer,
            units[:room],
            units[room:],
            probe=self._backend.unproven,
            compare=compare,
            digit=len(self._checked) + self._engine.step,
            seed=self._engine.key.integer("check", self._engine.step),
        )

    def _public_units(self, shape: Shape) -> list[Unit]:
        each = shape[0]
        rows = [self._packer.unit_of([row] * each) for row in self._examples]
        return [unit for unit in rows if unit.shape == shape]

    def _units_like(self, shape: Shape) -> list[Unit]:
        """Other units of the data with this shape: as many as fill a micro-batch, if they are found
        soon.
        """
        wanted, found = self._packer.room(shape), []
        words = self._engine.key.stream("check", self._engine.step, self._engine.generation).words(
            4 * wanted
        )
        for place in [int(word) % len(self._units) for word in words]:
            unit = self._packer.unit(self._units.rows[place][: self._rows_per_unit])
            if unit.shape == shape:
                found.append(unit)
            if len(found) == wanted:
                break
        return found

    def check_shapes(self, micro: MicroBatch, view: FactoredView) -> None:
        """The model must see one shape for micro-batches of one shape, whatever the loop does in
        between.
        """
        seen = self._checked.get(micro.shape)
        if seen is None:
            self._checked[micro.shape] = view.shapes
        elif seen != view.shapes:
            raise PrivacyError(
                "the model's layers see tensors of other shapes than in the micro-batch before, so "
                "what is computed of a row depends on its neighbours; nothing was released: pad to "
                "a fixed length, or to one that follows from the row alone (pad_to_multiple_of), "
                "in collate_fn"
            )

    def _assume(self, assumption: str) -> None:
        if not self._accept_conditional:
            raise InputError(
                f"the guarantee would be conditional ({assumption}): give public rows that differ "
                "(examples=[…]), or accept_conditional=True"
            )
        self._engine.assumptions.append(assumption)
