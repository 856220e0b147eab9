"""Rules that learn their thresholds from released statistics: where they end up, and what the
statistics cost.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dpclip.clipping import (
    ClippingRule,
    HistogramError,
    HistogramQuantile,
    PerLayerQuantile,
    Quantile,
    StepRelease,
    make_rule,
)
from dpclip.errors import InputError
from dpclip.gradient_sum import GradientSum
from dpclip.noise.keystream import SecretKey
from dpclip.noise.release import WhiteGaussian
from dpclip.noise.scale import scale_noise
from dpclip.released import Receipt, Released

BATCH = 400
KEY = SecretKey.for_tests(1)


def step(
    rule: ClippingRule, norms: Tensor, index: int, sigma: float = 1.0
) -> Released[StepRelease]:
    """One release of the rule's side statistics over these norms [K, B], as the engine makes it."""
    scale = scale_noise(sigma, rule.bounds(), rule.shares(), rule.side_queries())
    sides = {side.name: side.per_sample(norms).sum(1).double() for side in rule.side_queries()}
    total = GradientSum.zeros(
        [torch.zeros(3) for _ in rule.bounds()], list(range(len(rule.bounds())))
    )
    return WhiteGaussian().release(total, sides, scale, Receipt(index, 0, sigma, index), KEY, BATCH)


def learn(
    rule: ClippingRule, draw: Callable[[torch.Generator], Tensor], steps: int = 150
) -> list[list[float]]:
    """The thresholds after each step."""
    generator, seen = torch.Generator().manual_seed(0), []
    for index in range(steps):
        rule.observe(step(rule, draw(generator), index))
        seen.append(rule.bounds())
    return seen


def lognormal(generator: torch.Generator, groups: int = 1) -> Tensor:
    centres = torch.tensor([10.0**-k for k in range(groups)]).unsqueeze(1)
    return centres * torch.randn(groups, BATCH, generator=generator).mul(0.7).exp()


@pytest.mark.parametrize(("wanted", "value"), [(0.5, 1.0), (0.9, math.exp(0.7 * 1.2816))])
def test_the_threshold_settles_at_the_quantile(wanted: float, value: float) -> None:
    seen = learn(Quantile(quantile=wanted), lognormal)
    assert sum(c for (c,) in seen[-50:]) / 50 == pytest.approx(value, rel=0.1)


def test_each_layer_settles_at_its_own_quantile() -> None:
    rule = PerLayerQuantile()
    rule.partition(["a.weight", "b.weight", "c.weight"], [10, 10, 10])
    seen = learn(rule, lambda generator: lognormal(generator, 3))
    means = torch.tensor(seen[-50:]).mean(0).tolist()
    assert means == pytest.approx([1.0, 0.1, 0.01], rel=0.15)


def test_a_high_first_rate_finds_a_far_quantile_sooner_and_settles_as_well() -> None:
    def within(steps: int, first_rate: float) -> float:
        rule = Quantile(max_grad_norm=0.005, first_rate=first_rate)
        (bound,) = learn(rule, lognormal, steps=steps)[-1]
        return bound

    assert within(20, 0.0) < 0.05
    assert within(20, 2.0) == pytest.approx(1.0, rel=0.5)
    rule = Quantile(max_grad_norm=0.005, first_rate=2.0)
    assert sum(c for (c,) in learn(rule, lognormal)[-50:]) / 50 == pytest.approx(1.0, rel=0.1)


def test_thresholds_can_be_held_to_one_joint_norm() -> None:
    rule = PerLayerQuantile(total=2.0)
    rule.partition(["a.weight", "b.weight"], [10, 10])
    for bounds in learn(rule, lambda generator: lognormal(generator, 2), steps=20):
        assert math.sqrt(sum(c**2 for c in bounds)) == pytest.approx(2.0)


@pytest.mark.parametrize("groups", [1, 2, 12])
def test_counts_cost_what_the_paper_says(groups: int) -> None:
    """z_D = (z^-2 - sum of (2 sigma_b)^-2)^(-1/2): Andrew et al. for one group, K counts for K."""
    rule = PerLayerQuantile(count_noise=5.0 * groups)
    rule.partition([f"{k}.weight" for k in range(groups)], [7] * groups)
    scale = scale_noise(1.0, rule.bounds(), rule.shares(), rule.side_queries())
    gradient = 1 / math.sqrt(
        sum((c / s) ** 2 for c, s in zip(rule.bounds(), scale.stds, strict=True))
    )
    expected = (1 - groups * (2 * 5.0 * groups) ** -2) ** -0.5
    assert gradient == pytest.approx(expected, rel=2e-3)
    assert scale.side_stds["within"] == pytest.approx(5.0 * groups, rel=2e-3)


def test_the_published_example_of_one_percent() -> None:
    scale = scale_noise(1.0, [1.0], [1.0], Quantile(count_noise=5.0).side_queries())
    assert scale.stds[0] == pytest.approx(1.005, rel=1.2e-3)  # batch 100, sigma_b = 5


def test_a_share_of_the_budget_is_possible_at_any_noise() -> None:
    for sigma in (0.3, 1.0, 50.0):
        scale = scale_noise(sigma, [1.0], [1.0], Quantile(budget_share=0.01).side_queries())
        assert scale.stds[0] == pytest.approx(sigma / math.sqrt(0.99), rel=2e-3)


def test_an_empty_batch_moves_the_threshold_by_a_bounded_factor() -> None:
    rule = Quantile(0.1, rate=0.2)
    rule.observe(step(rule, torch.zeros(1, 0), 0))
    assert 0.1 < rule.bounds()[0] < 0.1 * math.exp(0.2)


def test_dc_sgd_p_finds_the_quantile_in_the_noisy_histogram() -> None:
    seen = learn(HistogramQuantile(quantile=0.5), lognormal, steps=60)
    assert sum(c for (c,) in seen) / len(seen) == pytest.approx(1.0, rel=0.15)


def test_dc_sgd_e_clips_lower_where_noise_costs_more() -> None:
    def settled(size: int) -> float:
        rule = HistogramError()
        rule.partition(["w"], [size])
        return sum(c for (c,) in learn(rule, lognormal, steps=40)[-20:]) / 20

    few, many = settled(10), settled(10_000_000)
    assert many < 0.3 < 1.5 < few


def test_dc_sgd_e_minimises_the_error_it_names() -> None:
    """Against the same objective on the true norms, computed by brute force."""
    rule = HistogramError(bins=200, budget_share=0.9, floor=6)
    rule.partition(["w"], [20_000])
    generator = torch.Generator().manual_seed(3)
    norms = lognormal(generator)
    released = step(rule, norms, 0, sigma=0.01)
    rule.observe(released)
    noise = (0.01 / math.sqrt(0.1) / BATCH) ** 2 * 20_000
    grid = torch.logspace(-3, 3, 4000, dtype=torch.float64)
    errors = noise * grid**2 + (norms.double().mT - grid).clamp(min=0).square().mean(0)
    assert rule.bounds()[0] == pytest.approx(float(grid[errors.argmin()]), rel=0.1)


def test_histograms_are_charged_only_when_taken() -> None:
    rule = HistogramQuantile(every=3)
    taken = []
    for index in range(7):
        taken.append(len(rule.side_queries()))
        rule.observe(step(rule, lognormal(torch.Generator().manual_seed(index)), index))
    assert taken == [1, 0, 0, 1, 0, 0, 1]
    assert scale_noise(1.0, [1.0], [1.0], []).stds[0] == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantile:quantile=1", "strictly between 0 and 1"),
        ("quantile:budget_share=0", "a part of the step's budget"),
        ("quantile:total=-1", "cannot be negative"),
        ("dc-sgd-p:bins=1", "at least two bins"),
        ("dc-sgd-p:bins=2.5", "is not a whole number"),
        ("dc-sgd-e:lowest=5,highest=1", "is not below highest"),
        ("dc-sgd-p:quantile=0", "strictly between 0 and 1"),
        ("dc-sgd-e:budget_share=1", "a part of the step's budget"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_rule(text)
