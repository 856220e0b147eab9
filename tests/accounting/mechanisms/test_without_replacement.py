"""Fixed-size sampling: the dominating pair against every data set of a small universe, and known
values.
"""

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import pld_pmf
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import PoissonGaussian, SelfComposed, make_accountant
from accounting.events import FixedBatchesGaussian, WithoutReplacementGaussian
from accounting.mechanisms.loss_grid import LossPmf
from accounting.mechanisms.without_replacement import (
    fixed_size_delta,
    fixed_size_loss_grid,
    fixed_size_renyi,
)
from accounting.pld.bounds import pld_epsilon
from accounting.pld.composition import Composition
from accounting.rdp.curve import renyi_epsilon
from accounting.schedules import Term

few = settings(max_examples=25, derandomize=True, deadline=None, database=None)
EPSILONS = (-3.0, -0.7, -0.05, 0.0, 0.003, 0.1, 0.4, 1.0, 2.5, 6.0)


def divergence(pmf: LossPmf, epsilon: float) -> float:
    losses = pmf.offset + (pmf.first + np.arange(pmf.masses.size)) * pmf.interval
    above = losses > epsilon
    return (
        pmf.infinite - float(pmf.masses[above] @ np.expm1(epsilon - losses[above])) - pmf.lowered_by
    )


def profile(rate: float, sigma: float, epsilon: float) -> float:
    """The curve of the dominating pair at any epsilon."""
    if epsilon >= 0:
        return fixed_size_delta(rate, sigma, epsilon)
    return -math.expm1(epsilon) + math.exp(epsilon) * fixed_size_delta(rate, sigma, -epsilon)


@few
@given(
    rate=st.sampled_from([1e-4, 0.01, 0.3, 0.9, 0.999999]),
    sigma=st.sampled_from([0.4, 1.0, 2.0, 40.0]),
    width=st.sampled_from([0.001, 0.01, 0.05, 0.7]),
)
def test_the_grid_bounds_the_dominating_pair_from_both_sides(rate, sigma, width):
    cells = fixed_size_loss_grid(rate, sigma, width, 1e-15)
    above, below = cells.pessimistic(), cells.optimistic()
    assert above.masses.min() >= 0
    assert below.masses.min() >= 0
    assert above.masses.sum() + above.infinite == pytest.approx(1.0, abs=1e-12)
    for epsilon in EPSILONS:
        exact = profile(rate, sigma, epsilon)
        assert divergence(above, epsilon) >= exact * (1 - 1e-9) - 1e-13
        assert divergence(below, epsilon) <= exact * (1 + 1e-9) + 1e-13
        assert divergence(above, epsilon) <= exact + 0.3 * width


def test_what_is_beyond_the_grid_is_kept():
    for rate, sigma in ((0.1, 1.0), (0.7, 2.0)):
        cells = fixed_size_loss_grid(rate, sigma, 0.01, 1e-3)
        pmf = cells.pessimistic()
        assert cells.below > 1e-8
        assert pmf.masses.sum() + pmf.infinite - cells.rounding_mass == pytest.approx(
            1.0, abs=1e-12
        )
        for epsilon in EPSILONS:
            assert divergence(pmf, epsilon) >= profile(rate, sigma, epsilon) * (1 - 1e-9)
            assert (
                divergence(cells.optimistic(), epsilon)
                <= profile(rate, sigma, epsilon) * (1 + 1e-9) + 1e-13
            )


def test_both_bounds_close_in_quadratically():
    gaps = []
    for width in (0.02, 0.01, 0.005):
        cells = fixed_size_loss_grid(0.1, 1.5, width, 1e-15)
        above, below = cells.pessimistic(), cells.optimistic()
        gaps.append(max(divergence(above, e) - divergence(below, e) for e in (0.05, 0.2, 0.5, 1.0)))
    assert gaps[1] <= 0.4 * gaps[0]
    assert gaps[2] <= 0.4 * gaps[1]


def density(values: tuple[float, ...], size: int, sigma: float, x: np.ndarray) -> np.ndarray:
    """The released sum over a uniform subset of this size."""
    sums = [sum(chosen) for chosen in itertools.combinations(values, size)]
    return (
        sum(np.exp(-0.5 * ((x - each) / sigma) ** 2) for each in sums)
        / len(sums)
        / sigma
        / math.sqrt(2 * math.pi)
    )


@pytest.mark.parametrize(("units", "size", "sigma"), [(4, 2, 1.0), (5, 1, 0.6), (3, 2, 2.5)])
def test_no_data_set_reveals_more_and_one_reveals_as_much(units, size, sigma):
    """All data sets of units -1, 0 and 1 on a line, by numerical integration."""
    x = np.linspace(-size - 10 * sigma, size + 10 * sigma, 30001)
    step = x[1] - x[0]
    rate = size / units
    cells = fixed_size_loss_grid(rate, sigma, 0.005, 1e-15)
    above, below = cells.pessimistic(), cells.optimistic()
    worst = dict.fromkeys(EPSILONS, 0.0)
    worst_renyi = dict.fromkeys((1.3, 2.0, 6.0), 0.0)
    for others in itertools.combinations_with_replacement((-1.0, 0.0, 1.0), units - 1):
        densities = [density((*others, last), size, sigma, x) for last in (-1.0, 0.0, 1.0)]
        for p, q in itertools.permutations(densities, 2):
            for epsilon in EPSILONS:
                found = float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum() * step)
                worst[epsilon] = max(worst[epsilon], found)
            for order in worst_renyi:
                moment = math.log(float((p**order * q ** (1 - order)).sum() * step))
                worst_renyi[order] = max(worst_renyi[order], moment / (order - 1))
    for epsilon, found in worst.items():
        assert found == pytest.approx(profile(rate, sigma, epsilon), abs=1e-7)
        assert divergence(above, epsilon) >= found - 1e-7
        assert divergence(below, epsilon) <= found + 1e-7
    for order, found in worst_renyi.items():
        assert fixed_size_renyi(rate, sigma, order) >= found - 1e-9


@few
@given(
    rate=st.sampled_from([1e-5, 1e-3, 0.01, 0.2, 0.6, 0.99]),
    sigma=st.sampled_from([0.05, 0.4, 1.0, 3.0, 50.0]),
    order=st.sampled_from([1 + 1e-4, 1.2, 2.0, 3.7, 12.0, 128.0, 3000.0]),
)
def test_renyi_divergence_is_the_moment_of_the_pair(rate, sigma, order):
    half = sigma / 2
    crossover = half * half * math.log(1 / rate)
    edges = np.unique(
        np.concatenate(
            [
                mode + half * np.linspace(-14, 14, 2001)
                for mode in (0.5, 1.0, 2.0, 3.0, order, crossover)
            ]
            + [mode + half * half / order * np.geomspace(1e-6, 1e6, 4001) for mode in (0.5,)]
        )
    )
    edges = edges[edges >= 0.5]
    x = np.concatenate(
        [(edges[1:] + edges[:-1]) / 2 + node * np.diff(edges) / 2 for node in (-(3**-0.5), 3**-0.5)]
    )
    weights = np.tile(np.diff(edges) / 2, 2)
    exponent = (x - 0.5) / half**2
    loss = np.where(
        exponent > 600,
        math.log(rate) + exponent,
        np.log1p(rate * np.expm1(np.minimum(exponent, 600.0))),
    )
    log_q = -0.5 * (x / half) ** 2 - math.log(half * math.sqrt(2 * math.pi))
    # A - 1 = integral of q (r^a + r^(1-a) - r - 1).
    logs = (
        log_q
        + order * loss
        + np.log(-np.expm1((1 - order) * loss))
        + np.log(-np.expm1(-order * loss))
    )
    largest = float(logs.max())
    log_excess = largest + math.log(float(np.exp(logs - largest) @ weights))
    exact = float(np.logaddexp(0.0, log_excess)) / (order - 1)
    found = fixed_size_renyi(rate, sigma, order)
    assert found == pytest.approx(exact, rel=2e-4)
    # The larger one of the two halves alone is the divergence of Poisson sampling with half the
    # noise.
    assert found >= PoissonGaussian(rate, half).renyi(order, "add-remove") * (1 - 1e-9)


def test_renyi_divergence_never_falls_in_the_order():
    orders = np.concatenate([1 + np.logspace(-5, 0, 60), np.geomspace(2.1, 1e4, 120)])
    for rate, sigma in ((0.01, 1.0), (0.3, 0.1), (1e-5, 0.5), (0.9, 20.0)):
        curve = [fixed_size_renyi(rate, sigma, float(order)) for order in orders]
        assert all(later >= earlier * (1 - 1e-11) for earlier, later in itertools.pairwise(curve))


@pytest.mark.parametrize(("units", "size"), [(1000, 10), (100, 50), (100_000, 10)])
@pytest.mark.parametrize("sigma", [0.7, 2.0, 20.0])
def test_renyi_bound_of_wang_et_al_is_never_better(units, size, sigma):
    orders = [1.5, 2.0, 4.0, 16.0, 128.0]
    oracle = RdpAccountant(orders, dp_accounting.NeighboringRelation.REPLACE_ONE)
    base = dp_accounting.GaussianDpEvent(sigma / 2)  # noise / 2C: replaced units are 2C apart
    oracle.compose(dp_accounting.SampledWithoutReplacementDpEvent(units, size, base))
    for order, theirs in zip(orders, oracle._rdp, strict=True):
        assert WithoutReplacementGaussian(units, size, sigma).renyi(
            order, "replace-one"
        ) <= theirs * (1 + 1e-9)


def connect_the_dots(rate: float, sigma: float, count: int, delta: float, width: float) -> float:
    """epsilon of the composed profile by dp-accounting's discretisation and convolution."""
    reach = math.ceil(40.0 / sigma / width)
    index = np.arange(-reach, reach + 1)
    deltas = [profile(rate, sigma, float(i * width)) for i in index]
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots(width, index, np.asarray(deltas))
    return pmf.self_compose(count, 1e-15).get_epsilon_for_delta(delta)


# The sheet's values, by connect-the-dots on a grid of 1e-3: upper bounds whose third decimal is
# pessimistic.
GOLDEN = [
    (10_000, 100, 1.0, 1000, 14.821, 20.987),
    (10_000, 100, 4.0, 10_000, 2.567, 5.137),
    (10_000, 1000, 2.0, 500, 19.774, 36.596),
]


@pytest.mark.parametrize("row", GOLDEN, ids=str)
def test_known_values(row):
    units, size, sigma, count, theirs, renyi = row
    event = WithoutReplacementGaussian(units, size, sigma)
    (cells,) = event.loss_grid("replace-one", 2.0**-12 if sigma < 4 else 2.0**-14, 1e-15)
    loose, order = renyi_epsilon(SelfComposed(event, count), 1e-5, "replace-one")
    ends = [
        Composition([pmf], [Term(((0, 1.0),), count)], order - 1, 1e-5, upper).epsilon(1e-5)
        for pmf, upper in ((cells.pessimistic(), True), (cells.optimistic(), False))
    ]
    assert ends[1] <= theirs
    assert theirs - 6e-3 <= ends[0] <= theirs + 6e-4
    assert ends[0] <= loose <= renyi


def test_the_accountant_agrees_with_another_implementation_of_the_convolution():
    event = WithoutReplacementGaussian(200, 10, 2.0)
    answer = make_accountant("prv", "replace-one").quote(event, 40, 1e-5)
    theirs = connect_the_dots(event.sample_rate, 2.0, 40, 1e-5, 5e-4)
    assert answer.lower <= theirs
    assert theirs * (1 - 1e-3) <= answer.upper <= theirs * (1 + 3e-4)
    assert answer.upper <= make_accountant("rdp", "replace-one").quote(event, 40, 1e-5).upper
    pair = pld_epsilon([(event, 40)], 1e-5, "replace-one")
    assert pair.upper - pair.lower <= 1e-3 * pair.upper
    assert answer.lower < pair.lower  # no single data set attains the pair
    # Never better than what one unit among others at -C attains, never worse than without
    # amplification.
    attained = make_accountant("prv", "add-remove").quote(PoissonGaussian(0.05, 1.0), 40, 1e-5)
    assert attained.lower * (1 - 1e-3) <= answer.lower <= attained.upper <= answer.upper
    assert (
        answer.upper
        <= make_accountant("prv", "replace-one").quote(FixedBatchesGaussian(40, 2.0), 1, 1e-5).upper
    )


def test_more_noise_and_fewer_releases_cost_less():
    ends = [
        make_accountant("prv", "replace-one")
        .quote(WithoutReplacementGaussian(1000, 50, sigma), count, 1e-6)
        .upper
        for sigma, count in ((1.0, 20), (1.3, 20), (1.3, 5), (1.3, 1))
    ]
    assert all(later < earlier * (1 - 1e-2) for earlier, later in itertools.pairwise(ends))


def test_the_whole_data_set_is_an_unsampled_gaussian():
    whole = WithoutReplacementGaussian(50, 50, 3.0)
    nearly = WithoutReplacementGaussian(10**9, 10**9 - 1, 3.0)
    assert whole.gaussian_mu("replace-one") == pytest.approx(2 / 3)
    assert nearly.renyi(5.0, "replace-one") == pytest.approx(
        whole.renyi(5.0, "replace-one"), rel=1e-6
    )
    assert nearly.delta(0.5, "replace-one") == pytest.approx(
        whole.delta(0.5, "replace-one"), rel=1e-6
    )


def test_only_replace_one_is_accounted_for():
    event = WithoutReplacementGaussian(100, 10, 1.0)
    for adjacency in ("add-remove", "zero-out"):
        answer = make_accountant("prv", adjacency).quote(event, 1, 1e-5)
        assert answer.upper == math.inf
        assert "replace-one only" in answer.note
        assert event.renyi(2.0, adjacency) == math.inf
    assert (
        make_accountant("prv", "replace-one")
        .quote(WithoutReplacementGaussian(9, 3, 0.0), 1, 1e-5)
        .upper
        == math.inf
    )
