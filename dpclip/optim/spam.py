"""SPAM: Adam that cuts spikes of single elements, and forgets its moments now and then."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dpclip.checks import fraction, not_negative
from dpclip.errors import InputError
from dpclip.optim.measured import MeasuredOptimizer, Share
from dpclip.postprocess.blocks import blocks_of, together
from dpclip.postprocess.norms import accumulation_dtype
from dpclip.postprocess.spike_aware import cut_spikes_, has_spikes


class SPAM(MeasuredOptimizer):
    """Adam with elements cut to sign(g) sqrt(threshold v) where g^2 > threshold v.

    v is the second moment before this step, uncorrected. Every `reset_interval` steps both moments
    are forgotten, and the learning rate rises again along half a cosine. As in the paper, the bias
    corrections go on from where they were, so that the first step after a reset is long, and the
    learning rate holds it down.

    Args:
        params: parameters or groups.
        lr: as in Adam; the decay is taken after the step.
        betas: as in Adam; the decay is taken after the step.
        eps: as in Adam; the decay is taken after the step.
        weight_decay: as in Adam; the decay is taken after the step.
        threshold: g^2 over v from which an element is a spike; 0 cuts none.
        reset_interval: steps between resets; 0: never.
        rewarmup_steps: N of the cosine, 1 - 0.99 (1 + cos(pi c/(N + 1)))/2 in the c-th step after a
            reset.
        skip_steps: steps at the start and after each reset in which nothing is cut.
        nonfinite: "skip", "raise" or "pass".
        match_published: cut elements that never had a gradient, too, to 0, where they stay, as the
            published code does.

    The published launcher passes the length of the learning rate's own warm-up (1,000) as N, so
    that the rate never recovers within 500 steps; the paper's N is 150.

    Reference: Huang et al., "SPAM: Spike-aware Adam with momentum reset for stable LLM training",
    2025.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        threshold: float = 5000.0,
        reset_interval: int = 500,
        rewarmup_steps: int = 150,
        skip_steps: int = 20,
        nonfinite: str = "skip",
        match_published: bool = False,
    ) -> None:
        own = {
            "threshold": threshold,
            "reset_interval": reset_interval,
            "rewarmup_steps": rewarmup_steps,
        }
        counts = {"total": 0, "since_reset": None}
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "skip_steps": skip_steps,
                "nonfinite": nonfinite,
                "match_published": match_published,
                **own,
                **counts,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        check_adam(group)
        not_negative("threshold", group["threshold"])
        for setting in ("reset_interval", "rewarmup_steps", "skip_steps"):
            whole_number(setting, group[setting])

    def _factor(self, group: dict[str, Any], norm: float) -> float:
        return 1.0

    def _update(self, share: Share) -> None:
        group = share.group
        group["total"] += 1
        interval, step = group["reset_interval"], group["total"]
        if interval and step % interval == 0:
            group["since_reset"] = 0
            self._forget(share.parameters)
        states = [moments(self.state[p], p) for p in share.parameters]
        gradients = share.gradients
        past = step % interval if interval else step
        if group["threshold"] and min(step, past) >= group["skip_steps"]:
            gradients = [
                self._cut(g, s["exp_avg_sq"], group) for g, s in zip(gradients, states, strict=True)
            ]
        adam_step(
            share.parameters,
            gradients,
            states,
            group,
            group["lr"] * self._scale(group),
            late_eps=True,
        )
        if group["weight_decay"] and share.parameters:
            torch._foreach_mul_(share.parameters, 1 - group["lr"] * group["weight_decay"])
        if group["since_reset"] is not None:
            group["since_reset"] += 1

    def _forget(self, parameters: list[Tensor]) -> None:
        for parameter in parameters:
            for name in ("exp_avg", "exp_avg_sq"):
                if name in self.state[parameter]:
                    self.state[parameter][name].zero_()

    @staticmethod
    def _cut(gradient: Tensor, usual: Tensor, group: dict[str, Any]) -> Tensor:
        parts = zip(blocks_of(gradient), blocks_of(usual), strict=True)
        if not any(has_spikes(part.square(), v, group["threshold"]) for part, v in parts):
            return gradient
        cut = gradient.clone()
        cut_spikes_(cut, usual, group["threshold"], never_seen=group["match_published"])
        return cut

    @staticmethod
    def _scale(group: dict[str, Any]) -> float:
        past, length = group["since_reset"], group["rewarmup_steps"]
        if past is None or past >= length:
            return 1.0
        return 1 - 0.99 * (1 + math.cos(math.pi * past / (length + 1))) / 2


# --- what SPAM and Stable-SPAM share --------------------------------------------------------------


def moments(state: dict[str, Any], parameter: Tensor) -> dict[str, Any]:
    """Return Adam's state of a parameter, begun at 0 if there is none.

    Args:
        state: of the parameter; filled in.
        parameter: any shape.

    Returns:
        the same state: "step", and both moments in the parameter's shape, float32 or wider.
    """
    if "exp_avg" not in state:
        state["step"] = 0
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros_like(
                parameter, dtype=accumulation_dtype(parameter), memory_format=torch.preserve_format
            )
    return state


def adam_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Any]],
    group: dict[str, Any],
    lr: float,
    *,
    late_eps: bool,
    beta1_scale: float = 1.0,
) -> None:
    """Take one step of Adam, in place.

    Args:
        parameters: n tensors, to be moved.
        gradients: float32 or wider, of the same shapes.
        states: as `moments` returns them.
        group: with "betas" and "eps".
        lr: step size.
        late_eps: eps beside the uncorrected root, as the first transformers' Adam has it; otherwise
            the corrected one.
        beta1_scale: what beta1 is multiplied by in this step.
    """
    if not parameters:
        return
    beta1, beta2 = group["betas"][0] * beta1_scale, group["betas"][1]
    for state in states:
        state["step"] += 1
    steps = [state["step"] for state in states]
    means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    for step in sorted(set(steps)):
        picked = [index for index, own in enumerate(steps) if own == step]
        size, root = lr / (1 - beta1**step), math.sqrt(1 - beta2**step)
        columns = [
            [column[index] for index in picked]
            for column in (parameters, gradients, means, squares)
        ]
        for part in together(columns):
            _move(
                part,
                (beta1, beta2),
                size * root if late_eps else size,
                1.0 if late_eps else root,
                group["eps"],
            )


def _move(
    columns: list[list[Tensor]], betas: tuple[float, float], size: float, root: float, eps: float
) -> None:
    """p - size m/(sqrt(v)/root + eps), after m and v have seen g.

    Columns of p, g, m and v that fit the cache.
    """
    parameters, gradients, means, squares = columns
    torch._foreach_lerp_(means, gradients, 1 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - betas[1])
    divisors = list(torch._foreach_sqrt(squares))
    if root != 1.0:
        torch._foreach_div_(divisors, root)
    torch._foreach_add_(divisors, eps)
    if parameters[0].dtype == means[0].dtype:
        torch._foreach_addcdiv_(parameters, means, divisors, -size)
        return
    moves = torch._foreach_div(means, divisors)
    torch._foreach_mul_(moves, -size)
    torch._foreach_add_(
        parameters, [move.to(p.dtype) for move, p in zip(moves, parameters, strict=True)]
    )


def check_adam(group: dict[str, Any]) -> None:
    """Refuse settings that Adam cannot use.

    Args:
        group: with "betas", "eps" and "weight_decay".

    Raises:
        InputError: a beta outside [0, 1), or one of the others outside [0, inf).
    """
    for name, beta in zip(("beta1", "beta2"), group["betas"], strict=True):
        fraction(name, beta)
    not_negative("eps", group["eps"])
    not_negative("weight_decay", group["weight_decay"])


def whole_number(name: str, value: Any) -> None:
    """Refuse what is no whole number of at least 0.

    Args:
        name: of the setting, for the message.
        value: what was given.

    Raises:
        InputError: it is no `int`, or negative.
    """
    if not isinstance(value, int) or value < 0:
        raise InputError(f"{name} is {value}, not a whole number of at least 0; give one")
