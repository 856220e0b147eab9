"""Checks a model before it meets private data: uncoupled rows, and right per-sample gradients.

Everything runs on public stand-in rows. A forward pass that couples rows (batch normalization, a
loss averaged over all tokens) gives a row another loss when its neighbours change; an unsupported
layer gives gradients that differ from one-at-a-time autograd. Both are found by trying, not by a
list of module names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dpclip.errors import BatchDimensionError, InputError
from dpclip.guards.row_check import RowCheck, Turn, turns_until_placed
from dpclip.per_sample import Backend, FactoredView, make_backend
from dpclip.per_sample.errors import MisjudgedRows
from dpclip.precision import accumulation_dtype
from dpclip.sampling.micro_batches import Packer

Losses = Callable[[nn.Module, Any], Tensor]


def check_model(
    model: nn.Module,
    losses: Losses,
    collate: Callable[[list[Any]], Any],
    examples: Sequence[Any],
    grad_sample_mode: str = "auto",
) -> None:
    """Refuse a model that per-sample gradients cannot protect.

    Args:
        model: in training mode; its buffers, gradients and mode are left as they were.
        losses: one loss a row, shape [rows], of a model and a batch.
        collate: makes a batch of a list of examples.
        examples: at least four public examples; the last is the longest.
        grad_sample_mode: the backend to check.

    Raises:
        InputError: names the module or parameter at fault.
    """
    check_batch_norm(model)
    with _untouched(model) as buffers:
        _check_invariance(model, losses, collate, list(examples))
        _check_buffers(model, buffers)
        try:
            for count in (1, 3):  # two sizes, which separate rows from positions
                few = list(examples)[:count]
                try:
                    _check_gradients(model, losses, collate, few, grad_sample_mode)
                except MisjudgedRows:  # nothing is at stake yet, and now it is known
                    _check_gradients(model, losses, collate, few, grad_sample_mode)
        except BatchDimensionError as error:
            raise InputError(str(error)) from error


def check_rows(
    model: nn.Module,
    losses: Losses,
    collate: Callable[[list[Any]], Any],
    examples: Sequence[Any],
    rows: int,
    grad_sample_mode: str = "auto",
) -> None:
    """Check that each row's loss and gradient are the same bits whoever shares its micro-batch.

    See `dpclip/guards/row_check.py`.

    Args:
        model: in training mode; left as it was.
        losses: one loss a row, shape [rows].
        collate: makes a batch of a list of examples.
        examples: public rows, all of one shape.
        rows: of a micro-batch.
        grad_sample_mode: a name of `BACKENDS`.

    Raises:
        InputError: they are not, in this model or on this machine.
    """
    check_batch_norm(model)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    packer = Packer(examples, collate, rows, 1)
    units = [packer.unit([row]) for row in range(len(examples))]
    backend = make_backend(grad_sample_mode, model, list(named.values()), [0] * len(named), "sum")

    def new_check() -> RowCheck:
        room = packer.room(units[0].shape)
        return RowCheck(packer, units[:room], units[room:])

    try:
        for check, turn in turns_until_placed(packer, units[0].shape, new_check):
            _take(turn, check, model, losses, backend)
    finally:
        backend.close()


def _take(turn: Turn, check: RowCheck, model: nn.Module, losses: Losses, backend: Backend) -> None:
    with turn.staged(model) as dice, backend.capture(turn.micro.units) as view:
        found = losses(model, turn.micro.batch)
        torch.autograd.backward(found, turn.micro.weights.to(found))
        random = dice.thrown()
    assert isinstance(view, FactoredView)
    check.judge(turn, found, view, random)


def check_batch_norm(model: nn.Module) -> None:
    """Refuse batch normalization outright: the commonest coupling, with a known remedy.

    Args:
        model: with all its modules.

    Raises:
        InputError: names the module.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise InputError(
                f"module {name!r} is a {type(module).__name__}, which mixes the records of a "
                "batch, so no record can be protected: replace it by GroupNorm or LayerNorm"
            )


def _check_buffers(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Refuse statistics of the records that are saved beside the protected weights."""
    saved = model.state_dict()
    for name, buffer in model.named_buffers():
        if name in saved and name in before and not torch.equal(buffer, before[name]):
            raise InputError(
                f"buffer {name!r} is updated by the forward pass and saved with the model, "
                "unprotected: switch the statistics off (track_running_stats=False, say) or make "
                "the buffer non-persistent"
            )


@contextmanager
def _untouched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    training, state = model.training, torch.get_rng_state()
    try:
        yield buffers
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        model.train(training)
        torch.set_rng_state(state)


def _check_invariance(
    model: nn.Module, losses: Losses, collate: Callable[[list[Any]], Any], examples: list[Any]
) -> None:
    """Check that the last (longest) row's loss stays when the rows before it change.

    With the same shapes and the same dropout.
    """
    model.train()
    last = examples[-1]
    ours, theirs = [examples[0]] * (len(examples) - 1), [examples[1]] * (len(examples) - 1)
    found = []
    for others in (ours, theirs):
        torch.manual_seed(0)
        with torch.no_grad():
            batch_losses = losses(model, collate([*others, last]))
        if batch_losses.shape != (len(examples),):
            raise InputError(
                f"the loss has shape {tuple(batch_losses.shape)} for {len(examples)} rows: one "
                "loss a row is needed"
            )
        found.append(batch_losses[-1])
    tolerance = 1e-4 if found[0].dtype in (torch.float32, torch.float64) else 5e-2
    if not torch.allclose(found[0], found[1], rtol=tolerance, atol=tolerance):
        raise InputError(
            f"a record's loss changes with the other records of its batch ({found[0]:.6g} against "
            f"{found[1]:.6g}): some module mixes the rows, so no record can be protected; look for "
            "batch statistics or token-mean losses"
        )


def _check_gradients(
    model: nn.Module,
    losses: Losses,
    collate: Callable[[list[Any]], Any],
    examples: list[Any],
    grad_sample_mode: str,
) -> None:
    model.eval()  # no dropout: one at a time and together must agree
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    backend = make_backend(grad_sample_mode, model, list(named.values()), [0] * len(named))
    try:
        with backend.capture(len(examples)) as view:
            losses(model, collate(examples)).mean().backward()
        together = view.squared_norms()[0].sqrt()
    finally:
        backend.close()
    alone = torch.stack(
        [_norm_alone(model, losses, collate([e]), list(named.values())) for e in examples]
    )
    tolerance = 1e-3 if all(p.dtype != torch.bfloat16 for p in named.values()) else 5e-2
    gap = (together.to(alone) - alone).abs()
    if bool((gap > tolerance * alone.clamp(min=1e-6)).any()):
        raise InputError(
            f"per-sample gradient norms {together.tolist()} differ from one-at-a-time autograd "
            f"{alone.tolist()}: the model has a layer whose per-sample gradient is not computed "
            "rightly; freeze it, or try --grad-sample-mode functorch"
        )


def _norm_alone(
    model: nn.Module, losses: Losses, batch: Any, parameters: list[nn.Parameter]
) -> Tensor:
    gradients = torch.autograd.grad(losses(model, batch).sum(), parameters, allow_unused=True)
    squares = [g.to(accumulation_dtype(g.dtype)).square().sum() for g in gradients if g is not None]
    return torch.stack(squares).sum().sqrt()
