"""Private training as a loop sees it: micro-batches in, logical steps out, and a guarantee."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from dpclip import raw_gradients
from dpclip.engine.engine import Engine
from dpclip.engine.guarantee import Guarantee, guarantee_kind
from dpclip.engine.handed_out import Pending, check_batch, explained_failures
from dpclip.engine.loop_checks import LoopChecks
from dpclip.engine.observers import StepObserver
from dpclip.errors import PrivacyError
from dpclip.guards.model_state import StateWatch
from dpclip.guards.row_check import Turn
from dpclip.guards.seeding import seeded
from dpclip.per_sample import Backend, FactoredView
from dpclip.sampling.micro_batches import MicroBatch, Packer, with_last
from dpclip.sampling.units import UnitIndex


class Recorder(Protocol):
    """Keeps a run in a folder; `dpclip.loop.recorder` does."""

    def save(self, training: PrivateTraining, folder: Path) -> None:
        """`PrivateTraining.save`."""
        ...

    def write_report(self, training: PrivateTraining, folder: Path) -> Path:
        """`PrivateTraining.write_report`."""
        ...


class PrivateTraining:
    """A model, its data and its budget, ready for a training loop.

    ```python
    for batch in private.batches():
        with private.microbatch(batch):
            private.backward(losses(model, batch))  # one loss a row
        private.step()
    ```

    The loop takes a few more turns before the first micro-batch of each shape: they check that rows
    do not depend on one another (`guards/row_check.py`), and nothing of them is kept.

    Args:
        engine: takes the steps.
        backend: gives per-sample gradients.
        model: as it was given.
        packer: makes micro-batches.
        units: which rows belong to which unit.
        rows_per_unit: most rows of one unit in one step.
        checks: that rows do not depend on one another.
        recorder: keeps the run in a folder, where its loop asks for that.
    """

    def __init__(
        self,
        engine: Engine,
        backend: Backend,
        model: nn.Module,
        packer: Packer,
        units: UnitIndex,
        *,
        rows_per_unit: int,
        checks: LoopChecks,
        recorder: Recorder | None = None,
    ) -> None:
        self.engine, self.plan = engine, engine.plan
        self.observers: list[StepObserver] = []
        self._backend, self._model, self._packer, self._units = backend, model, packer, units
        self._rows_per_unit, self._checks, self._recorder = rows_per_unit, checks, recorder
        self._state = StateWatch(model)
        self._pending: Pending | None = None
        self._ready = self._closed = False
        self._iterator = 0  # the latest; one from before adds nothing any more
        backend.refuse_plain_backward()

    # --- the loop's side --------------------------------------------------------------------------

    def batches(self) -> Iterator[Any]:
        """Physical micro-batches of the remaining logical steps, each of one shape, filled up with
        dummies.

        An empty logical batch yields nothing: its noise-only step is taken here, charged like any
            other.

        Raises:
            BudgetExceededError: the next step does not fit the budget; the steps so far stand.
        """
        self._iterator += 1
        mine = self._iterator
        self.close_step()
        while self.engine.step < self.plan.steps:
            self._refuse_closed()
            self.engine.guard.check_model(self._model)
            drawn = self.engine.begin()
            step, generation = self.engine.step, self.engine.generation
            for observer in self.observers:
                observer.on_step_begin(step, generation)
            for number, (micro, last) in enumerate(self._micro_batches(drawn, step, generation)):
                for check, turn in self._checks.turns(micro, number):
                    yield self._hand_out(Pending(turn.micro, turn.seed, check=check, turn=turn))
                    self._require_used(mine)
                if micro.units != self._packer.room(micro.shape):
                    with seeded(self.engine.key.integer(f"wider/{number}", step, generation)):
                        micro = self._packer.compose(micro.members)
                seed = self.engine.key.integer(f"dropout/{number}", step, generation)
                yield self._hand_out(Pending(micro, seed, last))
                self._require_used(mine)
            if not len(drawn):
                self._finish()
            elif self._ready:
                raise PrivacyError(
                    "the logical batch is complete: call step() after each micro-batch"
                )

    @contextmanager
    def microbatch(self, batch: Any) -> Iterator[None]:
        """Watch the forward and backward pass of one micro-batch, then clip it and add it to the
        step's sum.

        Random numbers drawn inside (dropout) come from the run's key, so that nobody knows which
        row met which.

        Raises:
            InputError: rows depend on one another.
            PrivacyError: another batch than the one handed out, no backward pass, or a model that
                was changed by it.
        """
        pending = self._pending
        if pending is None:
            raise PrivacyError("microbatch() takes the batch that batches() has just yielded, once")
        check_batch(batch, pending.micro.batch)
        pending.losses = None
        if pending.turn is None:
            with self._absorbed(pending):
                yield
        else:
            with explained_failures(pending.turn), self._judged(pending, pending.turn):
                yield
        self._pending = None

    @contextmanager
    def _absorbed(self, pending: Pending) -> Iterator[None]:
        micro = pending.micro
        clip_part = self.engine.open_micro_batch(len(micro.members))
        self._state.mark()
        capture = self._backend.capture(micro.units, micro.rows_each, micro.present, clip_part)
        with seeded(pending.seed) as dice, capture as view:
            yield
            pending.require_losses(dice)
        self._state.check()
        assert isinstance(view, FactoredView)
        self._checks.check_shapes(micro, view)
        self.engine.absorb(view, pending.by_unit())
        self._ready = pending.last

    @contextmanager
    def _judged(self, pending: Pending, turn: Turn) -> Iterator[None]:
        micro = turn.micro
        self._state.mark(read_parameters=True)
        capture = self._backend.capture(micro.units, micro.rows_each)
        with turn.staged(self._model) as dice, capture as view:
            yield
            random = dice.thrown()
            losses = pending.require_losses(dice)
        self._state.check()
        assert isinstance(view, FactoredView)
        assert pending.check is not None
        pending.check.judge(turn, losses, view, random)

    def backward(self, losses: Tensor) -> None:
        """Run the backward pass, in `microbatch`: each unit's rows are averaged.

        Args:
            losses: shape [rows], of the rows that were handed out and in their order; each of one
                row alone.

        Raises:
            InputError: a mean or sum over the batch, or another number of losses.
            PrivacyError: a second backward pass of the same micro-batch.
        """
        pending = self._pending
        if pending is None:
            raise PrivacyError("backward() is called once, inside microbatch(batch)")
        pending.take(losses)
        with self._backend.expected():
            torch.autograd.backward(losses, pending.micro.weights.to(losses))
        for parameter in self.engine.parameters:
            parameter.grad = None  # raw: the engine has it in a form that it can clip

    def step(self) -> bool:
        """Take the optimizer step if the logical batch is complete; otherwise do nothing.

        Returns:
            whether a step was taken.
        """
        self._refuse_closed()
        if not self._ready:
            return False
        self._ready = False
        self._finish()
        return True

    def guarantee(self) -> Guarantee:
        """The promise for the steps charged so far."""
        verdict = self.engine.ledger.compare()
        kind, assumption = guarantee_kind(self.engine)
        plan = self.plan
        return Guarantee(
            epsilon=verdict.epsilon,
            delta=plan.delta,
            kind=kind,
            adjacency=plan.adjacency,
            unit=plan.unit,
            accountant=verdict.accountant,
            assumption=assumption,
        )

    def save(self, folder: str | Path) -> None:
        """Keep the run in a folder, so that `dpclip.resume` can go on with it.

        The ledger moves into the folder with the first call and is written there from then on.

        Args:
            folder: new at the first call, the same at later ones. `private/` in it must stay
                secret: it has the key.

        Raises:
            InputError: the folder is in use, or the run is kept elsewhere already.
        """
        self._kept_by().save(self, Path(folder))

    def write_report(self, folder: str | Path) -> Path:
        """Write `public/statement.json` and `public/report.html` for the steps so far.

        Args:
            folder: as for `save`.

        Returns:
            the path of the report.
        """
        return self._kept_by().write_report(self, Path(folder))

    def _kept_by(self) -> Recorder:
        if self._recorder is None:
            raise RuntimeError("this run is kept by the command that began it")
        return self._recorder

    @property
    def model(self) -> nn.Module:
        """As it was given."""
        return self._model

    @property
    def physical_batch_size(self) -> int:
        """Rows that a micro-batch was asked to have."""
        return self._packer.size

    def close_step(self) -> None:
        """Forget a step that was begun but not released."""
        self._pending, self._ready = None, False

    def close(self) -> None:
        """Remove the hooks from the model and the optimizer, and release the ledger.

        The run is over.
        """
        self._closed = True
        self._backend.close()
        self.engine.guard.close()
        raw_gradients.unguard(self.engine.parameters)
        self.engine.ledger.close()

    # --- micro-batches ----------------------------------------------------------------------------

    def _rows_of(self, unit: int, step: int, generation: int) -> list[int]:
        return self.engine.sampler.rows(
            step, generation, unit, self._units.rows[unit], self._rows_per_unit
        )

    def _hand_out(self, pending: Pending) -> Any:
        self._pending = pending
        return pending.micro.batch

    def _require_used(self, mine: int) -> None:
        if self._iterator != mine:
            raise PrivacyError(
                "batches() was called again, so this iterator is over: its rows would count twice; "
                "use one at a time"
            )
        if self._pending is not None:
            raise PrivacyError(
                "a micro-batch was not used: run its backward pass in microbatch(batch)"
            )

    def _micro_batches(
        self, drawn: Iterable[int], step: int, generation: int
    ) -> Iterator[tuple[MicroBatch, bool]]:
        """Those of a step, and whether each is the last; what data set and collate function draw
        comes from the key.
        """
        rows = (self._rows_of(int(unit), step, generation) for unit in drawn)
        packed = with_last(self._packer.pack(rows))
        number = 0
        while True:
            with seeded(self.engine.key.integer(f"rows/{number}", step, generation)):
                item = next(packed, None)
            if item is None:
                return
            yield item
            number += 1

    def _finish(self) -> None:
        step = self.engine.step
        released = self.engine.finish()
        for observer in self.observers:
            observer.on_step_end(step, released)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise PrivacyError(
                "this private run was ended by private.close(): call make_private for a new one"
            )

    # --- one run, one object ----------------------------------------------------------------------

    def __reduce_ex__(self, protocol: Any) -> NoReturn:  # for copy, deepcopy and pickle alike
        raise PrivacyError(
            "a private run cannot be copied or pickled: two runs with one key would give one noise "
            "to two gradients, whose difference shows them; call make_private again, or copy the "
            "model alone"
        )
