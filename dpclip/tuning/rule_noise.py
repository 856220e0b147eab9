"""What a clipping rule's noise comes to on a plan, and the thresholds of error feedback that need
least of it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from dpclip.budget.plan import Plan, make_plan
from dpclip.clipping import ClippingRule, ErrorFeedback, make_rule
from dpclip.engine.setup import run_shape
from dpclip.errors import InputError
from dpclip.noise.mechanisms import MECHANISMS

_GRID = 400  # thresholds C1 that are tried between 0 and C3


@dataclass(frozen=True)
class RuleNoise:
    """A rule on a plan.

    Attributes:
        rule: its description.
        sampling: how its batches are drawn.
        noise_multiplier: sigma_eff.
        sensitivity: L2 norm of all that one unit can move, for the scheme's unit of composition.
        noise: standard deviation on each coordinate of the sum; the largest, where groups differ.
        epsilon: the target, which the plan keeps.
    """

    rule: dict[str, Any]
    sampling: str
    noise_multiplier: float
    sensitivity: float
    noise: float
    epsilon: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def noise_of_rule(rule: ClippingRule, plan: Plan) -> RuleNoise:
    """The noise of a rule whose sampling the plan has."""
    rule.set_run(run_shape(plan))
    sensitivity = math.sqrt(sum(bound**2 for bound in rule.bounds()))
    noise = MECHANISMS.make(plan.noise)
    scale = noise.scale(plan.noise_multiplier, rule.bounds(), rule.shares(), rule.side_queries())
    return RuleNoise(
        rule.describe(),
        plan.scheme.sampler_title,
        plan.noise_multiplier,
        sensitivity,
        max(scale.stds),
        plan.target_epsilon,
    )


def plan_of(
    rule: ClippingRule,
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    batch_size: int,
    accountant: str,
) -> Plan:
    """The plan of a rule at a sample rate; N is batch size over rate, rounded up.

    Raises:
        InputError: values that make no plan.
    """
    if not 0 < sample_rate <= 1:
        raise InputError(f"--sample-rate {sample_rate} must be in (0, 1]: give batch size / N")
    return make_plan(
        units=math.ceil(batch_size / sample_rate),
        expected_batch_size=batch_size,
        target_epsilon=epsilon,
        target_delta=delta,
        steps=steps,
        accountant=accountant,
        sampling=rule.sampling,
    )


def best_thresholds(rule: ErrorFeedback, plan: Plan) -> ErrorFeedback:
    """The same mode and cap C3, with the C1 that needs least noise.

    C3 is how much of a gradient may ever count, so rules with one C3 lose equally little; among
    them, less noise is better. In one-step mode that is C1 = C3 / 2, with noise C3 / sqrt(2).
    """
    rule.set_run(run_shape(plan))
    cap = rule.thresholds[2]
    if not rule.capped:
        return rule

    def at(first: float) -> ErrorFeedback:
        other = replace(
            rule, max_grad_norm=first, cap=cap, error_norm=max(first, rule.error_norm or 0.0)
        )
        other.set_run(run_shape(plan))
        return other

    return min(
        (at(cap * step / _GRID) for step in range(1, _GRID + 1)),
        key=lambda found: found.bounds()[0],
    )


def calibrate_rule(text: str, **schedule: Any) -> dict[str, Any]:
    """What `dpclip calibrate --clipping` prints: the rule as given, and for error feedback what
    would be best.
    """
    rule = make_rule(text)
    plan = plan_of(rule, **schedule)
    given = noise_of_rule(rule, plan)
    found = {
        "noise_multiplier": given.noise_multiplier,
        "epsilon": given.epsilon,
        **given.to_json(),
    }
    if not isinstance(rule, ErrorFeedback):
        return found
    flat = make_rule("flat")
    poisson = plan_of(flat, **schedule).noise_multiplier
    best = []
    for mode in ("one-step", "capped"):
        other = ErrorFeedback(rule.max_grad_norm, rule.error_norm, rule.cap, mode)
        other_plan = plan_of(other, **schedule)
        best.append(noise_of_rule(best_thresholds(other, other_plan), other_plan).to_json())
    return {**found, "best": best, "flat_at_the_same_cap": {"C": rule.cap or 2 * rule.max_grad_norm,
            "noise": poisson * (rule.cap or 2 * rule.max_grad_norm)}}  # fmt: skip
