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
from dpclip.ledger import Commitments, Ledger
from dpclip.per_sample import make_backend
from dpclip.plan import Plan, make_plan
from dpclip.postprocess import GradientClipper
from dpclip.preflight import check_batch_norm
from dpclip.private import PrivateTraining, RowDataset, UnitIndex
from dpclip.randomness import SecretKey
from dpclip.sampling import make_sampler


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
    postprocess: Sequence[GradientClipper] = (),
    accept_conditional: bool = False,
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
        grad_sample_mode: "auto" (book-keeping), "bookkeeping", "ghost", "hooks" or "functorch".
        loss_reduction: how your loss is reduced over the units of a micro-batch, "mean" or "sum".
        units: the privacy unit of each row (a person's id, say); by default each row is its own unit.
        rows_per_unit: most rows of one unit in one step, drawn afresh each step.
        public_units: N, if the true number is itself private; by default the exact number, taken as public.
        seed: reproducible randomness; the guarantee is then conditional on the seed's secrecy.
        ledger_path: where to keep the write-ahead ledger; by default in memory.
        postprocess: clippers of the released gradient (`dpclip.postprocess`), in order; free.
        accept_conditional: allow a rule whose promise rests on an assumption that nobody has checked; the guarantee
            says so.

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
        sampling=clipping.sampling if clipping else "poisson",
    )
    key = SecretKey.generate() if seed is None else SecretKey.from_seed(seed)
    ledger = Ledger.create(ledger_path, plan)
    return assemble(
        model, optimizer, dataset, index, plan=plan, key=key, ledger=ledger, commitments=Commitments(None),
        rule=clipping, grad_sample_mode=grad_sample_mode, loss_reduction=loss_reduction,
        physical_batch_size=physical_batch_size or min(32, expected_batch_size), rows_per_unit=rows_per_unit,
        collate=collate_fn, row_cost=row_cost, postprocess=postprocess, accept_conditional=accept_conditional,
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
    postprocess: Sequence[GradientClipper],
    accept_conditional: bool = False,
) -> PrivateTraining:
    """Build the stages around a plan that is already made; `make_private` and the command line meet here."""
    if physical_batch_size < 1 or rows_per_unit < 1:
        raise BadInput(f"physical batch size {physical_batch_size} and rows a unit {rows_per_unit} must be at least 1")
    if loss_reduction not in ("mean", "sum"):
        raise BadInput(f"loss_reduction {loss_reduction!r} is unknown: choose one of mean, sum")
    check_batch_norm(model)
    named = trainable(model)
    parameters = list(named.values())
    check_optimizer(optimizer, parameters)
    chosen = (rule or Flat()) if plan.private else Unclipped()
    groups = fit_rule(chosen, plan, model, accept_conditional)
    backend = make_backend(grad_sample_mode, model, parameters, groups, loss_reduction, chosen.reshapes)
    for clipper in postprocess:
        clipper.bind(named.items(), private=plan.private)
    raw_gradients.guard(parameters)
    sampler = make_sampler(plan, len(index), key)
    engine = Engine(plan, parameters, chosen, groups, optimizer, sampler, ledger, commitments, key, postprocess)
    return PrivateTraining(
        engine, backend, dataset, index,
        physical_batch_size=physical_batch_size, rows_per_unit=rows_per_unit, collate=collate, row_cost=row_cost,
    )  # fmt: skip


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
