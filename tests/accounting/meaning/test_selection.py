"""The price of picking the best run: dp-accounting as an oracle, and exact output distributions of
a tiny mechanism.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln

from accounting import Gaussian, InputError, PoissonGaussian, SelfComposed
from accounting.meaning.selection import (
    FixedRuns,
    PoissonRuns,
    TruncatedNegativeBinomial,
    selection_curve,
    selection_epsilon,
)
from accounting.rdp.curve import delta_from_curve, epsilon_from_curve, renyi_curve

QUIET = settings(max_examples=40, derandomize=True, deadline=None, database=None)
ORDERS, RHO = renyi_curve(SelfComposed(PoissonGaussian(0.01, 1.0), 1000), "add-remove")
SHAPES = [0.0, 0.5, 1.0, 2.0, math.inf]


def of_mean(shape, mean):
    return (
        PoissonRuns(mean) if shape == math.inf else TruncatedNegativeBinomial.with_mean(shape, mean)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [1.5, 10.0, 200.0])
def test_dp_accounting_agrees(shape, mean):
    dp_event = pytest.importorskip(
        "dp_accounting.dp_event", reason="dp-accounting is an oracle of the tests only"
    )
    from dp_accounting.rdp import RdpAccountant

    orders = [1.1, 1.5, 2.0, 3.0, 4.5, 6.0, 8.0, 12.0, 20.0, 40.0, 64.0, 128.0]
    oracle = RdpAccountant(orders)
    oracle.compose(dp_event.RepeatAndSelectDpEvent(dp_event.GaussianDpEvent(3.0), mean, shape))
    curve = renyi_curve(Gaussian(3.0), "add-remove", orders)
    ours, _ = selection_epsilon(*curve, of_mean(shape, mean), 1e-6)
    assert ours == pytest.approx(oracle.get_epsilon(1e-6), rel=1e-6)


@QUIET
@given(st.sampled_from(SHAPES[:-1]), st.floats(1.0, 1e6))
def test_the_wanted_mean_is_met(shape, mean):
    runs = TruncatedNegativeBinomial.with_mean(shape, mean)
    assert runs.expected_runs == pytest.approx(mean, rel=1e-9)
    assert runs.expected_runs <= mean * (1 + 1e-12)


def number_of_runs(runs):
    """Pr[K = k] for k = 0, 1, ..., by the definition of the distribution."""
    k = np.arange(4000.0)
    if isinstance(runs, PoissonRuns):
        return np.exp(k * math.log(runs.mean) - runs.mean - gammaln(k + 1))
    stays = math.log1p(-runs.stop_probability)
    with np.errstate(divide="ignore"):
        logs = (
            k * stays - np.log(k)
            if runs.shape == 0
            else k * stays + gammaln(k + runs.shape) - gammaln(k + 1)
        )
    logs[0] = -math.inf
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_expected_runs_are_the_mean_of_the_distribution(shape):
    runs = of_mean(shape, 7.0)
    assert float(number_of_runs(runs) @ np.arange(4000.0)) == pytest.approx(7.0, rel=1e-6)


def best_of(chances, runs):
    """Distribution of the best outcome when single runs have these chances, from worst to best
    (last: no run).
    """
    k = number_of_runs(runs)
    at_most = np.asarray(
        [float(k[1:] @ np.power(below, np.arange(1.0, 4000.0))) for below in np.cumsum(chances)]
    )
    return np.append(np.diff(at_most, prepend=0.0), k[0])


def divergence(p, q, order):
    kept = p > 0
    return math.log(float(np.sum(p[kept] ** order * q[kept] ** (1 - order)))) / (order - 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mean", [2.0, 12.0])
@pytest.mark.parametrize(
    "chances", [([0.9, 0.1], [0.95, 0.05]), ([0.2, 0.7, 0.1], [0.3, 0.65, 0.05])], ids=str
)
def test_the_exact_divergence_of_the_best_run_is_within_the_bound(shape, mean, chances):
    p, q = (np.asarray(side) for side in chances)
    orders = np.concatenate([1 + np.logspace(-4, -1, 10), np.linspace(1.2, 40.0, 60)])
    rho = np.asarray([max(divergence(p, q, order), divergence(q, p, order)) for order in orders])
    runs = of_mean(shape, mean)
    bound = selection_curve(orders, rho, runs)[1]
    best_p, best_q = best_of(p, runs), best_of(q, runs)
    for order, limit in zip(orders, bound, strict=True):
        assert max(divergence(best_p, best_q, order), divergence(best_q, best_p, order)) <= limit


def test_a_single_run_on_average_costs_nothing_or_almost():
    alone = epsilon_from_curve(ORDERS, RHO, 1e-5)[0]
    for shape in SHAPES[:-1]:
        chosen, _ = selection_epsilon(
            ORDERS, RHO, TruncatedNegativeBinomial.with_mean(shape, 1.0), 1e-5
        )
        assert alone <= chosen <= alone * (1 + 1e-9)
    assert alone < selection_epsilon(ORDERS, RHO, PoissonRuns(1.0), 1e-5)[0] < alone * 1.2


def test_more_runs_cost_more_but_far_less_than_publishing_all():
    costs = [
        selection_epsilon(ORDERS, RHO, of_mean(0.0, mean), 1e-5)[0]
        for mean in (2.0, 10.0, 100.0, 1000.0)
    ]
    assert costs == sorted(costs)
    for mean, cost in zip((10, 100), costs[1:], strict=False):
        assert cost < selection_epsilon(ORDERS, RHO, FixedRuns(mean), 1e-5)[0]


def test_a_fixed_number_of_runs_is_priced_as_composition():
    orders, rho = selection_curve(ORDERS, RHO, FixedRuns(20))
    together = renyi_curve(SelfComposed(PoissonGaussian(0.01, 1.0), 20000), "add-remove")[1]
    assert rho == pytest.approx(together, rel=1e-9)
    assert orders.tolist() == ORDERS.tolist()
    assert FixedRuns(20).expected_runs == 20.0


def test_a_sharper_delta_of_one_run_lowers_the_price_of_poisson_runs():
    loose = PoissonRuns(30.0)
    sharp = PoissonRuns(30.0, lambda epsilon: delta_from_curve(ORDERS, RHO, epsilon) / 2)
    assert (
        selection_epsilon(ORDERS, RHO, sharp, 1e-5)[0]
        < selection_epsilon(ORDERS, RHO, loose, 1e-5)[0]
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_curve_never_falls_and_takes_orders_in_any_sequence(shape):
    runs = of_mean(shape, 25.0)
    shuffled = np.random.default_rng(1).permutation(ORDERS.size)
    orders, rho = selection_curve(ORDERS[shuffled], RHO[shuffled], runs)
    assert (np.diff(orders) > 0).all()
    assert (np.diff(rho) >= 0).all()
    assert rho.tolist() == pytest.approx(selection_curve(ORDERS, RHO, runs)[1].tolist(), rel=1e-12)
    infinite = selection_curve(np.asarray([2.0, 4.0]), np.asarray([0.1, math.inf]), runs)[1]
    assert np.isfinite(infinite[0])
    assert infinite[1] == math.inf


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: TruncatedNegativeBinomial(-0.5, 0.1),
        lambda: TruncatedNegativeBinomial(1.0, 0.0),
        lambda: TruncatedNegativeBinomial(1.0, 1.5),
        lambda: TruncatedNegativeBinomial(math.inf, 0.5),
        lambda: TruncatedNegativeBinomial.with_mean(1.0, 0.9),
        lambda: PoissonRuns(0.5),
        lambda: PoissonRuns(math.nan),
        lambda: FixedRuns(0),
        lambda: FixedRuns(2.5),
        lambda: selection_curve([1.0, 2.0], [0.1, 0.2], FixedRuns(1)),
        lambda: selection_curve([2.0, 3.0], [0.1], FixedRuns(1)),
        lambda: selection_curve([2.0], [-0.1], FixedRuns(1)),
        lambda: selection_curve([2.0], [math.nan], FixedRuns(1)),
    ],
)
def test_impossible_requests_are_refused_in_one_line(attempt):
    with pytest.raises(InputError) as refusal:
        attempt()
    assert "\n" not in str(refusal.value)
