"""Private training as a loop sees it: micro-batches in, logical steps out, and the guarantee so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from accounting.statement import rounded_up
from dpclip import raw_gradients
from dpclip.clipping import StepRelease
from dpclip.engine import Engine
from dpclip.errors import BadInput
from dpclip.per_sample import Backend
from dpclip.released import Released
from dpclip.sampling import micro_batches


class RowDataset(Protocol):
    """Anything with a length and rows by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Guarantee:
    """What a run can promise so far."""

    epsilon: float
    delta: float
    kind: str
    adjacency: str
    unit: str
    accountant: str
    assumption: str | None = None

    def __str__(self) -> str:
        condition = f" ({self.assumption})" if self.assumption else ""
        return (
            f"({rounded_up(self.epsilon)}, {self.delta:g})-differentially private, {self.kind}{condition}; "
            f"adjacency {self.adjacency}, unit: {self.unit}, accountant {self.accountant}"
        )


class StepObserver(Protocol):
    """Told of each logical step, noise-only steps on empty batches included."""

    def begins(self, step: int, generation: int) -> None:
        """The step was charged; its batch is about to be computed."""
        ...

    def took(self, step: int, released: Released[StepRelease]) -> None:
        """The step's release has updated the model."""
        ...


@dataclass(frozen=True)
class _Pending:
    """A micro-batch that was handed out and waits for its backward pass."""

    units: int
    owners: Tensor | None
    last: bool


class UnitIndex:
    """Which rows belong to which privacy unit."""

    def __init__(self, rows: int, unit_of_row: Sequence[Any] | None) -> None:
        if unit_of_row is None:
            self.rows: list[list[int]] = [[row] for row in range(rows)]
        else:
            if len(unit_of_row) != rows:
                raise BadInput(f"{len(unit_of_row)} unit names for {rows} rows: give one a row")
            grouped: dict[Any, list[int]] = {}
            for row, unit in enumerate(unit_of_row):
                grouped.setdefault(unit, []).append(row)
            self.rows = list(grouped.values())
        self.grouped = unit_of_row is not None

    def __len__(self) -> int:
        return len(self.rows)


class PrivateTraining:
    """A model, its data and its budget, ready for a training loop:

    for batch in private.batches():
        with private.microbatch(batch):
            private.mean(losses(model, batch)).backward()
        private.step()
    """

    def __init__(
        self,
        engine: Engine,
        backend: Backend,
        dataset: RowDataset,
        units: UnitIndex,
        *,
        physical_batch_size: int,
        rows_per_unit: int,
        collate: Callable[[list[Any]], Any],
        row_cost: Callable[[int], int] | None = None,
    ) -> None:
        self.engine, self.plan = engine, engine.plan
        self.observers: list[StepObserver] = []
        self._backend, self._dataset, self._units = backend, dataset, units
        self._physical_batch_size, self._rows_per_unit = physical_batch_size, rows_per_unit
        self._collate, self._row_cost = collate, row_cost
        self._pending: _Pending | None = None
        self._losses: Tensor | None = None  # of the micro-batch's units
        self._ready = False

    def batches(self) -> Iterator[Any]:
        """Physical micro-batches of the remaining logical steps.

        An empty logical batch yields nothing: its noise-only step is taken here, charged like any other.

        Raises:
            BudgetExhausted: the next step does not fit the budget; the steps so far stand.
        """
        while self.engine.step < self.plan.steps:
            drawn = self.engine.begin()
            step, generation = self.engine.step, self.engine.generation
            for observer in self.observers:
                observer.begins(step, generation)
            rows = {int(u): self._rows_of(int(u), step, generation) for u in drawn}
            order = self._by_cost(rows)
            chunks = self._split(order, {unit: len(rows[unit]) for unit in order})
            for position, chunk in enumerate(chunks):
                yield self._hand_out([rows[u] for u in chunk], last=position == len(chunks) - 1)
                if self._pending is not None:
                    raise RuntimeError("a micro-batch was not used: run its backward pass in microbatch(batch)")
            if not chunks:
                self._finish()
            elif self._ready:
                raise RuntimeError("the logical batch is complete: call step() after each micro-batch")

    def _split(self, order: list[int], counts: dict[int, int]) -> list[list[int]]:
        """Micro-batches; a run begins with one unit and with two, so that rows can be told from positions."""
        parts = [order]
        if self.engine.step == 0 or self._backend.unproven:
            parts = [order[:1], order[1:3], order[3:]]
        size = self._physical_batch_size
        return [chunk for part in parts for chunk in micro_batches(part, [counts[unit] for unit in part], size)]

    def _rows_of(self, unit: int, step: int, generation: int) -> list[int]:
        return self.engine.sampler.rows(step, generation, unit, self._units.rows[unit], self._rows_per_unit)

    def _by_cost(self, rows: dict[int, list[int]]) -> list[int]:
        """Similar lengths together: less padding, same sum."""
        if self._row_cost is None:
            return list(rows)
        cost = self._row_cost
        return sorted(rows, key=lambda unit: (max(cost(row) for row in rows[unit]), unit))

    def _hand_out(self, rows_of_units: list[list[int]], *, last: bool) -> Any:
        flat = [row for rows in rows_of_units for row in rows]
        owners = None
        if self._units.grouped:
            owners = torch.tensor([i for i, rows in enumerate(rows_of_units) for _ in rows])
        self._pending, self._losses = _Pending(len(rows_of_units), owners, last), None
        return self._collate([self._dataset[row] for row in flat])

    @contextmanager
    def microbatch(self, batch: Any) -> Iterator[None]:
        """Watch the forward and backward pass of one micro-batch, then clip it and add it to the step's sum."""
        pending = self._pending
        if pending is None:
            raise RuntimeError("microbatch() takes the batch that batches() has just yielded, once")
        with self._backend.capture(pending.units, pending.owners, self.engine.part_clipper()) as view:
            yield
        self.engine.absorb(view, self._losses)
        self._pending, self._losses, self._ready = None, None, pending.last

    def mean(self, losses: Tensor) -> Tensor:
        """Mean over the micro-batch's units of the mean over each unit's rows.

        Args:
            losses: one loss a row, shape [rows].
        """
        pending = self._pending
        if pending is None or losses.dim() != 1:
            raise RuntimeError("mean() takes one loss a row, inside microbatch()")
        if pending.owners is None:
            self._losses = losses.detach()
            return losses.mean()
        owners = pending.owners.to(losses.device)
        counts = torch.bincount(owners, minlength=pending.units).to(losses.dtype)
        shares = losses / counts[owners]
        self._losses = torch.zeros_like(counts).index_add_(0, owners, shares.detach())
        return shares.sum() / pending.units

    def step(self) -> bool:
        """Take the optimizer step if the logical batch is complete; otherwise do nothing.

        Returns:
            whether a step was taken.
        """
        if not self._ready:
            return False
        self._ready = False
        self._finish()
        return True

    def _finish(self) -> None:
        step = self.engine.step
        released = self.engine.finish()
        for observer in self.observers:
            observer.took(step, released)

    def close_step(self) -> None:
        """Forget a step that was begun but not released."""
        self._pending, self._losses, self._ready = None, None, False

    def guarantee(self) -> Guarantee:
        """The promise for the steps charged so far."""
        verdict = self.engine.ledger.compare()
        kind, assumption = guarantee_kind(self.engine)
        plan = self.plan
        return Guarantee(verdict.epsilon, plan.delta, kind, plan.adjacency, plan.unit, verdict.accountant, assumption)

    def close(self) -> None:
        """Remove the hooks from the model and release the ledger."""
        self._backend.close()
        raw_gradients.unguard(self.engine.parameters)
        self.engine.ledger.close()


def guarantee_kind(engine: Engine) -> tuple[str, str | None]:
    """Worst-case, or conditional with what it rests on: a seed that could be guessed, a rule's unchecked assumption."""
    found = [engine.rule.assumption] if engine.rule.assumption else []
    if engine.key.seeded:
        found.append("the random seed stays secret and could not be guessed")
    return ("conditional", "; ".join(found)) if found else (engine.plan.scheme.kind, None)
