"""Other libraries as oracles, where they are reliable: ordinary settings of training with Poisson
samples.

dp-accounting's loss distributions are pessimistic and, on a fine enough grid, close to the truth;
prv-accountant gives an interval. Both fail elsewhere: prv-accountant raises or excludes the truth
when the sampling rate is high, the noise low and the steps many; dp-accounting's tails are cut off
where epsilon is in the hundreds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from prv_accountant import PRVAccountant as LibraryAccountant
from prv_accountant.privacy_random_variables import PoissonSubsampledGaussianMechanism

from accounting import Gaussian, PoissonGaussian, SelfComposed
from accounting.pld.bounds import pld_delta, pld_epsilon
from accounting.rdp.curve import renyi_curve, renyi_epsilon

ADJACENCIES = ("add-remove", "zero-out", "replace-one")
# No shrinking: a failing example would be tried a hundred times, seconds each.
BY_DRAW: dict[str, Any] = {
    "derandomize": True,
    "deadline": None,
    "database": None,
    "phases": (Phase.explicit, Phase.generate),
}


def logarithmic(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers spread evenly in the logarithm."""
    return st.floats(math.log(low), math.log(high)).map(math.exp)


RATES, SIGMAS, DELTAS = logarithmic(1e-3, 0.5), logarithmic(0.6, 5.0), logarithmic(1e-8, 1e-3)
STEPS = logarithmic(1, 2000).map(round)
Step = tuple[float, float, int]


def dp_accounting_epsilon(schedule: list[Step], delta: float, adjacency: str, grid: float) -> float:
    """dp-accounting's pessimistic epsilon; a sample rate of 1 stands for an unsampled Gaussian."""
    dp_accounting = pytest.importorskip(
        "dp_accounting", reason="dp-accounting is an oracle of the tests only"
    )
    from dp_accounting.pld import PLDAccountant

    relations = dp_accounting.NeighboringRelation
    relation = {
        "add-remove": relations.ADD_OR_REMOVE_ONE,
        "zero-out": relations.REPLACE_SPECIAL,
        "replace-one": relations.REPLACE_ONE,
    }[adjacency]
    accountant = PLDAccountant(relation, value_discretization_interval=grid)
    for rate, sigma, steps in schedule:
        event = dp_accounting.GaussianDpEvent(sigma)
        accountant.compose(
            dp_accounting.PoissonSampledDpEvent(rate, event) if rate < 1 else event, steps
        )
    return float(accountant.get_epsilon(delta))


def agree_with_dp_accounting(schedule: list[Step], delta: float, adjacency: str) -> None:
    """Their bound is above our lower end, and both upper ends are the same up to the width of their
    grid.
    """
    # Their grid has to be finer than one release's loss, which is about rate / sigma.
    grid = min(1e-4, min(rate / sigma for rate, sigma, _ in schedule) / 20)
    theirs = dp_accounting_epsilon(schedule, delta, adjacency, grid)
    lower, upper = pld_epsilon(
        [(PoissonGaussian(rate, sigma), n) for rate, sigma, n in schedule], delta, adjacency
    )
    assert lower <= theirs * (1 + 1e-9)
    # A single release under replace-one is bounded loosely where epsilon is almost 0.
    if adjacency != "replace-one" or sum(steps for _, _, steps in schedule) > 1:
        assert upper <= theirs * (1 + 2e-3) + (1e-4 if theirs > 0.01 else 1e-3)
    # The side that matters. Their bound exceeds the truth by their grid only, unless epsilon is
    # very large.
    if theirs < 100.0:
        assert upper >= theirs * (1 - 2e-4) - 1e-4


@given(rate=RATES, sigma=SIGMAS, steps=STEPS, delta=DELTAS)
@settings(max_examples=4, **BY_DRAW)
def test_dp_accounting_agrees_when_a_unit_comes_or_goes(rate, sigma, steps, delta):
    agree_with_dp_accounting([(rate, sigma, steps)], delta, "add-remove")


@given(rate=RATES, sigma=SIGMAS, steps=STEPS, delta=DELTAS)
@settings(max_examples=3, **BY_DRAW)
def test_dp_accounting_agrees_when_a_unit_is_replaced(rate, sigma, steps, delta):
    agree_with_dp_accounting([(rate, sigma, steps)], delta, "replace-one")


@given(
    schedule=st.lists(
        st.tuples(RATES, SIGMAS, logarithmic(1, 300).map(round)), min_size=2, max_size=3
    ),
    delta=DELTAS,
    adjacency=st.sampled_from(ADJACENCIES),
)
@settings(max_examples=2, **BY_DRAW)
def test_dp_accounting_agrees_on_mixed_schedules(schedule, delta, adjacency):
    agree_with_dp_accounting(schedule, delta, adjacency)


@pytest.mark.long
@given(rate=RATES, sigma=SIGMAS, steps=STEPS, delta=DELTAS, adjacency=st.sampled_from(ADJACENCIES))
@settings(max_examples=25, **BY_DRAW)
def test_dp_accounting_agrees_in_many_settings(rate, sigma, steps, delta, adjacency):
    agree_with_dp_accounting([(rate, sigma, steps)], delta, adjacency)


@given(sigma=SIGMAS, steps=STEPS, delta=DELTAS, adjacency=st.sampled_from(ADJACENCIES))
@settings(max_examples=4, **BY_DRAW)
def test_dp_accounting_agrees_without_sampling(sigma, steps, delta, adjacency):
    sigma *= math.sqrt(steps)  # epsilon of one release at the first sigma
    theirs = dp_accounting_epsilon([(1.0, sigma, steps)], delta, adjacency, 1e-4)
    lower, upper = pld_epsilon([(Gaussian(sigma), steps)], delta, adjacency)
    assert lower <= theirs * (1 + 1e-9)
    assert upper == pytest.approx(theirs, rel=1e-4, abs=1e-4)


@given(rate=RATES, sigma=SIGMAS, steps=STEPS, epsilon=logarithmic(0.05, 8.0))
@settings(max_examples=3, **BY_DRAW)
def test_dp_accounting_agrees_on_delta(rate, sigma, steps, epsilon):
    dp_accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.pld import PLDAccountant

    grid = min(1e-4, rate / sigma / 20)
    accountant = PLDAccountant(value_discretization_interval=grid)
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
    theirs = float(accountant.compose(event, steps).get_delta(epsilon))
    assume(1e-8 < theirs < 0.99)  # below, their rounding errors count
    lower, upper = pld_delta([(PoissonGaussian(rate, sigma), steps)], epsilon, "add-remove")
    assert lower <= theirs * (1 + 1e-6)
    assert theirs * (1 - 2e-2) <= upper <= theirs * (1 + 2e-2)


def library_interval(
    rate: float, sigma: float, steps: int, delta: float
) -> tuple[float, float] | None:
    """prv-accountant's interval for the remove direction; None where it gives up."""
    prv = PoissonSubsampledGaussianMechanism(rate, sigma)
    try:
        library = LibraryAccountant(
            prvs=[prv], max_self_compositions=[steps], eps_error=0.02, delta_error=delta / 1000
        )
        lower, _, upper = library.compute_epsilon(delta, [steps])
    except RuntimeError:  # "Discrete mean differs from continuous mean significantly."
        return None
    return float(lower), float(upper)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # exp overflows inside the library
@given(rate=RATES, sigma=SIGMAS, steps=STEPS, delta=DELTAS)
@settings(max_examples=6, **BY_DRAW)
def test_prv_accountants_interval_meets_ours(rate, sigma, steps, delta):
    # beyond, the library is known to exclude the truth
    assume(rate * rate * steps * math.exp(sigma**-2) < 20)
    found = library_interval(rate, sigma, steps, delta)
    assume(found is not None)
    assert found is not None
    lower, upper = pld_epsilon([(PoissonGaussian(rate, sigma), steps)], delta, "add-remove")
    assert found[0] <= upper
    assert lower <= max(found[1], 0.0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_where_prv_accountant_excludes_the_truth_ours_is_with_dp_accounting():
    rate, sigma, steps, delta = 0.1, 0.6, 300, 1e-5
    found = LibraryAccountant(
        prvs=[PoissonSubsampledGaussianMechanism(rate, sigma)], max_self_compositions=[steps],
        eps_error=0.1, delta_error=delta / 1000,
    ).compute_epsilon(delta, [steps])  # fmt: skip
    lower, upper = pld_epsilon([(PoissonGaussian(rate, sigma), steps)], delta, "add-remove")
    assert lower <= 36.855158 <= upper, "Fourier inversion of the exact moments, to eight digits"
    assert found[0] > upper, "the library was mended: the guards against it can be loosened"


@given(rate=RATES, sigma=SIGMAS)
@settings(max_examples=8, **BY_DRAW)
def test_renyi_divergences_are_not_above_dp_accountings_and_equal_at_integer_orders(rate, sigma):
    dp_accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.rdp import rdp_privacy_accountant

    orders = np.asarray(rdp_privacy_accountant.DEFAULT_RDP_ORDERS, dtype=float)
    library = rdp_privacy_accountant.RdpAccountant()
    library.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma)))
    theirs = np.asarray(library._rdp, dtype=float)
    _, ours = renyi_curve(PoissonGaussian(rate, sigma), "add-remove", orders.tolist())
    assert ours.shape == theirs.shape
    # Their fractional orders add up an alternating series without its signs: an upper bound,
    # sometimes infinite.
    assert np.all(ours <= theirs * (1 + 1e-6) + 1e-15)
    whole = orders == np.floor(orders)
    assert whole.sum() > 50
    assert np.allclose(ours[whole], theirs[whole], rtol=1e-6, atol=1e-13)


@given(rate=RATES, sigma=SIGMAS, steps=STEPS, delta=DELTAS)
@settings(max_examples=6, **BY_DRAW)
def test_renyi_epsilon_is_between_the_truth_and_dp_accountings(rate, sigma, steps, delta):
    dp_accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.rdp import RdpAccountant
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
    theirs = float(RdpAccountant().compose(event, steps).get_epsilon(delta))
    ours = SelfComposed(PoissonGaussian(rate, sigma), steps)
    assert (
        renyi_epsilon(ours, delta, "add-remove", DEFAULT_RDP_ORDERS)[0]
        <= theirs * (1 + 1e-6) + 1e-15
    )
    on_our_orders = renyi_epsilon(ours, delta, "add-remove")[0]
    assert on_our_orders <= 1.05 * theirs + 1e-15, (
        "where delta is about the rate, epsilon hangs on a single order"
    )
    assert (
        on_our_orders
        >= pld_epsilon([(PoissonGaussian(rate, sigma), steps)], delta, "add-remove").lower
    )


def test_dp_accountings_renyi_accountant_forgets_that_replacing_moves_twice_as_far():
    """Why it is no oracle under replace-one: half the mu of its own loss distributions, an epsilon
    below the truth.
    """
    dp_accounting = pytest.importorskip("dp_accounting")
    from dp_accounting.rdp import RdpAccountant

    relation = dp_accounting.NeighboringRelation.REPLACE_ONE
    theirs = (
        RdpAccountant(neighboring_relation=relation)
        .compose(dp_accounting.GaussianDpEvent(1.0))
        .get_epsilon(1e-5)
    )
    assert dp_accounting_epsilon([(1.0, 1.0, 1)], 1e-5, "replace-one", 1e-4) == pytest.approx(
        9.997256, abs=1e-4
    )
    assert theirs < 5.0, "the library was mended: use it as an oracle"
    assert renyi_epsilon(Gaussian(1.0), 1e-5, "replace-one")[0] == pytest.approx(10.7255, abs=1e-3)
    assert pld_epsilon([(Gaussian(1.0), 1)], 1e-5, "replace-one").upper == pytest.approx(
        9.997256, abs=1e-5
    )
