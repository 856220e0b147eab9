"""An audit of clipping rules: one canary, told from the released values by the likelihood ratio
itself.

A rule runs twice on the same released values, with the canary in its data and without; what the
canary moves in each release is the difference of the two sums, so the likelihood ratio of a whole
run is known exactly. Runs with and without the canary then give a lower bound on epsilon (Clopper
and Pearson), and each run's energy is held to the bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor

from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan, make_plan
from dpclip.clipping import ClippingRule, RunShape, StepRelease
from dpclip.gradient_sum import GradientSum
from dpclip.noise.keystream import SecretKey
from dpclip.noise.release import WhiteGaussian
from dpclip.noise.scale import NoiseScale, scale_noise
from dpclip.released import Receipt
from dpclip.testing.rules import NAMES, SIZES, clipped, rule_groups, side_sums

UNITS, STEPS, DELTA = 12, 4, 1e-2
# everybody's coin comes up, where it may
BATCHES = {
    "poisson": UNITS,
    "filtered": UNITS,
    "halves": UNITS // 2,
    "passes": UNITS // STEPS,
}
Noise = Callable[[float, ClippingRule], NoiseScale]


@dataclass(frozen=True)
class Run:
    """One run: the log-likelihood ratio of canary against none, and the canary's energy over what
    was paid for.
    """

    ratio: float
    energy: float


def plan_for(rule: ClippingRule, epsilon: float) -> Plan:
    """The plan whose accounting the rule claims."""
    return make_plan(
        units=UNITS,
        expected_batch_size=BATCHES[rule.sampling],
        target_epsilon=epsilon,
        target_delta=DELTA,
        steps=STEPS,
        sampling=rule.sampling,
    )


def as_stated(sigma: float, rule: ClippingRule) -> NoiseScale:
    """The noise of the product."""
    return scale_noise(sigma, rule.bounds(), rule.shares(), rule.side_queries())


def run(
    make: Callable[[], ClippingRule],
    plan: Plan,
    *,
    canary: bool,
    seed: int,
    gradient: float,
    noise: Noise,
) -> Run:
    """One run of the rule over three bystanders, and the canary where it is drawn."""
    twins = [make(), make()]
    for rule in twins:
        rule.set_run(
            RunShape(plan.steps, plan.expected_batch_size, plan.scheme.participations(plan))
        )
        rule.partition(NAMES, SIZES)
    ledger = Ledger.create(None, plan)
    ratio = energy = paid = 0.0
    for step in range(plan.steps):
        drawn = {"poisson": True, "filtered": True, "halves": step % 2 == 0, "passes": step == 0}[
            plan.sampling
        ]
        sums, sides = zip(
            *(
                _sums(rule, step, gradient if with_it and drawn else None)
                for rule, with_it in zip(twins, (True, False), strict=True)
            ),
            strict=True,
        )
        sigma = ledger.admitted_noise(step, 0, twins[0].noise_preference())
        scale = noise(sigma, twins[0])
        moved = [a - b for a, b in zip(sums[0].tensors, sums[1].tensors, strict=True)]
        moved_sides = {name: sides[0][name] - sides[1][name] for name in sides[0]}
        base = [t.clone() for t in sums[1].tensors]
        total, side = (sums[0], sides[0]) if canary else (sums[1], sides[1])
        left = ledger.charge(step, 0, sigma).budget_left
        receipt = Receipt(step, 0, scale.noise_multiplier, step, None, left)
        paid += sigma**-2
        found = WhiteGaussian().release(
            total,
            {k: v.clone() for k, v in side.items()},
            scale,
            receipt,
            SecretKey.for_tests(seed),
            1.0,
        )
        parts = [
            (x - b, v, scale.stds[k])
            for x, b, v, k in zip(
                found.value.gradient, base, moved, rule_groups(twins[0]), strict=True
            )
        ]
        parts += [
            (found.value.sides[k] - sides[1][k], v, scale.side_stds[k])
            for k, v in moved_sides.items()
        ]
        for x, v, std in parts:
            size = float(v.double().square().sum()) / std**2
            ratio += float((x.double() * v.double()).sum()) / std**2 - size / 2
            energy += size
        public = found.map(lambda r, b=plan.expected_batch_size: _divided(r, b))
        for rule in twins:
            rule.observe(public.map(rule.inverted))
    whole = paid if plan.sampling == "filtered" else plan.whole[1] / plan.noise_multiplier**2
    return Run(ratio, energy / whole)


def _divided(step: StepRelease, batch: int) -> StepRelease:
    return replace(step, gradient=[t / batch for t in step.gradient], divisor=batch)


def _sums(
    rule: ClippingRule, step: int, canary: float | None
) -> tuple[GradientSum, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    samples = [torch.randn(3, size, generator=generator) for size in SIZES]
    if canary is not None:
        samples = [torch.cat([s, torch.full((1, s.shape[1]), canary)]) for s in samples]
    view, clip_factors, norms = clipped(rule, samples)
    sums = {
        name: GradientSum.zeros([torch.zeros(size) for size in SIZES], rule_groups(rule))
        for name in clip_factors
    }
    for name, factors in clip_factors.items():
        view.weighted_sum(factors, sums[name])
    return rule.combine(sums), side_sums(rule, norms)


def lower_bound(
    positive: np.ndarray, negative: np.ndarray, delta: float, confidence: float = 0.999
) -> float:
    """epsilon that a threshold on the likelihood ratio proves, in either direction.

    The threshold is chosen on half of the runs and tested on the other half.
    """
    best = 0.0
    for one, other in ((positive, negative), (-negative, -positive)):
        half = len(one) // 2
        chosen = max(
            np.unique(np.concatenate([one[:half], other[:half]])),
            key=lambda t: _bound(one[:half], other[:half], t, delta, 0.5),
        )
        best = max(best, _bound(one[half:], other[half:], chosen, delta, confidence))
    return best


def _bound(
    one: np.ndarray, other: np.ndarray, threshold: float, delta: float, confidence: float
) -> float:
    hits, false = int((one >= threshold).sum()), int((other >= threshold).sum())
    risk = (1 - confidence) / 2
    low = float(beta.ppf(risk, hits, len(one) - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - risk, false + 1, len(other) - false)) if false < len(other) else 1.0
    return math.log((low - delta) / high) if low > delta else 0.0


def audit(
    make: Callable[[], ClippingRule],
    epsilon: float,
    trials: int,
    gradient: float = 1e3,
    noise: Noise = as_stated,
) -> tuple[float, float]:
    """The lower bound on epsilon, and the largest energy of a canary over what the plan's noise
    pays for.
    """
    plan = plan_for(make(), epsilon)
    arms = [
        [
            run(make, plan, canary=canary, seed=2 * trial + canary, gradient=gradient, noise=noise)
            for trial in range(trials)
        ]
        for canary in (True, False)
    ]
    ratios = [np.array([r.ratio for r in arm]) for arm in arms]
    return lower_bound(*ratios, DELTA), max(r.energy for arm in arms for r in arm)
