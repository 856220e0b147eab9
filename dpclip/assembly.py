"""`make_private`: couples a model, an optimizer and a data set to one plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate

from accounting import Adjacency
from dpclip import noise, raw_gradients
from dpclip.clipping import ClippingRule, Flat, ParameterKind, RunShape, Unclipped
from dpclip.clipping.per_group import is_adapter
from dpclip.engine import Engine
from dpclip.errors import BadInput
from dpclip.ledger import Ledger
from dpclip.loop_checks import LoopChecks
from dpclip.micro_batches import Packer
from dpclip.model_state import check_stateful_layers
from dpclip.one_process import check_one_process
from dpclip.per_sample import make_backend
from dpclip.plan import Plan, make_plan, whole_number
from dpclip.postprocess import GradientClipper
from dpclip.preflight import check_batch_norm
from dpclip.private import PrivateTraining
from dpclip.randomness import SecretKey
from dpclip.sampling import make_sampler
from dpclip.units import RowDataset, UnitIndex, check_dataset
from dpclip.update_guard import UpdateGuard, check_optimizer_kind


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def kinds(model: nn.Module) -> list[ParameterKind]:
    """What each trainable parameter is; an embedding that is also the head is an embedding."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}

    def kind(name: str, parameter: nn.Parameter) -> ParameterKind:
        if is_adapter(name):
            return "adapter"
        return "embedding" if id(parameter) in embeddings else "matrix" if parameter.dim() > 1 else "vector"

    return [kind(name, parameter) for name, parameter in trainable(model).items()]


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
    accountant: str = "prv",
    adjacency: Adjacency = "add-remove",
    units: Sequence[Any] | None = None,
    rows_per_unit: int = 8,
    public_units: int | None = None,
    collate_fn: Callable[[list[Any]], Any] = default_collate,
    examples: Sequence[Any] = (),
    key: SecretKey | None = None,
    ledger_path: Path | None = None,
    postprocess: Sequence[GradientClipper] = (),
    accept_conditional: bool = False,
    arithmetic: str = "exact",
    **gone: Any,
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
        physical_batch_size: rows a micro-batch, dummies included; a performance knob only.
        clipping: the rule, by default `Flat(1.0)`.
        grad_sample_mode: "auto" (book-keeping), "bookkeeping", "ghost", "hooks" or "functorch".
        units: the privacy unit of each row (a person's id, say); by default each row is its own unit.
        rows_per_unit: most rows of one unit in one step, drawn afresh each step.
        public_units: N, if the true number is itself private; by default the exact number, taken as public.
        collate_fn: makes a batch of a list of rows, each by itself but for a common length; rows share a micro-batch if
            they have one shape by themselves, so pad to a fixed length or to a multiple of some number.
        examples: public rows for the check that rows do not depend on one another; otherwise rows of the data are used,
            and that a run was refused then tells something of them.
        key: of sampling and noise; by default a secret one from the operating system. A key that others know, as
            `SecretKey.for_tests(1)`, makes a test reproducible and protects nothing.
        ledger_path: where to keep the write-ahead ledger; by default in memory.
        postprocess: clippers of the released gradient (`dpclip.postprocess`), in order; free.
        accept_conditional: allow a rule whose promise rests on an assumption that nobody has checked; the guarantee
            says so.
        arithmetic: "exact" (sums and noise without rounding error) or "fast" (float32 products; the guarantee is then
            conditional).

    Raises:
        BadInput: values that are meaningless or contradict each other, with the remedy.
    """
    _refuse_gone(gone)
    check_dataset(dataset)
    check_optimizer_kind(optimizer)
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
        sampling=clipping.sampling if clipping else "poisson",
        arithmetic=arithmetic,
    )
    ledger = Ledger.create(ledger_path, plan)
    return assemble(
        model, optimizer, dataset, index, plan=plan, key=key or SecretKey.generate(), ledger=ledger,
        rule=clipping, grad_sample_mode=grad_sample_mode, examples=examples,
        physical_batch_size=min(32, plan.expected_batch_size) if physical_batch_size is None else physical_batch_size,
        rows_per_unit=rows_per_unit,
        collate=collate_fn, postprocess=postprocess, accept_conditional=accept_conditional,
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
    rule: ClippingRule | None,
    grad_sample_mode: str,
    physical_batch_size: int,
    rows_per_unit: int,
    collate: Callable[[list[Any]], Any],
    examples: Sequence[Any],
    postprocess: Sequence[GradientClipper],
    accept_conditional: bool = False,
    recheck: bool = True,
) -> PrivateTraining:
    """Build the stages around a plan that is already made; `make_private` and the command line meet here."""
    physical_batch_size = whole_number("physical_batch_size", physical_batch_size)
    rows_per_unit = whole_number("rows_per_unit", rows_per_unit)
    if physical_batch_size < 1 or rows_per_unit < 1:
        raise BadInput(f"physical batch size {physical_batch_size} and rows a unit {rows_per_unit} must be at least 1")
    check_one_process(model)
    check_batch_norm(model)
    check_stateful_layers(model)
    _check_mode(grad_sample_mode, plan)
    named = trainable(model)
    parameters = list(named.values())
    check_optimizer(optimizer, parameters)
    chosen = (rule or Flat()) if plan.private else Unclipped()
    groups = fit_rule(chosen, plan, model, accept_conditional)
    backend = make_backend(grad_sample_mode, model, parameters, groups, "sum", chosen.reshapes)
    for clipper in postprocess:
        clipper.bind(named.items(), private=plan.private)
    guard = UpdateGuard(optimizer, parameters, list(named))
    raw_gradients.guard(parameters)
    sampler = make_sampler(plan, len(index), key)
    engine = Engine(plan, parameters, chosen, groups, optimizer, guard, sampler, ledger, key, postprocess)
    packer = Packer(dataset, collate, physical_batch_size, rows_per_unit)
    checks = LoopChecks(
        engine, backend, packer, index, rows_per_unit=rows_per_unit, examples=examples,
        accept_conditional=accept_conditional, recheck=recheck,
    )  # fmt: skip
    return PrivateTraining(engine, backend, model, packer, index, rows_per_unit=rows_per_unit, checks=checks)


_GONE = {
    "seed": "sampling and noise always come from a key of the operating system; seed torch for the initial weights; a "
    "test that needs the same noise twice hands in key=SecretKey.for_tests(1)",
    "loss_reduction": "losses are handed over one a row: private.backward(losses), not losses.mean().backward()",
    "row_cost": "rows share a micro-batch if they have one shape, so there is nothing left to sort",
}


def _refuse_gone(gone: dict[str, Any]) -> None:
    """Arguments that earlier versions had, and typing errors."""
    for name in gone:
        if name not in _GONE:
            raise TypeError(f"make_private() got an unexpected keyword argument {name!r}")
        raise BadInput(f"make_private has no argument {name!r} any more: {_GONE[name]}")


def _check_mode(grad_sample_mode: str, plan: Plan) -> None:
    if grad_sample_mode == "ghost" and plan.private:
        raise BadInput(
            "gradient mode 'ghost' adds rows up inside autograd, where rounding is not bounded by what is paid for; it "
            "is a cross-check without privacy: choose bookkeeping"
        )


def fit_rule(rule: ClippingRule, plan: Plan, model: nn.Module, accept_conditional: bool) -> list[int]:
    """Tell a rule of the run and the model.

    Returns:
        the group of each parameter.

    Raises:
        BadInput: the rule needs other batches, its guarantee would be conditional, or its statistics cost more than a
            step has.
    """
    if plan.private and rule.sampling != plan.sampling:
        raise BadInput(
            f"clipping {rule.name} needs {rule.sampling} batches and the plan has {plan.sampling}: plan anew"
        )
    check_assumption(rule, accept_conditional)
    named = trainable(model)
    rule.settle(shape_of(plan))
    rule.meet(kinds(model))
    groups = rule.partition(list(named), [p.numel() for p in named.values()])
    try:
        noise.scale_noise(plan.noise_multiplier, rule.bounds(), rule.shares(), rule.side_queries())
    except noise.PrivacyError as error:
        raise BadInput(f"clipping {rule.name}: {error}") from error
    return groups


def shape_of(plan: Plan) -> RunShape:
    """What a rule may know of a plan."""
    return RunShape(plan.steps, plan.expected_batch_size, plan.scheme.participations(plan))


def check_assumption(rule: ClippingRule, accept_conditional: bool) -> None:
    """A guarantee that rests on an unchecked assumption has to be asked for.

    Raises:
        BadInput: it was not.
    """
    if rule.assumption and not accept_conditional:
        raise BadInput(
            f"the guarantee of this clipping rule would be conditional ({rule.assumption}): add --accept-conditional "
            "(accept_conditional=True) to have it all the same, or choose a mode that is proved"
        )
