"""The certified bound from loss distributions: never below the truth, hardly above it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from accounting import Gaussian, NonPrivate, PoissonGaussian
from accounting.composition import Composition
from accounting.discretise import Refused, poisson_gaussian_pmfs
from accounting.gaussian import gaussian_delta, gaussian_epsilon
from accounting.pld import pld_delta, pld_epsilon
from accounting.renyi import renyi_epsilon

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "epsilon_add_remove.json").read_text())["rows"]


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row[0])
def test_bound_is_above_the_reference_and_close_to_it(row):
    _, rate, sigma, steps, delta, truth, half_a_unit, _ = row
    bound = pld_epsilon([(PoissonGaussian(rate, sigma), steps)], delta)
    assert bound >= truth - half_a_unit
    assert bound <= truth * (1 + 1e-3) + half_a_unit + 2e-6


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row[0])
def test_renyi_bound_is_above_the_reference(row):
    from accounting import SelfComposed

    _, rate, sigma, steps, delta, truth, half_a_unit, _ = row
    assert renyi_epsilon(SelfComposed(PoissonGaussian(rate, sigma), steps), delta)[0] >= truth - half_a_unit


# dp-accounting's loss distributions with a grid of 1e-4; exact to the digits shown.
MIXED = [
    ([(0.01, 1.0, 500), (0.01, 2.0, 500)], 1.39865),
    ([(0.01, 1.0, 250), (0.01, 1.2, 250), (0.01, 1.5, 250), (0.01, 2.0, 250)], 1.28042),
    ([(0.01, 1.0, 1000), (1.0, 20.0, 4)], 1.86990),
    ([(0.005, 0.8, 400), (0.02, 1.0, 400)], 2.64819),
]


@pytest.mark.parametrize(("schedule", "truth"), MIXED)
def test_mixed_schedules_match_an_independent_implementation(schedule, truth):
    events = [(PoissonGaussian(rate, sigma), count) for rate, sigma, count in schedule]
    assert truth - 2e-5 <= pld_epsilon(events, 1e-5) <= truth * (1 + 3e-4)


def exact_one_step(epsilon: float, rate: float, sigma: float) -> tuple[float, float]:
    """Hockey-stick divergences of one step in the (remove, add) direction, in closed form."""

    def unsampled(log_threshold: float) -> float:
        mu = 1 / sigma
        return ndtr(mu / 2 - log_threshold / mu) - math.exp(log_threshold) * ndtr(-mu / 2 - log_threshold / mu)

    remove = rate * unsampled(math.log1p(math.expm1(epsilon) / rate))
    kept = 1 - math.exp(epsilon) * (1 - rate)
    add = 0.0 if kept <= 0 else kept * unsampled(math.log(rate) + epsilon - math.log(kept))
    return remove, add


@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 1.0), (0.3, 0.5), (0.9, 2.0), (0.05, 20.0), (0.999999, 1.0)])
@pytest.mark.parametrize("width", [0.003, 0.05])
def test_one_discretised_step_dominates_the_exact_profile_in_both_directions(rate, sigma, width):
    pmfs = poisson_gaussian_pmfs(rate, sigma, width, 1e-15)
    for pmf, side in zip(pmfs, (0, 1), strict=True):
        losses = (pmf.first + np.arange(pmf.masses.size)) * width
        assert pmf.masses.sum() + pmf.infinite == pytest.approx(1.0, abs=1e-12)
        for epsilon in (0.0, width / 2, 0.1, 0.4, 1.0, 2.5):
            above = losses > epsilon
            found = pmf.infinite - float(pmf.masses[above] @ np.expm1(epsilon - losses[above]))
            exact = exact_one_step(epsilon, rate, sigma)[side]
            assert found >= exact * (1 - 1e-9) - 1e-15
            assert found <= exact + 0.3 * width


def fourier_delta(epsilon: float, rate: float, sigma: float, steps: int, tilt: float) -> float:
    """delta by inverting the exact moment generating function of the loss along Re z = tilt.

    delta = (1/pi) Re of the integral over w > 0 of M(z)^T e^(-z eps) / (z (z+1)) with z = tilt + i w.
    """
    reach = -ndtri(1e-18)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    edges = np.linspace(-reach * sigma, 1 + reach * sigma, 90)
    half = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half + half * nodes).ravel()
    loss = np.log1p(rate * np.expm1((x - 0.5) / sigma**2))
    mass = (half * weights).ravel() * np.exp(-0.5 * (x / sigma) ** 2 + loss) / (sigma * math.sqrt(2 * math.pi))

    def log_moment(z: np.ndarray) -> np.ndarray:
        return steps * np.log1p(np.expm1(z[:, None] * loss) @ mass)

    around = log_moment(np.array([0.99, 1.0, 1.01]) * tilt + 0j).real
    deviation = math.sqrt(around[0] - 2 * around[1] + around[2]) / (0.01 * tilt)
    w = np.linspace(0.0, 12 / deviation, 1201)
    z = tilt + 1j * w
    values = np.exp(log_moment(z) - z * epsilon) / (z * (z + 1))
    return float(np.trapezoid(values.real, w) / math.pi)


@pytest.mark.parametrize(
    ("rate", "sigma", "steps", "tilt"), [(0.01, 1.0, 1000, 7.0), (0.05, 1.5, 400, 6.0), (0.3, 4.0, 100, 6.0)]
)
def test_bound_agrees_with_fourier_inversion(rate, sigma, steps, tilt):
    bound = pld_epsilon([(PoissonGaussian(rate, sigma), steps)], 1e-5)
    assert fourier_delta(bound, rate, sigma, steps, tilt) <= 1e-5
    assert fourier_delta(bound * (1 - 5e-4), rate, sigma, steps, tilt) >= 1e-5
    assert pld_delta([(PoissonGaussian(rate, sigma), steps)], bound) == pytest.approx(1e-5, rel=5e-3)


def test_a_wrong_tilt_costs_tightness_but_never_safety():
    remove, _ = poisson_gaussian_pmfs(0.01, 1.0, 2.0**-11, 1e-15)
    answers = [Composition([(remove, 1000)], tilt, 1e-5).epsilon(1e-5) for tilt in (3.0, 7.0, 12.0)]
    assert min(answers) >= 1.82824
    assert answers[1] <= 1.8300


def test_unsampled_gaussians_only_depend_on_their_total():
    expected = gaussian_epsilon(1e-5, 1.0)
    assert pld_epsilon([(Gaussian(10.0), 100)], 1e-5) == pytest.approx(expected, rel=1e-12)
    assert pld_epsilon([(Gaussian(10.0), 50), (PoissonGaussian(1.0, 10.0), 50)], 1e-5) == pytest.approx(expected)
    assert gaussian_delta(expected, 1.0) <= 1e-5
    assert gaussian_epsilon(0.0, 1.0) == math.inf
    assert gaussian_epsilon(0.5, 1.0) == 0.0


def test_what_cannot_be_computed_is_refused_with_the_reason():
    with pytest.raises(Refused, match="delta = 0"):
        pld_epsilon([(PoissonGaussian(0.1, 1.0), 1)], 0.0)
    with pytest.raises(Refused, match="leak"):
        pld_epsilon([(NonPrivate("a leak"), 1)], 1e-5)
    with pytest.raises(Refused, match="hides nothing"):
        pld_epsilon([(PoissonGaussian(0.1, 0.0), 1)], 1e-5)
    with pytest.raises(Refused, match="grid points"):
        poisson_gaussian_pmfs(0.5, 0.01, 1e-4, 1e-12)
