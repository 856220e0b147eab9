"""How far one unit moves a step's sum, in whole numbers: nothing here rounds.

Sums are made by the engine's own `open_micro_batch` and `absorb`, from micro-batches of one shape
that are filled up
with dummies, as `dpclip.sampling.micro_batches` does. `squared_gap` then subtracts two of them as
fractions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dpclip.clipping import ClippingRule
from dpclip.clipping.rule import RunShape
from dpclip.engine.engine import Engine, _Open
from dpclip.engine.exact_sum import ExactSum
from dpclip.engine.setup import parameter_kinds
from dpclip.noise.scale import FLOAT_SLACK, NoiseScale
from dpclip.per_sample import FactoredView, PerSampleView, make_backend
from dpclip.per_sample.forms.factored import Factored
from dpclip.released import Receipt, Sum

SLACK = (1 + Fraction(FLOAT_SLACK)) ** 2


# --- exact differences ----------------------------------------------------------------------------


def squared_gap(one: Sum, other: Sum) -> Fraction:
    """The squared L2 norm of one sum less the other."""
    return sum(
        (_squared(one.parts(slot), other.parts(slot)) for slot in range(len(one.groups))),
        start=Fraction(0),
    )


def _squared(
    ours: Sequence[tuple[Tensor, float]], theirs: Sequence[tuple[Tensor, float]]
) -> Fraction:
    held = [(whole(tensor, unit), 1) for tensor, unit in ours] + [
        (whole(tensor, unit), -1) for tensor, unit in theirs
    ]
    lowest = min(exponent for (_, exponent), _ in held)
    columns = [
        [sign * value << exponent - lowest for value in values] for (values, exponent), sign in held
    ]
    return sum(sum(column) ** 2 for column in zip(*columns, strict=True)) * Fraction(2) ** (
        2 * lowest
    )


def whole(tensor: Tensor, unit: float = 1.0) -> tuple[list[int], int]:
    """Integers k and an exponent e: the elements times `unit`, a power of two, are k 2^e."""
    shift = math.frexp(unit)[1] - 1
    assert unit == 2.0**shift
    if not tensor.is_floating_point():
        return tensor.reshape(-1).tolist(), shift
    assert bool(tensor.isfinite().all()), "the sum is not finite"
    mantissas, exponents = np.frexp(tensor.detach().double().reshape(-1).numpy())
    lowest = int(exponents[mantissas != 0].min(initial=0))
    pairs = zip((mantissas * 2.0**53).astype(np.int64).tolist(), exponents.tolist(), strict=True)
    return [k << max(0, e - lowest) for k, e in pairs], lowest - 53 + shift


def squared_length(tensor: Tensor) -> Fraction:
    """The squared L2 norm."""
    values, exponent = whole(tensor)
    return sum(value**2 for value in values) * Fraction(2) ** (2 * exponent)


def all_whole(total: Sum) -> bool:
    """Whether a sum holds integers alone (or nothing)."""
    parts = [tensor for slot in range(len(total.groups)) for tensor, _ in total.parts(slot)]
    return all(not tensor.is_floating_point() or not bool(tensor.any()) for tensor in parts)


def ratio(one: Sum, other: Sum, limits: Sequence[float]) -> float:
    """How far apart two sums are, over what is paid for; refused where that is exceeded.

    Where both are integers, no allowance is needed and none is given.
    """
    gap, limit = (
        squared_gap(one, other),
        sum((Fraction(each) ** 2 for each in limits), start=Fraction(0)),
    )
    found = math.sqrt(gap / limit)
    assert gap <= limit * (1 if all_whole(one) and all_whole(other) else SLACK), (
        f"moved {found} of the limit"
    )
    return found


# --- one step -------------------------------------------------------------------------------------


def open_engine(
    rule: ClippingRule, parameters: Sequence[Tensor], groups: Sequence[int], expected: int = 8
) -> Engine:
    """An engine with an open step, of which nothing but clipping and summing is used."""
    engine = object.__new__(Engine)
    engine.plan = SimpleNamespace(private=True, arithmetic="exact", expected_batch_size=expected)  # type: ignore[assignment]
    engine.rule, engine.parameters, engine.groups = rule, list(parameters), list(groups)  # type: ignore[arg-type]
    sides = engine._empty_sides()
    scale = NoiseScale((1.0,), {}, 1.0)
    engine._open = _Open(Receipt(0, 0, 1.0, 0), scale, sides=sides)
    return engine


def sums_of(engine: Engine) -> dict[str, Any]:
    """What the open step holds."""
    return engine._current().sums or engine._empty_sums()


def cut(order: Sequence[int], room: int) -> list[list[int]]:
    """Units in this order, `room` at a time."""
    return [list(order[start : start + room]) for start in range(0, len(order), room)]


def filled(pieces: Sequence[list[int]], room: int) -> list[tuple[list[int], Tensor]]:
    """Micro-batches of `room` units, filled up with copies of their first, and which of
    them count.
    """
    return [
        (piece + piece[:1] * (room - len(piece)), torch.arange(room) < len(piece))
        for piece in pieces
    ]


class Step:
    """Steps of a small model with one loss a row, <output, target>: its gradient by the output is
    the target.

    Args:
        model: any; `inputs` go in as they are.
        rule: told of the model as a run would.
        mode: gradient backend.
        sample: one unit's inputs and targets, [1, rows, ...], to make the backend's checks with.
        room: units a micro-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: ClippingRule,
        mode: str,
        sample: tuple[Tensor, Tensor],
        room: int = 4,
    ) -> None:
        named = dict(model.named_parameters())
        self.model, self.rule, self.room, self.parameters = model, rule, room, list(named.values())
        rule.set_run(RunShape(10, 8, 1))
        rule.set_parameter_kinds(parameter_kinds(model))
        self.groups = rule.partition(list(named), [p.numel() for p in self.parameters])
        self._backend = make_backend(
            mode, model, self.parameters, self.groups, "sum", rule.transforms
        )
        self.rows_each = sample[0].shape[1]
        for units in (1, 2):  # what a run does with dummies before its first step
            ones = torch.ones(units, dtype=torch.bool)
            with self._backend.capture(units, self.rows_each):
                self._backward(sample[0][[0] * units], sample[1][[0] * units], ones)

    def sums(self, inputs: Tensor, targets: Tensor, order: Sequence[int] | None = None) -> Engine:
        """The step's engine, after units inputs [n, rows, ...] in some order."""
        engine = open_engine(self.rule, self.parameters, self.groups)
        for places, present in filled(
            cut(range(len(inputs)) if order is None else order, self.room), self.room
        ):
            clip_part = engine.open_micro_batch(self.room)
            with self._backend.capture(self.room, self.rows_each, present, clip_part) as view:
                losses = self._backward(inputs[places], targets[places], present)
            engine.absorb(view, losses)
        return engine

    def _backward(self, inputs: Tensor, targets: Tensor, present: Tensor) -> Tensor:
        outputs = self.model(inputs.flatten(0, 1))
        losses = (outputs * targets.flatten(0, 1)).flatten(1).sum(1)
        torch.autograd.backward(losses, present.to(losses).repeat_interleave(self.rows_each))
        return losses.detach().view(len(inputs), -1).sum(1)

    def close(self) -> None:
        """Take the hooks off."""
        self._backend.close()


# --- one step of forms ----------------------------------------------------------------------------


def chosen(form: Factored, places: Sequence[int]) -> Factored:
    """Some units of a form."""
    held = {field.name: getattr(form, field.name) for field in fields(form)}  # type: ignore[arg-type]
    picked = {
        name: chosen(value, places) if isinstance(value, Factored) else value[list(places)]
        for name, value in held.items()
        if isinstance(value, Factored | Tensor)
    }
    return replace(form, **picked)  # type: ignore[type-var]


def form_sums(
    forms: Sequence[Factored],
    rule: ClippingRule,
    pieces: Sequence[list[int]],
    room: int,
    expected: int = 8,
) -> ExactSum:
    """The sum of units given by one form a parameter, in micro-batches of these units, filled up to
    `room`.
    """
    engine = open_engine(rule, [_like(form) for form in forms], [0] * len(forms), expected)
    for places, present in filled(pieces, room):
        engine.open_micro_batch(room)
        engine.absorb(view_of([chosen(form, places) for form in forms], present))
    found = sums_of(engine)["release"]
    assert isinstance(found, ExactSum)
    return found


def view_of(forms: Sequence[Factored], present: Tensor | None = None) -> PerSampleView:
    """A view of one group."""
    view = FactoredView([0] * len(forms), forms[0].rows, present=present)
    for slot, form in enumerate(forms):
        view.add(slot, form)
    return view


def _like(form: Factored) -> Tensor:
    """A parameter with gradients of this form."""
    return torch.zeros(form.shape, dtype=form.tensors()[-1].dtype)


class Kept:
    """A sink that keeps one unit's contribution as it was computed, before rounding."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype) -> None:
        self.values = torch.zeros(shape, dtype=dtype)

    def scratch(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.values.dtype)

    def add(self, start: int, values: Tensor) -> None:
        self.values.view(-1)[start : start + values.numel()] += values.reshape(-1)

    def add_units(self, values: Tensor) -> None:
        self.values += values.sum(0).view_as(self.values)

    def add_rows(self, ids: Tensor, values: Tensor) -> None:
        self.values.index_add_(0, ids, values)
