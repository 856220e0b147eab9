"""Private training in a loop of your own: `make_private` and what it returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from accounting import Adjacency
from dpclip.clipping import ClippingRule, Flat, StepRelease, Unclipped
from dpclip.engine import Engine
from dpclip.errors import BadInput
from dpclip.ledger import Commitments, Ledger
from dpclip.per_sample import Backend, make_backend
from dpclip.plan import Plan, make_plan
from dpclip.postprocess import PostProcessor
from dpclip.randomness import SecretKey
from dpclip.released import Released
from dpclip.sampling import PoissonSampler, micro_batches


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
        shown = "inf" if math.isinf(self.epsilon) else f"{math.ceil(self.epsilon * 1e4) / 1e4:g}"
        return (
            f"({shown}, {self.delta:g})-differentially private, {self.kind}{condition}; adjacency {self.adjacency}, "
            f"unit: {self.unit}, accountant {self.accountant}"
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
            chunks = list(micro_batches(order, [len(rows[u]) for u in order], self._physical_batch_size))
            for position, chunk in enumerate(chunks):
                yield self._hand_out([rows[u] for u in chunk], last=position == len(chunks) - 1)
                if self._pending is not None:
                    raise RuntimeError("a micro-batch was not used: run its backward pass in microbatch(batch)")
            if not chunks:
                self._finish()
            elif self._ready:
                raise RuntimeError("the logical batch is complete: call step() after each micro-batch")

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
        self._pending = _Pending(len(rows_of_units), owners, last)
        return self._collate([self._dataset[row] for row in flat])

    @contextmanager
    def microbatch(self, batch: Any) -> Iterator[None]:
        """Watch the forward and backward pass of one micro-batch, then clip it and add it to the step's sum."""
        pending = self._pending
        if pending is None:
            raise RuntimeError("microbatch() takes the batch that batches() has just yielded, once")
        with self._backend.capture(pending.units, pending.owners) as view:
            yield
        self.engine.absorb(view)
        self._pending, self._ready = None, pending.last

    def mean(self, losses: Tensor) -> Tensor:
        """Mean over the micro-batch's units of the mean over each unit's rows.

        Args:
            losses: one loss a row, shape [rows].
        """
        pending = self._pending
        if pending is None or losses.dim() != 1:
            raise RuntimeError("mean() takes one loss a row, inside microbatch()")
        if pending.owners is None:
            return losses.mean()
        owners = pending.owners.to(losses.device)
        counts = torch.bincount(owners, minlength=pending.units).to(losses.dtype)
        return (losses / counts[owners]).sum() / pending.units

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
        self._pending, self._ready = None, False

    def guarantee(self) -> Guarantee:
        """The promise for the steps charged so far."""
        verdict = self.engine.ledger.compare()
        kind, assumption = guarantee_kind(self.engine.key)
        plan = self.plan
        return Guarantee(verdict.epsilon, plan.delta, kind, plan.adjacency, plan.unit, verdict.accountant, assumption)

    def close(self) -> None:
        """Remove the hooks from the model and release the ledger."""
        self._backend.close()
        self.engine.ledger.close()


def guarantee_kind(key: SecretKey) -> tuple[str, str | None]:
    """Worst-case for a key from the operating system; conditional when an explicit seed could be guessed."""
    if key.seeded:
        return "conditional", "the random seed stays secret and could not be guessed"
    return "worst-case", None


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """The optimizer must update exactly the parameters that are watched, or training silently does nothing.

    Raises:
        BadInput: parameters missing from the optimizer, or unknown to the model.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    wanted = {id(p) for p in parameters}
    if not wanted:
        raise BadInput("the model has no trainable parameter: unfreeze some, or add adapters")
    if held != wanted:
        raise BadInput(
            f"the optimizer holds {len(held)} trainable parameters, the model {len(wanted)}, {len(held & wanted)} in "
            "common: build the optimizer from the model's trainable parameters, after any move to a device or wrapping"
        )


def make_private(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: RowDataset,
    *,
    target_epsilon: float,
    expected_batch_size: int,
    target_delta: float | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    physical_batch_size: int | None = None,
    clipping: ClippingRule | None = None,
    grad_sample_mode: str = "auto",
    loss_reduction: str = "mean",
    accountant: str = "prv",
    adjacency: Adjacency = "add-remove",
    units: Sequence[Any] | None = None,
    rows_per_unit: int = 8,
    public_units: int | None = None,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
    row_cost: Callable[[int], int] | None = None,
    seed: int | None = None,
    ledger_path: Path | None = None,
    postprocess: Sequence[PostProcessor] = (),
) -> PrivateTraining:
    """Couple a model, an optimizer and a data set to one privacy budget.

    Args:
        model: any torch module; hooked, not wrapped.
        optimizer: any torch optimizer over the model's trainable parameters.
        dataset: rows by index.
        target_epsilon: the budget; infinity trains without privacy through the same road.
        expected_batch_size: expected units a logical batch, B; the sample rate is B / N.
        target_delta: defaults to min(1e-5, 1/(10 N)).
        epochs: passes over the data, or give `steps`.
        physical_batch_size: rows a micro-batch; a performance knob only.
        clipping: the rule, by default `Flat(1.0)`.
        grad_sample_mode: "auto", "hooks" or "functorch".
        loss_reduction: how your loss is reduced over the units of a micro-batch, "mean" or "sum".
        units: the privacy unit of each row (a person's id, say); by default each row is its own unit.
        rows_per_unit: most rows of one unit in one step, drawn afresh each step.
        public_units: N, if the true number is itself private; by default the exact number, taken as public.
        seed: reproducible randomness; the guarantee is then conditional on the seed's secrecy.
        ledger_path: where to keep the write-ahead ledger; by default in memory.
        postprocess: free transforms of the released gradient.

    Raises:
        BadInput: values that are meaningless or contradict each other, with the remedy.
    """
    index = UnitIndex(len(dataset), units)
    plan = make_plan(
        units=public_units or len(index),
        expected_batch_size=expected_batch_size,
        target_epsilon=target_epsilon,
        target_delta=target_delta,
        epochs=epochs,
        steps=steps,
        accountant=accountant,
        adjacency=adjacency,
        unit="all rows of one unit" if index.grouped else "one row of the training data",
    )
    key = SecretKey.generate() if seed is None else SecretKey.from_seed(seed)
    ledger = Ledger.create(ledger_path, plan)
    return assemble(
        model, optimizer, dataset, index, plan=plan, key=key, ledger=ledger, commitments=Commitments(None),
        rule=clipping, grad_sample_mode=grad_sample_mode, loss_reduction=loss_reduction,
        physical_batch_size=physical_batch_size or min(32, expected_batch_size), rows_per_unit=rows_per_unit,
        collate=collate_fn, row_cost=row_cost, postprocess=postprocess,
    )  # fmt: skip


def assemble(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    dataset: RowDataset,
    index: UnitIndex,
    *,
    plan: Plan,
    key: SecretKey,
    ledger: Ledger,
    commitments: Commitments,
    rule: ClippingRule | None,
    grad_sample_mode: str,
    loss_reduction: str,
    physical_batch_size: int,
    rows_per_unit: int,
    collate: Callable[[list[Any]], Any],
    row_cost: Callable[[int], int] | None,
    postprocess: Sequence[PostProcessor],
) -> PrivateTraining:
    """Build the stages around a plan that is already made; `make_private` and the command line meet here."""
    if physical_batch_size < 1 or rows_per_unit < 1:
        raise BadInput(f"physical batch size {physical_batch_size} and rows a unit {rows_per_unit} must be at least 1")
    named = trainable(model)
    parameters = list(named.values())
    check_optimizer(optimizer, parameters)
    chosen = (rule or Flat()) if plan.private else Unclipped()
    groups = chosen.partition(list(named))
    backend = make_backend(grad_sample_mode, model, parameters, groups, loss_reduction)
    sampler = PoissonSampler(plan, len(index), key)
    engine = Engine(plan, parameters, chosen, groups, optimizer, sampler, ledger, commitments, key, postprocess)
    return PrivateTraining(
        engine, backend, dataset, index,
        physical_batch_size=physical_batch_size, rows_per_unit=rows_per_unit, collate=collate, row_cost=row_cost,
    )  # fmt: skip
