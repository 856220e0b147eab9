"""What is settled between a model, an optimizer, a rule and a plan before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from dpclip import raw_gradients
from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan, whole_number
from dpclip.clipping import ClippingRule, Flat, ParameterKind, RunShape, Unclipped
from dpclip.clipping.per_group import is_adapter
from dpclip.diagnosis.model_check import check_batch_norm
from dpclip.engine.engine import Engine
from dpclip.engine.loop_checks import LoopChecks
from dpclip.engine.private_training import PrivateTraining, Recorder
from dpclip.errors import InputError, PrivacyError
from dpclip.guards.model_state import check_stateful_layers
from dpclip.guards.one_process import check_one_process
from dpclip.guards.update_guard import UpdateGuard
from dpclip.noise.keystream import SecretKey
from dpclip.noise.mechanisms import MECHANISMS
from dpclip.per_sample import make_backend
from dpclip.postprocess import GradientClipper
from dpclip.sampling.micro_batches import Packer
from dpclip.sampling.units import RowDataset, UnitIndex


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters by name, tied ones once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_kinds(model: nn.Module) -> list[ParameterKind]:
    """What each trainable parameter is; an embedding that is also the head is an embedding."""
    embeddings = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }

    def kind(name: str, parameter: nn.Parameter) -> ParameterKind:
        if is_adapter(name):
            return "adapter"
        return (
            "embedding"
            if id(parameter) in embeddings
            else "matrix"
            if parameter.dim() > 1
            else "vector"
        )

    return [kind(name, parameter) for name, parameter in trainable_parameters(model).items()]


def check_optimizer(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """The optimizer must update exactly the parameters that are watched, or training silently does
    nothing.

    Raises:
        InputError: parameters missing from the optimizer, or unknown to the model.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
    wanted = {id(p) for p in parameters}
    if not wanted:
        raise InputError("the model has no trainable parameter: unfreeze some, or add adapters")
    if held != wanted:
        raise InputError(
            f"the optimizer holds {len(held)} trainable parameters, the model {len(wanted)}, "
            f"{len(held & wanted)} in common: build the optimizer from the model's trainable "
            "parameters, after any move to a device or wrapping"
        )


def configure_rule(
    rule: ClippingRule, plan: Plan, model: nn.Module, accept_conditional: bool
) -> list[int]:
    """Tell a rule of the run and the model.

    Returns:
        the group of each parameter.

    Raises:
        InputError: the rule needs other batches, its guarantee would be conditional, or its
            statistics cost more than a step has.
    """
    if plan.private and rule.sampling != plan.sampling:
        raise InputError(
            f"clipping {rule.name} needs {rule.sampling} batches and the plan has {plan.sampling}: "
            "plan anew"
        )
    check_assumption(rule, accept_conditional)
    named = trainable_parameters(model)
    rule.set_run(run_shape(plan))
    rule.set_parameter_kinds(parameter_kinds(model))
    groups = rule.partition(list(named), [p.numel() for p in named.values()])
    try:
        noise = MECHANISMS.make(plan.noise)
        noise.scale(plan.noise_multiplier, rule.bounds(), rule.shares(), rule.side_queries())
    except PrivacyError as error:
        raise InputError(f"clipping {rule.name}: {error}") from error
    return groups


def run_shape(plan: Plan) -> RunShape:
    """What a rule may know of a plan."""
    return RunShape(plan.steps, plan.expected_batch_size, plan.scheme.participations(plan))


def check_assumption(rule: ClippingRule, accept_conditional: bool) -> None:
    """A guarantee that rests on an unchecked assumption has to be asked for.

    Raises:
        InputError: it was not.
    """
    if rule.assumption and not accept_conditional:
        raise InputError(
            f"the guarantee of this clipping rule would be conditional ({rule.assumption}): add "
            "--accept-conditional (accept_conditional=True) to have it all the same, or choose a "
            "mode that is proved"
        )


def build_private_training(
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
    recorder: Recorder | None = None,
) -> PrivateTraining:
    """Build the stages around a plan that is already made.

    `make_private`, `resume` and the command line meet here; `make_private` says what the arguments
    are.

    Args:
        index: which rows belong to which unit.
        plan: fixed before.
        ledger: charges steps against the plan.
        rule: of clipping; without privacy there is none.
        recheck: check the loop again now and then.
        recorder: keeps the run in a folder.
    """
    physical_batch_size = whole_number("physical_batch_size", physical_batch_size)
    rows_per_unit = whole_number("rows_per_unit", rows_per_unit)
    if physical_batch_size < 1 or rows_per_unit < 1:
        raise InputError(
            f"physical batch size {physical_batch_size} and rows a unit {rows_per_unit} must be at "
            "least 1"
        )
    check_one_process(model)
    check_batch_norm(model)
    check_stateful_layers(model)
    _check_mode(grad_sample_mode, plan)
    named = trainable_parameters(model)
    parameters = list(named.values())
    check_optimizer(optimizer, parameters)
    chosen = (rule or Flat()) if plan.private else Unclipped()
    groups = configure_rule(chosen, plan, model, accept_conditional)
    backend = make_backend(grad_sample_mode, model, parameters, groups, "sum", chosen.transforms)
    for clipper in postprocess:
        clipper.bind(named.items(), private=plan.private)
    guard = UpdateGuard(optimizer, parameters, list(named))
    raw_gradients.guard(parameters)
    sampler = plan.scheme.sampler(plan, len(index), key)
    engine = Engine(
        plan=plan,
        parameters=parameters,
        rule=chosen,
        groups=groups,
        optimizer=optimizer,
        guard=guard,
        sampler=sampler,
        ledger=ledger,
        key=key,
        noise=MECHANISMS.make(plan.noise),
        postprocess=postprocess,
    )
    packer = Packer(dataset, collate, physical_batch_size, rows_per_unit)
    checks = LoopChecks(
        engine, backend, packer, index, rows_per_unit=rows_per_unit, examples=examples,
        accept_conditional=accept_conditional, recheck=recheck,
    )  # fmt: skip
    return PrivateTraining(
        engine,
        backend,
        model,
        packer,
        index,
        rows_per_unit=rows_per_unit,
        checks=checks,
        recorder=recorder,
    )


def _check_mode(grad_sample_mode: str, plan: Plan) -> None:
    if grad_sample_mode == "ghost" and plan.private:
        raise InputError(
            "gradient mode 'ghost' adds rows up inside autograd, where rounding is not bounded by "
            "what is paid for; it is a cross-check without privacy: choose bookkeeping"
        )
