"""The two facts behind error feedback's accounting, and the audit of the published calibration, in
numbers.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from accounting import Gaussian, PoissonGaussian, make_accountant
from accounting.mechanisms.gaussian import gaussian_delta
from accounting.mechanisms.poisson_gaussian import poisson_delta
from dpclip.clipping import ErrorFeedback, RunShape
from dpclip.clipping.error_feedback import shortened
from dpclip.gradient_sum import GradientSum


def paths(seed: int, leaky: bool) -> float:
    """Largest ratio of the feedback's energy to its bound over random pairs of paths (card B)."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    worst = 0.0
    for _ in range(60):
        size, steps = int(torch.randint(1, 4, (), generator=generator)), 30
        second = float(random(1).exp())
        one, other = torch.zeros(size).double(), torch.zeros(size).double()
        energy, inputs, count = 0.0, 0.0, 0
        for _ in range(steps):
            common = random(size) * float(random(1).exp())
            extra = torch.zeros(size).double()
            if float(torch.rand((), generator=generator)) < 0.3:
                extra, count = random(size) * float((2 * random(1)).exp()), count + 1
            fed = [shortened([e], second)[0] for e in (one, other)]
            energy += float((fed[0] - fed[1]).square().sum())
            left = [one - fed[0], other - fed[1]]
            if leaky:
                left = [shortened([rest], second)[0] for rest in left]
            one, other = left[0] + common + extra, left[1] + common
            inputs += float(extra.norm())
        bound = math.sqrt(8 * count) * second if leaky else inputs
        worst = max(worst, math.sqrt(energy) / bound) if count else worst
    return worst


@pytest.mark.parametrize("leaky", [False, True])
def test_fact_1_the_feedback_shows_no_more_energy_than_the_bound(leaky: bool) -> None:
    found = [paths(seed, leaky) for seed in range(4)]
    assert max(found) <= 1 + 1e-5
    assert max(found) > 0.3  # the bound is not idle


def test_fact_1_an_adaptive_path_of_bounded_energy_is_dominated_by_one_gaussian() -> None:
    """Two releases in one dimension; the second shift is chosen from the first release, within the
    energy left.
    """
    first = 0.6
    grid = np.linspace(-9, 9, 1801)
    width = grid[1] - grid[0]
    rest = math.sqrt(1 - first**2)
    for chosen in (
        lambda y: rest * (y > 0.3),
        lambda y: rest * np.sign(y),
        lambda y: rest * np.tanh(y),
    ):
        for epsilon in (0.0, 0.5, 1.0, 2.0):
            second = chosen(grid)[:, None]
            with_unit = norm.pdf(grid - first)[:, None] * norm.pdf(grid[None, :] - second)
            without = norm.pdf(grid)[:, None] * norm.pdf(grid[None, :])
            remove = np.maximum(with_unit - math.exp(epsilon) * without, 0).sum() * width**2
            add = np.maximum(without - math.exp(epsilon) * with_unit, 0).sum() * width**2
            assert max(remove, add) <= gaussian_delta(epsilon, 1.0) + 1e-6


@pytest.mark.parametrize("rate", [0.04, 0.3])
def test_fact_2_an_adversarial_pair_is_dominated_by_one_sampled_gaussian(rate: float) -> None:
    """The unit's one coin moves both releases; the second shift is chosen from the first
    release.
    """
    noise, first, most = 1.2, 1.0, 1.0
    size = math.hypot(first, most)
    grid = np.linspace(-12, 12, 2401)
    width = grid[1] - grid[0]
    density = norm(scale=noise).pdf
    for chosen in (
        lambda y: most * (y > 0.5),
        lambda y: most * np.sign(y),
        lambda y: most * np.ones_like(y),
    ):
        second = chosen(grid)[:, None]
        without = density(grid)[:, None] * density(grid)[None, :]
        drawn = density(grid - first)[:, None] * density(grid[None, :] - second)
        with_unit = (1 - rate) * without + rate * drawn
        for epsilon in (0.01, 0.1, 0.5, 1.0, 3.0):
            remove = np.maximum(with_unit - math.exp(epsilon) * without, 0).sum() * width**2
            add = np.maximum(without - math.exp(epsilon) * with_unit, 0).sum() * width**2
            assert max(remove, add) <= poisson_delta(rate, noise / size, epsilon) + 1e-6


# --- the audit (card C) ---------------------------------------------------------------------------


def late_shift(rule: ErrorFeedback, steps: int, drawn_at: int, gradient: float) -> np.ndarray:
    """How a canary drawn once moves each release of the rule itself: one dimension, all other
    gradients 0.
    """
    moved = []
    for index in range(steps):
        total = {name: GradientSum.zeros([torch.zeros(1)], [0]) for name in ("release", "capped")}
        if index == drawn_at:
            factors = rule.clip_factors(torch.tensor([[gradient]]))
            for name, value in factors.items():
                total[name].tensors[0] += value[0] * gradient
        moved.append(float(rule.combine(total).tensors[0]))
        rule.observe(None)  # type: ignore[arg-type]
    return np.array(moved)


def lower_bound(shift: float, noise: float, late: int, chance: float, delta: float) -> float:
    """epsilon that the one-sided test on the sum of the late releases proves."""
    thresholds = np.linspace(-5, 60, 4000)
    gap = shift * math.sqrt(late) / noise
    with np.errstate(divide="ignore"):
        positive = np.log(np.maximum(chance * norm.cdf(gap - thresholds) - delta, 0))
    return float(np.max(positive - norm.logsf(thresholds)))


@pytest.mark.parametrize(
    ("claimed", "steps", "sigma", "expected"), [(2.0, 150, 0.927, 39.0), (8.0, 500, 0.655, 43.0)]
)
def test_the_published_calibration_of_the_literal_algorithm_is_refuted(
    claimed: float, steps: int, sigma: float, expected: float
) -> None:
    batch, rate, delta = 1000, 0.02, 1e-5
    rule = ErrorFeedback(mode="literal", calibration="published")
    rule.set_run(RunShape(steps, batch, None))
    noise = sigma * rule.bounds()[0]
    shifts = late_shift(rule, steps, 0, 1e4)
    assert shifts[1:] == pytest.approx(np.full(steps - 1, rule.thresholds[1]), rel=1e-4)
    best = max(
        lower_bound(float(shifts[-1]), noise, steps - early, 1 - (1 - rate) ** early, delta)
        for early in range(5, steps, 5)
    )
    assert best >= expected
    accountant = make_accountant("prv", "add-remove")
    accountant.charge(PoissonGaussian(rate, sigma), steps)
    assert accountant.epsilon(delta).upper == pytest.approx(claimed, rel=0.02)


@pytest.mark.parametrize("mode", ["capped", "leaky", "literal"])
@pytest.mark.parametrize("gradient", [0.5, 2.0, 1e4])
def test_no_canary_exceeds_the_proved_sensitivity(mode: str, gradient: float) -> None:
    """The exact energy of a canary's trace through the rule, drawn once in each of three passes."""
    steps, batch = 90, 30
    rule = ErrorFeedback(mode=mode)
    rule.set_run(RunShape(steps, batch, 3))
    energy = 0.0
    moved = np.zeros(steps)
    for index in range(steps):
        total = {name: GradientSum.zeros([torch.zeros(1)], [0]) for name in ("release", "capped")}
        if index in (3, 33, 63):
            for name, value in rule.clip_factors(torch.tensor([[gradient]])).items():
                total[name].tensors[0] += value[0] * gradient
        moved[index] = float(rule.combine(total).tensors[0])
        rule.observe(None)  # type: ignore[arg-type]
    energy = math.sqrt(float((moved**2).sum()))
    assert energy <= rule.bounds()[0]
    sigma = 1.7
    accountant = make_accountant("prv", "add-remove")
    accountant.charge(Gaussian(sigma))
    stated = accountant.epsilon(1e-5).upper
    mu = energy / (sigma * rule.bounds()[0])
    assert gaussian_delta(stated, mu) <= 1e-5


def test_one_step_leaves_no_trace_after_the_next_release() -> None:
    rule = ErrorFeedback(mode="one-step", cap=3.0)
    rule.set_run(RunShape(20, 30, None))
    moved = late_shift(rule, 20, 4, 1e4)
    assert moved[4] == pytest.approx(1.0)
    assert moved[5] == pytest.approx(2.0, rel=1e-5)
    assert (np.delete(moved, [4, 5]) == 0).all()
    assert math.hypot(moved[4], moved[5]) <= rule.bounds()[0]
