"""Rényi divergences against 40-digit quadrature, Opacus and closed forms."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from accounting import Composed, Gaussian, InputError, NonPrivate, PoissonGaussian, SelfComposed
from accounting.mechanisms.poisson_gaussian_moments import _binomial, _quadrature
from accounting.rdp.curve import (
    DEFAULT_ORDERS,
    delta_from_curve,
    epsilon_from_curve,
    renyi_curve,
    renyi_divergence,
    renyi_epsilon,
)

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "renyi_poisson_gaussian.json").read_text()
)


@pytest.mark.parametrize(("rate", "sigma", "order", "rho"), GOLDEN["rows"])
def test_divergence_matches_forty_digit_quadrature(rate, sigma, order, rho):
    assert renyi_divergence(PoissonGaussian(rate, sigma), order, "add-remove") == pytest.approx(
        rho, rel=1e-10
    )


@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("sigma", [0.02, 0.4, 1.0, 30.0])
@pytest.mark.parametrize("order", [2, 3, 17, 300])
def test_the_sum_and_the_integral_agree_at_integer_orders(rate, sigma, order):
    assert _binomial(rate, sigma, order) == pytest.approx(
        _quadrature(rate, sigma, order), rel=2e-11, abs=2e-11
    )


@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 1.0), (0.3, 0.7), (0.02, 4.0)])
def test_divergence_matches_opacus(rate, sigma):
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = [1.5, 2.3, 4.0, 8.7, 20.0]
    theirs = compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=orders)
    assert renyi_curve(PoissonGaussian(rate, sigma), "add-remove", orders)[1] == pytest.approx(
        theirs, rel=1e-8
    )


@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 1.0), (0.5, 0.5), (1e-3, 0.02), (0.01, 100.0)])
def test_curve_never_decreases_in_the_order(rate, sigma):
    _, rho = renyi_curve(PoissonGaussian(rate, sigma), "add-remove")
    assert np.all(np.diff(rho) >= -1e-11 * rho[1:])


def test_special_cases():
    assert renyi_divergence(PoissonGaussian(0.0, 0.0), 3.0, "add-remove") == 0.0
    assert renyi_divergence(PoissonGaussian(0.5, 0.0), 3.0, "add-remove") == math.inf
    assert renyi_divergence(NonPrivate("because"), 3.0, "add-remove") == math.inf
    assert renyi_divergence(PoissonGaussian(1.0, 2.0), 3.0, "add-remove") == pytest.approx(
        3 / 8, rel=1e-14
    )
    assert renyi_divergence(Gaussian(2.0), 3.0, "add-remove") == pytest.approx(3 / 8, rel=1e-14)
    assert renyi_divergence(Gaussian(2.0), 3.0, "replace-one") == pytest.approx(3 / 2, rel=1e-14)
    both = Composed((SelfComposed(Gaussian(2.0), 4), PoissonGaussian(1.0, 1.0)))
    assert renyi_divergence(both, 3.0, "add-remove") == pytest.approx(3.0, rel=1e-14)


@pytest.mark.parametrize("order", [1.0, 0.5, math.nan, math.inf])
def test_an_order_outside_its_range_is_refused(order):
    with pytest.raises(InputError, match="order"):
        renyi_divergence(Gaussian(1.0), order, "add-remove")


def test_replace_one_lies_between_add_remove_and_the_unsampled_release():
    for order in (1.5, 4.0, 32.0):
        event = PoissonGaussian(0.05, 1.0)
        value = renyi_divergence(event, order, "replace-one")
        assert renyi_divergence(event, order, "add-remove") < value <= 2 * order * (1 + 1e-12)


def test_conversion_matches_its_formula_on_a_gaussian():
    orders, rho = renyi_curve(Gaussian(1.0), "add-remove")
    epsilon, order = epsilon_from_curve(orders, rho, 1e-5)
    by_hand = order / 2 + math.log1p(-1 / order) - math.log(1e-5 * order) / (order - 1)
    assert epsilon == pytest.approx(by_hand, rel=1e-12)
    # dp-accounting's value for the same conversion
    assert epsilon == pytest.approx(4.7285, abs=5e-5)
    assert delta_from_curve(orders, rho, epsilon) == pytest.approx(1e-5, rel=0.03)


def test_conversion_at_the_edges():
    orders = np.array([2.0, 3.0])
    assert epsilon_from_curve(orders, np.zeros(2), 0.0)[0] == 0.0
    assert epsilon_from_curve(orders, np.array([0.0, 0.1]), 0.0)[0] == 0.0
    assert epsilon_from_curve(orders, np.array([0.1, 0.1]), 0.0)[0] == math.inf
    assert epsilon_from_curve(orders, np.array([1e-6, 1e-6]), 0.01)[0] == 0.0  # Bretagnolle-Huber
    assert epsilon_from_curve(orders, np.full(2, math.inf), 1e-5)[0] == math.inf
    assert delta_from_curve(orders, np.full(2, math.inf), 1.0) == 1.0
    for bad in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match="delta"):
            epsilon_from_curve(orders, np.zeros(2), bad)


def test_the_grid_grows_when_its_last_order_is_the_best():
    event = SelfComposed(PoissonGaussian(0.01, 1e4), 100)
    _, order = renyi_epsilon(event, 1e-6, "add-remove")
    assert order > DEFAULT_ORDERS[-1]


def test_searching_coarse_then_fine_finds_the_full_grid_optimum():
    for rate, sigma, count in (
        (0.01, 1.0, 1000),
        (0.1, 0.6, 300),
        (0.001, 0.5, 1000),
        (1.0, 1.0, 10**6),
    ):
        event = SelfComposed(PoissonGaussian(rate, sigma), count)
        full = epsilon_from_curve(*renyi_curve(event, "add-remove"), 1e-5)[0]
        assert (
            full <= renyi_epsilon(event, 1e-5, "add-remove")[0] <= full * (1 + 1e-9)
            or renyi_epsilon(event, 1e-5, "add-remove")[0] < full
        )
