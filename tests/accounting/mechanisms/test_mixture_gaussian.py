"""Gaussian mixtures: special cases, another implementation, directions in several dimensions."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import Gaussian, InputError, MixtureGaussian, PoissonGaussian, make_accountant
from accounting.mechanisms.mixture_gaussian import mixture_loss_grid
from accounting.pld.bounds import pld_epsilon
from accounting.rdp.curve import renyi_divergence


@pytest.mark.parametrize("adjacency", ["add-remove", "zero-out", "replace-one"])
@pytest.mark.parametrize(
    ("rate", "sigma", "order"), [(0.01, 1.0, 2.5), (0.5, 2.0, 16.0), (0.1, 0.6, 1.3)]
)
def test_two_components_are_one_poisson_sample(rate, sigma, order, adjacency):
    mixture, sampled = (
        MixtureGaussian((0.0, 1.0), (1 - rate, rate), sigma),
        PoissonGaussian(rate, sigma),
    )
    ours, known = (renyi_divergence(event, order, adjacency) for event in (mixture, sampled))
    assert ours == pytest.approx(known, rel=1e-10)
    bounds, expected = (pld_epsilon([(event, 50)], 1e-6, adjacency) for event in (mixture, sampled))
    assert bounds.upper == pytest.approx(expected.upper, rel=1e-6)
    assert bounds.lower == pytest.approx(expected.lower, rel=1e-6)


def test_a_certain_sensitivity_is_an_unsampled_release():
    event = MixtureGaussian((2.0, 5.0), (1.0, 0.0), 4.0)
    for adjacency in ("add-remove", "replace-one"):
        book, plain = make_accountant("prv", adjacency), make_accountant("prv", adjacency)
        book.charge(event, 3)
        plain.charge(Gaussian(2.0), 3)
        assert book.epsilon(1e-5).upper == pytest.approx(plain.epsilon(1e-5).upper, rel=1e-12)


@pytest.mark.parametrize(
    ("rate", "draws", "sigma", "count"), [(0.01, 4, 1.5, 300), (0.2, 3, 3.0, 40)]
)
def test_accumulated_draws_match_another_implementation(rate, draws, sigma, count):
    event = MixtureGaussian.accumulated(rate, draws, sigma)
    assert math.fsum(event.probabilities) == pytest.approx(1.0, abs=1e-14)
    theirs = PLDAccountant(value_discretization_interval=1e-3)
    their_event = dp_event.MixtureOfGaussiansDpEvent(
        sigma, list(event.sensitivities), list(event.probabilities)
    )
    theirs.compose(their_event, count)
    reference = theirs.get_epsilon(1e-5)
    answer = make_accountant("prv", "add-remove").quote(event, count, 1e-5)
    assert answer.lower <= reference
    assert abs(answer.upper - reference) <= 2e-3 * reference
    assert answer.upper - answer.lower <= 1e-3 * answer.upper
    # Several draws of one unit cost more than one Poisson sample of the same expected size.
    assert (
        answer.lower
        > make_accountant("prv", "add-remove")
        .quote(PoissonGaussian(rate, sigma), count, 1e-5)
        .upper
    )


def divergence(weights_p, means_p, weights_q, means_q, sigma, threshold):
    """Hockey-stick divergence of two mixtures in the plane, by summation over a fine grid."""
    axis = np.linspace(-9 * sigma - 2, 9 * sigma + 2, 801)
    x = np.stack(np.meshgrid(axis, axis), axis=-1)
    cell = (axis[1] - axis[0]) ** 2 / (2 * math.pi * sigma**2)

    def density(weights, means):
        return sum(
            w * np.exp(-((x - np.asarray(m)) ** 2).sum(-1) / (2 * sigma**2))
            for w, m in zip(weights, means, strict=True)
        )

    gap = density(weights_p, means_p) - threshold * density(weights_q, means_q)
    return float(np.maximum(gap, 0.0).sum() * cell)


@settings(max_examples=12, derandomize=True, deadline=None, database=None)
@given(
    angles=st.lists(st.floats(0.0, 6.28), min_size=4, max_size=4),
    shares=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
    threshold=st.sampled_from([0.5, 1.0, 1.3, 3.0]),
)
def test_no_directions_in_the_plane_are_worse_than_opposite_ones(angles, shares, threshold):
    sizes, chances, sigma = (0.0, 1.0, 2.0), (0.5, 0.3, 0.2), 1.0
    norms = (1.0, 2.0, 1.0, 2.0)
    points = [
        (n * s * math.cos(a), n * s * math.sin(a))
        for n, s, a in zip(norms, shares, angles, strict=True)
    ]
    found = divergence(
        chances, [(0, 0), *points[:2]], chances, [(0, 0), *points[2:]], sigma, threshold
    )
    pmf = mixture_loss_grid(sizes, chances, sigma, "replace-one", 0.01, 1e-15)[0].pessimistic()
    losses = pmf.offset + (pmf.first + np.arange(pmf.masses.size)) * pmf.interval
    above = losses > math.log(threshold)
    bound = pmf.infinite - float(pmf.masses[above] @ np.expm1(math.log(threshold) - losses[above]))
    assert found <= bound + 1e-6
    alone = divergence(chances, [(0, 0), *points[:2]], [1.0], [(0, 0)], sigma, threshold)
    pmf = mixture_loss_grid(sizes, chances, sigma, "add-remove", 0.01, 1e-15)[0].pessimistic()
    losses = pmf.offset + (pmf.first + np.arange(pmf.masses.size)) * pmf.interval
    above = losses > math.log(threshold)
    assert (
        alone
        <= pmf.infinite
        - float(pmf.masses[above] @ np.expm1(math.log(threshold) - losses[above]))
        + 1e-6
    )


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_renyi_is_above_the_interval_and_grows_with_the_order(adjacency):
    event = MixtureGaussian((0.0, 0.5, 2.0), (0.9, 0.08, 0.02), 1.2)
    curve = [renyi_divergence(event, order, adjacency) for order in (1.01, 1.5, 2.0, 5.0, 20.0)]
    assert curve == sorted(curve)
    tight, loose = (
        make_accountant(name, adjacency).quote(event, 100, 1e-6).upper for name in ("prv", "rdp")
    )
    assert tight < loose < 1.6 * tight


@pytest.mark.parametrize(
    "build",
    [
        lambda: MixtureGaussian((1.0,), (0.5,), 1.0),
        lambda: MixtureGaussian((1.0, 2.0), (1.0,), 1.0),
        lambda: MixtureGaussian((), (), 1.0),
        lambda: MixtureGaussian((-1.0, 1.0), (0.5, 0.5), 1.0),
        lambda: MixtureGaussian((math.inf, 1.0), (0.5, 0.5), 1.0),
        lambda: MixtureGaussian((0.0, 1.0), (1.5, -0.5), 1.0),
        lambda: MixtureGaussian.accumulated(0.5, 0, 1.0),
    ],
)
def test_impossible_mixtures_are_refused_in_one_line(build):
    with pytest.raises(InputError, match=";"):
        build()
