"""What is settled between a model, an optimizer, a rule and a plan before the first step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dpclip.budget.plan import Plan
from dpclip.clipping import ClippingRule, ParameterKind, RunShape
from dpclip.clipping.per_group import is_adapter
from dpclip.errors import InputError, PrivacyError
from dpclip.noise.mechanisms import MECHANISMS


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
