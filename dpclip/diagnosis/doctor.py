"""Examines a model before it meets data: how norms are computed, at what cost, what is refused."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpclip.diagnosis.footprint import footprint
from dpclip.diagnosis.model_check import check_model, check_rows
from dpclip.errors import BatchDimensionError, InputError
from dpclip.gradient_sum import GradientSum
from dpclip.memory import free_bytes
from dpclip.per_sample import BookkeepingBackend, make_backend
from dpclip.per_sample.forms.factored import Factored
from dpclip.per_sample.forms.lookups import Lookups
from dpclip.per_sample.forms.outer_products import OuterProducts
from dpclip.per_sample.layers import factoring_for
from dpclip.per_sample.layers.convolution import Convolved
from dpclip.per_sample.layers.substitutes import substitute_for
from dpclip.per_sample.watching.calls import Call

_ROUNDS = 3
_ROWS = 16  # of a micro-batch in the check that rows do not depend on one another


@dataclass(frozen=True)
class Finding:
    """One use of one parameter.

    Attributes:
        parameter: its name; tied ones have a finding for each use.
        layer: type of the layer.
        elements: size of the parameter.
        norm: how the per-sample norm is computed.
        bytes_per_row: memory kept for it until the clipped sum, for a row.
    """

    parameter: str
    layer: str
    elements: int
    norm: str
    bytes_per_row: int


@dataclass(frozen=True)
class Diagnosis:
    """What `dpclip doctor` found.

    Attributes:
        findings: one entry a use of a trainable parameter.
        refusals: why private training would be refused, with the remedy; empty if it would not.
        trainable: elements of all trainable parameters.
        row_bytes: memory of a row of a micro-batch.
        fixed_bytes: memory whatever the batch.
        rows_that_fit: rows of a micro-batch in the memory that is free now.
        slowdown: time of a private micro-batch over the plain forward and backward pass, measured
            here; None where it could not be.
    """

    findings: list[Finding]
    refusals: list[str]
    trainable: int
    row_bytes: int
    fixed_bytes: int
    rows_that_fit: int
    slowdown: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as JSON has them."""
        return asdict(self)


def examine(
    model: nn.Module,
    losses: Callable[[nn.Module, Any], Tensor],
    collate: Callable[[list[Any]], Any],
    short: Sequence[Any],
    longest: Sequence[Any],
) -> Diagnosis:
    """Try a model on public stand-in rows.

    Args:
        model: left as it was, but in training mode.
        losses: one loss a row, shape [rows].
        collate: makes a batch of a list of examples.
        short: four examples for the pre-flight, the last the longest.
        longest: three examples of the greatest length.
    """
    model.train()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    refusals, findings = [], []
    try:
        check_model(model, losses, collate, short)
        check_rows(model, losses, collate, longest, _ROWS)
    except InputError as error:
        refusals.append(str(error))
    try:
        findings = _findings(model, losses, collate(list(longest)), len(longest))
        needed = footprint(model, losses, collate, longest)
        slowdown = (
            None if refusals else _slowdown(model, losses, collate(list(longest)), len(longest))
        )
    except BatchDimensionError as error:
        return Diagnosis(
            findings=[],
            refusals=refusals or [str(error)],
            trainable=trainable,
            row_bytes=0,
            fixed_bytes=0,
            rows_that_fit=0,
            slowdown=None,
        )
    rows = needed.rows(free_bytes(next(model.parameters()).device))
    return Diagnosis(
        findings=findings,
        refusals=refusals,
        trainable=trainable,
        row_bytes=needed.row,
        fixed_bytes=needed.fixed,
        rows_that_fit=rows,
        slowdown=slowdown,
    )


def _findings(
    model: nn.Module, losses: Callable[[nn.Module, Any], Tensor], batch: Any, rows: int
) -> list[Finding]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    names = {id(p): name for name, p in model.named_parameters()}
    observer = BookkeepingBackend(model, parameters, [0] * len(parameters))
    uses: list[tuple[Call, nn.Parameter, Factored]] = []
    observer.recording.observer = lambda *use: uses.append(use)
    try:
        with observer.capture(rows):
            losses(model, batch).mean().backward()
    finally:
        observer.close()
    found = [
        Finding(
            names[id(parameter)],
            type(call.layer).__name__,
            parameter.numel(),
            _method(call, parameter, use),
            sum(t.numel() * t.element_size() for t in use.tensors()) // rows,
        )
        for call, parameter, use in uses
    ]
    return sorted(found, key=lambda finding: list(names.values()).index(finding.parameter))


def _method(call: Call, parameter: nn.Parameter, use: Factored) -> str:
    """Say in words how a parameter's per-sample norm is computed."""
    if isinstance(use, OuterProducts):
        return "product of two lengths" if use.left.shape[1] == 1 else "Gram matrices"
    if isinstance(use, Lookups):
        return "sums over equal tokens"
    if isinstance(use, Convolved):
        return "Gram matrices of pixels"
    if substitute_for(call.layer) is not None:
        return "step by step, written out" if isinstance(call.layer, nn.RNNBase) else "written out"
    if factoring_for(call.kind, call.layer) is not None:
        return "written out" if parameter.dim() > 1 else "sums over positions"
    if call.kind in BookkeepingBackend.GRAD_SAMPLERS:
        return "registered grad sampler, written out"
    return "module repeated by torch.func, written out"


def _slowdown(
    model: nn.Module, losses: Callable[[nn.Module, Any], Tensor], batch: Any, rows: int
) -> float:
    """Time a private micro-batch over a plain one: median ratio of alternating rounds."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    backend = make_backend("auto", model, parameters, [0] * len(parameters))
    total = GradientSum.zeros(parameters, [0] * len(parameters))

    def plain() -> None:
        losses(model, batch).mean().backward()
        model.zero_grad(set_to_none=True)

    def private() -> None:
        with backend.capture(rows) as view:
            losses(model, batch).mean().backward()
        view.weighted_sum(1 / (1 + view.squared_norms().sqrt()), into=total)

    private()
    plain()
    ratios = [_seconds(private) / max(_seconds(plain), 1e-9) for _ in range(_ROUNDS)]
    backend.close()
    return statistics.median(ratios)


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
