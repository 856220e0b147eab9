"""Laws that every registered clipping rule must keep, whatever it does inside.

`tests/dpclip/clipping/test_laws.py` runs them over the registry; a rule registered elsewhere can be held to them by
calling `check_rule`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dpclip.clipping import ClippingRule
from dpclip.gradient_sum import GradientSum

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
NAMES = (
    "h.0.mlp.weight",
    "h.0.mlp.bias",
    "h.1.mlp.weight",
    "h.1.q.lora_A.weight",
    "h.1.q.lora_B.weight",
    "head.weight",
)
SIZES = (5, 2, 7, 4, 3, 7)


def partitioned(make: Callable[[], ClippingRule]) -> ClippingRule:
    """A fresh rule that knows a model of several layers."""
    rule = make()
    groups = rule.partition(NAMES, SIZES)
    assert sorted(set(groups)) == list(range(len(rule.bounds())))
    assert groups == rule.partition(NAMES, SIZES)
    return rule


def gradients(rule: ClippingRule, samples: int, scale: float, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Per-sample gradients of one parameter a group, [samples, 7] each; some saturate the rule, one is zero."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in rule.bounds():
        values = torch.randn(samples, 7, generator=generator, dtype=torch.float64) * scale
        values[::2] *= 1e3
        if samples > 2:
            values[2] = 0
        found.append(values.to(dtype))
    return found


def contributions(rule: ClippingRule, samples: list[Tensor]) -> list[Tensor]:
    """What each sample adds to the sum, in float64, with the engine's own norms."""
    from dpclip.engine import _norms

    squared = torch.stack([s.to(torch.promote_types(s.dtype, torch.float32)).square().sum(1) for s in samples])
    norms, finite = _norms(squared, rule.separable)
    factors = (rule.weightings(norms)["release"] * finite).double()
    return [torch.nan_to_num(s.double()) * f.unsqueeze(1) for s, f in zip(samples, factors, strict=True)]


def factors_are_finite_and_not_negative(rule: ClippingRule) -> None:
    """For zero, tiny, huge and ordinary norms."""
    norms = torch.tensor([0.0, 1e-30, 1e-3, 1.0, 1e3, 1e18]).expand(len(rule.bounds()), -1)
    for name, factors in rule.weightings(norms).items():
        assert factors.shape == norms.shape, name
        assert bool(factors.isfinite().all()), name
        assert bool((factors >= 0).all()), name


def one_sample_stays_within_its_bound(rule: ClippingRule, scale: float, seed: int) -> None:
    """In every group and dtype, computed again in float64."""
    for dtype in DTYPES:
        for part, bound in zip(contributions(rule, gradients(rule, 6, scale, seed, dtype)), rule.bounds(), strict=True):
            assert float(part.square().sum(1).sqrt().max()) <= bound * (1 + 1e-6)


def neighbouring_sums_differ_by_at_most_the_sensitivity(rule: ClippingRule, scale: float, seed: int) -> None:
    """Remove each sample in turn: || f(D) - f(D') || <= sqrt(sum of squared bounds), in float64."""
    joint = math.sqrt(sum(bound**2 for bound in rule.bounds()))
    for dtype in DTYPES:
        samples = gradients(rule, 6, scale, seed, dtype)
        whole = [part.sum(0) for part in contributions(rule, samples)]
        for left_out in range(6):
            kept = [i for i in range(6) if i != left_out]
            rest = [part.sum(0) for part in contributions(rule, [s[kept] for s in samples])]
            gap = sum(float((a - b).square().sum()) for a, b in zip(whole, rest, strict=True))
            assert math.sqrt(gap) <= joint * (1 + 1e-6)


def a_sample_that_is_not_finite_contributes_nothing(rule: ClippingRule, seed: int) -> None:
    """NaN and infinity in one sample leave the others' contributions as they are (law 6).

    It contributes nothing to the group where it is not finite, and, unless the rule is separable, to no other.
    """
    samples = gradients(rule, 5, 1.0, seed, torch.float32)
    clean = [part.sum(0) for part in contributions(rule, [s[[0, 1, 2, 4]] for s in samples])]
    alone = contributions(rule, samples)
    for poison in (math.nan, math.inf, -math.inf):
        spoilt = [s.clone() for s in samples]
        spoilt[0][3, 1] = poison
        found = [part.sum(0) for part in contributions(rule, spoilt)]
        for group, (a, b) in enumerate(zip(found, clean, strict=True)):
            counted = alone[group][3] if rule.separable and group > 0 else 0.0
            assert torch.allclose(a, b + counted, rtol=1e-12, atol=1e-12)


def a_separable_rule_looks_at_one_group_at_a_time(rule: ClippingRule, seed: int) -> None:
    """Row k of every weighting is the same whatever the other groups' norms are, zero included."""
    if not rule.separable:
        return
    generator = torch.Generator().manual_seed(seed)
    norms = torch.rand(len(rule.bounds()), 5, generator=generator, dtype=torch.float64) * 10
    whole = rule.weightings(norms)
    for group in range(len(norms)):
        alone = torch.zeros_like(norms)
        alone[group] = norms[group]
        for name, factors in rule.weightings(alone).items():
            assert torch.equal(factors[group], whole[name][group])


def order_does_not_matter(rule: ClippingRule, scale: float, seed: int) -> None:
    """A permuted batch has the same contributions, permuted."""
    samples = gradients(rule, 6, scale, seed, torch.float64)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    straight = contributions(rule, samples)
    shuffled = contributions(rule, [s[order] for s in samples])
    for a, b in zip(straight, shuffled, strict=True):
        assert torch.allclose(a[order], b, rtol=1e-12, atol=0)


def an_empty_batch_is_fine(rule: ClippingRule) -> None:
    """No samples, no factors, and a sum of zeros that can still be combined."""
    groups = len(rule.bounds())
    weightings = rule.weightings(torch.ones(groups, 0))
    parameters = [torch.zeros(3) for _ in range(groups)]
    sums = {name: GradientSum.zeros(parameters, list(range(groups))) for name in weightings}
    assert all(f.shape == (groups, 0) for f in weightings.values())
    assert all(bool((t == 0).all()) for t in rule.combine(sums).tensors)


def shares_are_a_budget(rule: ClippingRule) -> None:
    """Positive, one a group, summing to 1."""
    shares = rule.shares()
    assert len(shares) == len(rule.bounds())
    assert min(shares) > 0
    assert math.isclose(sum(shares), 1.0)


def state_survives_a_round_trip(make: Callable[[], ClippingRule]) -> None:
    """A fresh rule with the saved state promises the same."""
    rule, other = partitioned(make), partitioned(make)
    other.load_public_state(rule.public_state())
    assert other.bounds() == rule.bounds()
    assert other.describe() == rule.describe()


def check_rule(make: Callable[[], ClippingRule], scale: float = 1.0, seed: int = 0) -> None:
    """All laws at once, for a rule whose bounds are finite."""
    rule = partitioned(make)
    factors_are_finite_and_not_negative(rule)
    one_sample_stays_within_its_bound(rule, scale, seed)
    neighbouring_sums_differ_by_at_most_the_sensitivity(rule, scale, seed)
    a_sample_that_is_not_finite_contributes_nothing(rule, seed)
    a_separable_rule_looks_at_one_group_at_a_time(rule, seed)
    order_does_not_matter(rule, scale, seed)
    an_empty_batch_is_fine(rule)
    shares_are_a_budget(rule)
    state_survives_a_round_trip(make)
