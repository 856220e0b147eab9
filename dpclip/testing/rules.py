"""Laws that every registered clipping rule must keep, whatever it does inside.

`tests/dpclip/clipping/test_clipping_laws.py` runs them over the registry; a rule registered
elsewhere can be held to them by calling `check_rule`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from dpclip.clipping import ClippingRule, Gradients, StepRelease
from dpclip.engine.rounding import norms_from_above
from dpclip.gradient_sum import GradientSum
from dpclip.noise.keystream import SecretKey
from dpclip.noise.release import WhiteGaussian
from dpclip.noise.scale import scale_noise
from dpclip.per_sample import FactoredView
from dpclip.per_sample.forms.factored import Dense
from dpclip.released import Receipt, Released
from dpclip.testing.exact_shift import SLACK, Step, ratio, squared_length, sums_of
from dpclip.testing.shift_cases import NOTHING, Case

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


def gradients(samples: int, scale: float, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Per-sample gradients, [samples, d] for each parameter; some saturate the rule, one is
    zero.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size in SIZES:
        values = torch.randn(samples, size, generator=generator, dtype=torch.float64) * scale
        values[::2] *= 1e3
        if samples > 2:
            values[2] = 0
        found.append(values.to(dtype))
    return found


def clipped(
    rule: ClippingRule, samples: list[Tensor]
) -> tuple[Gradients, dict[str, Tensor], Tensor]:
    """The view that the rule clips, its factors and its norms, as the engine makes them."""
    view = FactoredView(rule_groups(rule), len(samples[0]))
    for slot, values in enumerate(samples):
        view.add(slot, Dense(values))
    changed = rule.transformed(view)
    norms, finite = norms_from_above(changed.squared_norms(), rule.separable)
    return changed, {name: f * finite for name, f in rule.clip_factors(norms).items()}, norms


def contributions(rule: ClippingRule, samples: list[Tensor]) -> list[Tensor]:
    """What each sample adds to the released sum of each group, in float64: [samples, all of the
    group's elements].
    """
    view, clip_factors, _ = clipped(rule, samples)
    factors = clip_factors["release"].double()
    groups = rule_groups(rule)
    rows = []
    for index in range(factors.shape[1]):
        alone = torch.zeros_like(factors)
        alone[:, index] = factors[:, index]
        total = GradientSum.zeros(
            [torch.zeros(size, dtype=torch.float64) for size in SIZES], groups
        )
        view.weighted_sum(alone, total)
        rows.append(
            [
                torch.cat([t for t, g in zip(total.tensors, groups, strict=True) if g == k])
                for k in range(len(rule.bounds()))
            ]
        )
    return [torch.stack(parts) for parts in zip(*rows, strict=True)]


def empty_sum(rule: ClippingRule) -> GradientSum:
    """Zeros, one tensor a parameter."""
    return GradientSum.zeros([torch.zeros(size) for size in SIZES], rule_groups(rule))


def rule_groups(rule: ClippingRule) -> list[int]:
    """The group of each parameter, without making a rule that has learned forget."""
    return copy.deepcopy(rule).partition(NAMES, SIZES)


def factors_are_finite_and_not_negative(rule: ClippingRule) -> None:
    """For zero, tiny, huge and ordinary norms."""
    norms = torch.tensor([0.0, 1e-30, 1e-3, 1.0, 1e3, 1e18]).expand(len(rule.bounds()), -1)
    for name, factors in rule.clip_factors(norms).items():
        assert factors.shape == norms.shape, name
        assert bool(factors.isfinite().all()), name
        assert bool((factors >= 0).all()), name


def one_sample_stays_within_its_bound(rule: ClippingRule, scale: float, seed: int) -> None:
    """In every group and dtype, computed again in float64."""
    for dtype in DTYPES:
        for part, bound in zip(
            contributions(rule, gradients(6, scale, seed, dtype)), rule.bounds(), strict=True
        ):
            assert float(part.square().sum(1).sqrt().max()) <= bound * (1 + 1e-6)


def neighbouring_sums_differ_by_at_most_the_sensitivity(
    rule: ClippingRule, scale: float, seed: int
) -> None:
    """Remove each sample in turn: || f(D) - f(D') || <= sqrt(sum of squared bounds), in float64."""
    joint = math.sqrt(sum(bound**2 for bound in rule.bounds()))
    for dtype in DTYPES:
        samples = gradients(6, scale, seed, dtype)
        whole = [part.sum(0) for part in contributions(rule, samples)]
        for left_out in range(6):
            kept = [i for i in range(6) if i != left_out]
            rest = [part.sum(0) for part in contributions(rule, [s[kept] for s in samples])]
            gap = sum(float((a - b).square().sum()) for a, b in zip(whole, rest, strict=True))
            assert math.sqrt(gap) <= joint * (1 + 1e-6)


def a_sample_that_is_not_finite_contributes_nothing(rule: ClippingRule, seed: int) -> None:
    """NaN and infinity in one sample leave the others' contributions as they are (law 6).

    It contributes nothing to the group where it is not finite, and, unless the rule is separable,
    to no other.
    """
    samples = gradients(5, 1.0, seed, torch.float32)
    clean = [part.sum(0) for part in contributions(rule, [s[[0, 1, 2, 4]] for s in samples])]
    alone = contributions(rule, samples)
    for poison in (math.nan, math.inf, -math.inf):
        spoilt = [s.clone() for s in samples]
        spoilt[0][3, 1] = poison  # in the first group
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
    whole = rule.clip_factors(norms)
    for group in range(len(norms)):
        alone = torch.zeros_like(norms)
        alone[group] = norms[group]
        for name, factors in rule.clip_factors(alone).items():
            assert torch.equal(factors[group], whole[name][group])


def order_does_not_matter(rule: ClippingRule, scale: float, seed: int) -> None:
    """A permuted batch has the same contributions, permuted."""
    samples = gradients(6, scale, seed, torch.float64)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    straight = contributions(rule, samples)
    shuffled = contributions(rule, [s[order] for s in samples])
    for a, b in zip(straight, shuffled, strict=True):
        assert torch.allclose(a[order], b, rtol=1e-12, atol=0)


def an_empty_batch_is_fine(rule: ClippingRule) -> None:
    """No samples, no factors, and a sum of zeros that can still be combined."""
    groups = len(rule.bounds())
    clip_factors = rule.clip_factors(torch.ones(groups, 0))
    sums = {name: empty_sum(rule) for name in clip_factors}
    assert all(f.shape == (groups, 0) for f in clip_factors.values())
    assert all(bool((t == 0).all()) for t in rule.combine(sums).tensors)


def shares_are_a_budget(rule: ClippingRule) -> None:
    """Positive, one a group, summing to 1."""
    shares = rule.shares()
    assert len(shares) == len(rule.bounds())
    assert min(shares) > 0
    assert math.isclose(sum(shares), 1.0)


def side_statistics_stay_within_their_sensitivity(
    rule: ClippingRule, scale: float, seed: int
) -> None:
    """One sample's column is no longer than promised, whatever its norms, and depends on that
    sample alone.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = torch.rand(len(rule.bounds()), 9, generator=generator, dtype=torch.float64) * scale
    norms[:, 0], norms[:, 1], norms[:, 2] = 0.0, 1e-30, 1e18
    losses = torch.tensor(
        [[math.nan, math.inf, -math.inf, -1e18, 1e18, 0.0, 0.7, 5.0, 1e3]], dtype=torch.float64
    )
    for side in rule.side_queries():
        read = norms if side.reads == "norms" else losses
        statistics = side.per_sample(read)
        assert statistics.shape == (side.size, 9)
        assert float(statistics.double().square().sum(0).sqrt().max()) <= side.sensitivity * (
            1 + 1e-9
        )
        assert torch.equal(side.per_sample(read[:, 3:5]), statistics[:, 3:5])
        assert (side.relative_noise is None) != (side.share == 0)


def side_sums(rule: ClippingRule, norms: Tensor) -> dict[str, Tensor]:
    """The side statistics of samples whose losses, where a rule asks for them, are the norms of
    their first group.
    """
    reads = {"norms": norms, "losses": norms[:1]}
    return {s.name: s.per_sample(reads[s.reads]).sum(1).double() for s in rule.side_queries()}


def released_to(rule: ClippingRule, seed: int, divisor: float = 8.0) -> Released[StepRelease]:
    """What one step with random gradients, clipped by the rule, releases to it."""
    samples = gradients(6, 1.0, seed, torch.float32)
    view, clip_factors, norms = clipped(rule, samples)
    sums = {name: empty_sum(rule) for name in clip_factors}
    for name, factors in clip_factors.items():
        view.weighted_sum(factors, sums[name])
    scale = scale_noise(1.1, rule.bounds(), rule.shares(), rule.side_queries())
    assert scale.noise_multiplier == 1.1
    sides = side_sums(rule, norms)
    key = SecretKey.for_tests(seed)
    released = WhiteGaussian().release(
        rule.combine(sums), sides, scale, Receipt(seed, 0, 1.1, seed), key, divisor
    )
    return released.map(rule.inverted)


def what_it_learns_keeps_its_promises(make: Callable[[], ClippingRule], seed: int) -> None:
    """After some steps: nothing changed while a step was open, and all laws of a fresh rule still
    hold.
    """
    rule = partitioned(make)
    for step in range(4):
        before = (
            rule.bounds(),
            rule.shares(),
            [(q.name, q.noise_for(1.1)) for q in rule.side_queries()],
        )
        released = released_to(rule, seed + step)
        assert before == (
            rule.bounds(),
            rule.shares(),
            [(q.name, q.noise_for(1.1)) for q in rule.side_queries()],
        )
        rule.observe(released)
    one_sample_stays_within_its_bound(rule, 1.0, seed)
    neighbouring_sums_differ_by_at_most_the_sensitivity(rule, 1.0, seed)
    shares_are_a_budget(rule)
    assert all(0 < bound < math.inf for bound in rule.bounds())
    state = json.loads(json.dumps(rule.public_state()))  # as a checkpoint keeps it
    other = partitioned(make)
    other.load_public_state(state)
    other.load_tensor_state({name: value.clone() for name, value in rule.tensor_state().items()})
    assert other.bounds() == rule.bounds()
    for each in (rule, other):
        each.observe(released_to(each, seed + 9))
    assert other.bounds() == rule.bounds()
    assert other.public_state() == rule.public_state()
    for name, value in rule.tensor_state().items():
        assert torch.equal(other.tensor_state()[name], value), name


def state_survives_a_round_trip(make: Callable[[], ClippingRule]) -> None:
    """A fresh rule with the saved state promises the same."""
    rule, other = partitioned(make), partitioned(make)
    other.load_public_state(rule.public_state())
    assert other.bounds() == rule.bounds()
    assert other.describe() == rule.describe()


def adding_a_unit_moves_the_exact_sum_by_at_most_its_limit(
    rule: ClippingRule, mode: str, case: Case
) -> float:
    """Whatever the gradients, wherever the unit stands: in fractions, with the arithmetic of a run.

    Returns:
        the longest move over its limit.
    """
    others = 5
    inputs, targets = case.units(others + 1)
    step = Step(case.net(), rule, mode, (inputs[1:2], targets[1:2]))
    orders = [[*range(place), others, *range(place, others)] for place in (0, others // 2, others)]
    without, *found = [step.sums(inputs, targets, order) for order in (range(others), *orders)]
    step.close()
    worst = 0.0
    for engine in found:
        for name, limits in rule.limits().items():
            worst = max(worst, ratio(sums_of(engine)[name], sums_of(without)[name], limits))
        moved = ratio(rule.combine(sums_of(engine)), rule.combine(sums_of(without)), rule.bounds())
        assert moved < 1e-9 or rule.separable or case.kind not in NOTHING
        for side in rule.side_queries():
            ours, theirs = engine._current().sides[side.name], without._current().sides[side.name]
            assert squared_length(ours - theirs) <= SLACK * Fraction(side.sensitivity) ** 2
    return worst


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
    side_statistics_stay_within_their_sensitivity(rule, scale, seed)
    state_survives_a_round_trip(make)
    what_it_learns_keeps_its_promises(make, seed)
