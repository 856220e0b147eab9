"""Laplace releases: profile, loss distribution and Rényi divergence against integrals and another
implementation.
"""

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import CannotComputeError, make_accountant
from accounting.events import Laplace
from accounting.mechanisms.laplace import laplace_delta, laplace_loss_grid, laplace_renyi
from accounting.mechanisms.loss_grid import LossPmf

few = settings(max_examples=40, derandomize=True, deadline=None, database=None)
reaches = st.floats(-6.0, 2.0).map(lambda log: 10.0**log)


def divergence(pmf: LossPmf, epsilon: float) -> float:
    losses = pmf.offset + (pmf.first + np.arange(pmf.masses.size)) * pmf.interval
    above = losses > epsilon
    return (
        pmf.infinite - float(pmf.masses[above] @ np.expm1(epsilon - losses[above])) - pmf.lowered_by
    )


def profile(reach: float, epsilon: float) -> float:
    """The largest of 0, 1 - e^eps and 1 - e^((eps - y)/2): also for epsilon < 0."""
    return max(0.0, -math.expm1(epsilon), -math.expm1((epsilon - reach) / 2))


@few
@given(reach=st.floats(0.01, 8.0), epsilon=st.floats(0.0, 8.0))
def test_the_profile_is_an_integral_of_two_densities(reach, epsilon):
    # Integrated by hand on the pieces where both densities are exponentials: the best threshold is
    # inside [0, 1].
    threshold = min(max((1 - epsilon / reach) / 2, 0.0), 1.0)
    inside = 1 - math.exp(-threshold * reach) / 2
    exact = (
        max(0.0, inside - math.exp(epsilon) * math.exp((threshold - 1) * reach) / 2)
        if epsilon < reach
        else 0.0
    )
    low, high = (laplace_delta(reach, epsilon, upper) for upper in (False, True))
    assert low <= exact + 1e-12
    assert high >= exact - 1e-12
    assert 0.0 <= high - low <= 1e-13 * (1 + reach)


@few
@given(
    reach=st.floats(0.01, 6.0),
    width=st.sampled_from([0.001, 0.03, 0.7, 5.0]),
    share=st.floats(-1.3, 1.3),
)
def test_the_grid_bounds_the_profile_from_both_sides(reach, width, share):
    cells = laplace_loss_grid(reach, width, 1e-15)
    above, below = cells.pessimistic(), cells.optimistic()
    assert above.masses.sum() + above.infinite == pytest.approx(1.0, abs=1e-12)
    exact = profile(reach, share * reach)
    assert divergence(above, share * reach) >= exact - 1e-13
    assert divergence(below, share * reach) <= exact + 1e-13
    assert divergence(above, share * reach) - divergence(below, share * reach) <= 2 * min(
        width, reach
    )


def test_both_ends_of_the_loss_are_kept():
    pmf = laplace_loss_grid(0.3, 0.1, 1e-15).pessimistic()
    losses = pmf.offset + (pmf.first + np.arange(pmf.masses.size)) * pmf.interval
    assert losses[-1] == 0.3
    assert pmf.masses[-1] == pytest.approx(0.5 + 0.5 * -math.expm1(-0.05) * 0.5, rel=0.05)
    # the Q masses sum to 1, too
    assert float(pmf.masses @ np.exp(-losses)) == pytest.approx(1.0, abs=1e-12)


@few
@given(reach=reaches, order=st.sampled_from([1 + 1e-5, 1.01, 1.5, 2.0, 7.0, 64.0, 4096.0]))
def test_renyi_divergence_is_that_of_the_loss_and_rounded_up(reach, order):
    nodes, weights = np.polynomial.legendre.leggauss(60)
    panels = np.linspace(-reach, reach, 200)
    half = np.diff(panels)[:, None] / 2
    losses = (panels[:-1, None] + half + half * nodes).ravel()
    mass = 0.25 * np.exp((losses - reach) / 2) * (half * weights).ravel()
    # E_P[e^((a-1) L)] - 1, as E_P[e^t - 1 - t] + (a-1) E_P[L] with t = (a-1) L.
    mean = (
        reach + math.expm1(-reach) if reach > 1e-3 else reach**2 / 2 - reach**3 / 6 + reach**4 / 24
    )
    exponents = (order - 1) * np.append(losses, [reach, -reach])
    masses = np.append(mass, [0.5, 0.5 * math.exp(-reach)])
    largest = float(exponents.max())
    if largest > 30.0:
        exact = (largest + math.log(float(masses @ np.exp(exponents - largest)))) / (order - 1)
    else:
        bends = np.where(
            abs(exponents) < 1e-3,
            exponents**2 / 2 + exponents**3 / 6,
            np.expm1(exponents) - exponents,
        )
        exact = math.log1p(float(masses @ bends) + (order - 1) * mean) / (order - 1)
    found = laplace_renyi(reach, order)
    assert found == pytest.approx(exact, rel=1e-5)
    assert found <= reach
    assert found >= exact * (1 - 1e-5)


def test_renyi_divergence_is_never_below_another_implementation():
    for noise in (0.05, 0.5, 1.0, 4.0):
        orders = [1.5, 2.0, 5.0, 20.0, 100.0]
        oracle = RdpAccountant(orders, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
        oracle.compose(dp_accounting.LaplaceDpEvent(noise))
        for order, theirs in zip(orders, oracle._rdp, strict=True):
            ours = Laplace(noise).renyi(order, "add-remove")
            assert ours == pytest.approx(theirs, rel=1e-9)
            assert ours >= theirs * (1 - 1e-12)


@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (10.0, 100), (3.0, 7)])
def test_the_interval_holds_another_implementations_bound(noise, count):
    oracle = PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4
    )
    oracle.compose(dp_accounting.LaplaceDpEvent(noise), count)
    book, loose = make_accountant("prv", "add-remove"), make_accountant("rdp", "add-remove")
    for each in (book, loose):
        each.charge(Laplace(noise), count)
    answer, theirs = book.epsilon(1e-5), oracle.get_epsilon(1e-5)
    # theirs is an upper bound, within 1e-4 of the truth for one release
    assert answer.lower <= theirs
    assert theirs - 2e-4 * count**0.5 <= answer.upper <= theirs + 1e-3 * theirs
    assert answer.upper - answer.lower <= 1e-3 * answer.upper
    assert loose.epsilon(1e-5).upper >= answer.upper


def test_spreading_a_vector_over_coordinates_reveals_less():
    """The product of two pairs, by its exact loss distribution on a fine grid, stays below the
    one-coordinate pair.
    """
    for first, second in ((0.5, 0.5), (0.1, 0.9), (2.0, 1.0), (0.02, 3.0)):
        width = (first + second) / 2**12
        one, two = (
            laplace_loss_grid(reach, width, 1e-15).optimistic() for reach in (first, second)
        )
        masses = np.convolve(one.masses, two.masses)
        losses = one.offset + two.offset + (one.first + two.first + np.arange(masses.size)) * width
        for epsilon in np.linspace(-1.1, 1.0, 22) * (first + second):
            above = losses > epsilon
            spread = (
                -float(masses[above] @ np.expm1(epsilon - losses[above]))
                - one.lowered_by
                - two.lowered_by
            )
            assert spread <= profile(first + second, epsilon) + 1e-12


def test_replacing_a_unit_doubles_its_reach():
    for order in (1.5, 8.0):
        assert Laplace(3.0).renyi(order, "replace-one") == pytest.approx(
            Laplace(1.5).renyi(order, "zero-out")
        )
    assert Laplace(3.0).delta(0.1, "replace-one") == pytest.approx(
        Laplace(1.5).delta(0.1, "add-remove")
    )


def test_no_noise_hides_nothing():
    assert Laplace(0.0).renyi(2.0, "add-remove") == math.inf
    assert Laplace(0.0).delta(1.0, "add-remove") is None
    assert make_accountant("prv", "add-remove").quote(Laplace(0.0), 1, 1e-5).upper == math.inf
    with pytest.raises(CannotComputeError, match="grid points"):
        Laplace(1e-9).loss_grid("add-remove", 1e-3, 1e-15)
