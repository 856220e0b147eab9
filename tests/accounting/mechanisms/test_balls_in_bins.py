"""Balls in bins: exact moments against simulation and closed forms, and bounds verified by Monte
Carlo.
"""

import itertools
import math

import numpy as np
import pytest

from accounting import BallsInBinsGaussian, Gaussian, InputError, PoissonGaussian, make_accountant
from accounting.mechanisms.balls_in_bins import (
    _add_moment,
    _remove_moments,
    allocation_renyi,
    simulated_epsilon,
)
from accounting.rdp.curve import renyi_divergence


def ratios(bins: int, sigma: float, samples: int) -> np.ndarray:
    """W = P/Q at points drawn from Q."""
    x = np.random.default_rng(5).normal(0.0, sigma, (samples, bins))
    return np.exp((2 * x - 1) / (2 * sigma**2)).mean(axis=1)


@pytest.mark.parametrize(
    ("bins", "sigma", "order"), [(2, 2.0, 3), (3, 2.0, 4), (10, 1.0, 2), (40, 1.5, 4)]
)
def test_moments_agree_with_simulation(bins, sigma, order):
    w = ratios(bins, sigma, 200_000)
    for ours, sample in (
        (float(_remove_moments(bins, sigma)[order]), w**order),
        (_add_moment(bins, sigma, float(order)), w**-order),
    ):
        error = float(sample.std() / math.sqrt(sample.size))
        assert abs(math.exp(ours) - float(sample.mean())) <= 6 * error


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_one_bin_is_an_unsampled_release(sigma):
    for b in (1.0, 4.0, 15.0):
        assert _add_moment(1, sigma, b) == pytest.approx(b * (b + 1) / (2 * sigma**2), rel=1e-12)
        assert float(_remove_moments(1, sigma)[int(b) + 1]) == pytest.approx(
            (b + 1) * b / (2 * sigma**2), rel=1e-12
        )
    for adjacency in ("add-remove", "replace-one"):
        book, plain = make_accountant("prv", adjacency), make_accountant("prv", adjacency)
        book.charge(BallsInBinsGaussian(1, sigma), 4)
        plain.charge(Gaussian(sigma), 4)
        assert book.epsilon(1e-6).upper == pytest.approx(plain.epsilon(1e-6).upper)


def test_divergences_rise_with_the_order_and_fall_with_bins_and_noise():
    orders = (1.01, 1.5, 2.0, 2.5, 7.0, 33.3, 190.0)
    curves = [
        [allocation_renyi(bins, sigma, order) for order in orders]
        for bins, sigma in ((5, 1.0), (50, 1.0), (50, 2.0))
    ]
    for curve in curves:
        assert all(low <= high * (1 + 1e-6) for low, high in itertools.pairwise(curve))
    for larger, smaller in itertools.pairwise(curves):
        assert all(a > b for a, b in zip(larger, smaller, strict=True))
    unsampled = [order / 2 for order in orders]
    assert all(
        found <= bound * (1 + 1e-9) for found, bound in zip(curves[0], unsampled, strict=True)
    )
    assert allocation_renyi(5, 1.0, 200.0) == math.inf


def test_ten_epochs_cost_about_what_poisson_sampling_costs():
    balls = (
        make_accountant("rdp", "add-remove").quote(BallsInBinsGaussian(100, 1.0), 10, 1e-5).upper
    )
    sampled = (
        make_accountant("rdp", "add-remove").quote(PoissonGaussian(0.01, 1.0), 1000, 1e-5).upper
    )
    assert 0.9 * sampled < balls < 1.02 * sampled


@pytest.mark.parametrize("count", [1, 3])
def test_a_simulated_bound_is_above_the_truth_where_it_is_known(count):
    truth = make_accountant("prv", "add-remove").quote(Gaussian(2.0), count, 1e-3).upper
    found = simulated_epsilon(1, 2.0, count, 1e-3)
    assert truth <= found.upper <= 1.35 * truth
    assert found.lower is None
    assert "failure probability" in found.note


@pytest.mark.slow
def test_a_simulated_bound_is_reproducible_and_close_to_published_simulations():
    found = simulated_epsilon(100, 1.0, 1, 1e-3)
    assert found == simulated_epsilon(100, 1.0, 1, 1e-3)
    assert 0.298 < found.upper < 0.36  # one million samples gave 0.298 without any allowance
    assert (
        found.upper
        <= make_accountant("rdp", "add-remove").quote(BallsInBinsGaussian(100, 1.0), 1, 1e-3).upper
    )
    assert simulated_epsilon(100, 1.0, 1, 1e-9) is None


def test_what_has_no_theorem_costs_everything():
    event = BallsInBinsGaussian(10, 1.0)
    assert make_accountant("prv", "replace-one").quote(event, 1, 1e-5).upper == math.inf
    assert renyi_divergence(event, 2.0, "replace-one") == math.inf
    mixed = make_accountant("prv", "add-remove")
    mixed.charge(event, 3)
    mixed.charge(PoissonGaussian(0.01, 1.0), 100)
    answer = mixed.epsilon(1e-5)
    assert 0 < answer.upper < math.inf
    assert "Rényi bound" in answer.note
    with pytest.raises(InputError, match="bins"):
        BallsInBinsGaussian(0, 1.0)
