"""The GDP filter: exact for unsampled Gaussians, closed to everything else."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import Composed, Gaussian, InputError, NonPrivate, PoissonGaussian, SelfComposed
from accounting.errors import BudgetExceededError
from accounting.filters.renyi import GdpFilter, RenyiFilter
from accounting.mechanisms.gaussian import gaussian_delta, gaussian_epsilon

AR = "add-remove"
some = settings(max_examples=60, derandomize=True, deadline=None, database=None)


@some
@given(asked=st.lists(st.tuples(st.floats(2.0, 60.0), st.integers(1, 50)), max_size=30))
def test_the_sum_of_squares_never_exceeds_the_budget(asked):
    book, total = GdpFilter(AR, 10**6, mu=1.0), 0.0
    for noise, count in asked:
        affordable = book.can_afford(Gaussian(noise), count)
        try:
            book.charge(Gaussian(noise), count)
        except BudgetExceededError:
            assert not affordable
            assert total + count / noise**2 > 1 - 1e-12
        else:
            assert affordable
            total += count / noise**2
        assert total <= 1.0
        assert book.diagnostics()["mu_squared"]["spent"] == pytest.approx(
            total, rel=1e-12, abs=1e-300
        )


def test_replacing_a_unit_costs_four_times_the_square():
    assert GdpFilter("replace-one", 10, mu=1.0).quote(Gaussian(10.0)) == pytest.approx(
        0.04, rel=1e-12
    )
    assert GdpFilter("zero-out", 10, mu=1.0).quote(Gaussian(10.0)) == pytest.approx(0.01, rel=1e-12)
    mixed = Composed(
        (Gaussian(10.0), SelfComposed(PoissonGaussian(1.0, 5.0), 3), PoissonGaussian(0.0, 1.0))
    )
    assert GdpFilter(AR, 10, mu=1.0).quote(mixed, 2) == pytest.approx(0.26, rel=1e-12)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (PoissonGaussian(0.5, 10.0), "not an unsampled Gaussian"),
        (Composed((Gaussian(10.0), PoissonGaussian(0.01, 10.0))), "not an unsampled Gaussian"),
        (NonPrivate("a plot"), "a plot"),
        ("noise", "not an event"),
    ],
)
def test_anything_else_is_refused_with_the_reason(event, reason):
    book = GdpFilter(AR, 10, mu=5.0)
    for ask in (book.charge, book.can_afford, book.quote):
        with pytest.raises(InputError, match=reason):
            ask(event)
    with pytest.raises(InputError, match=reason):
        GdpFilter(AR, 10, mu=5.0, reserve=(event, 2))
    assert book.releases == 0


def test_no_noise_overflows_any_budget():
    with pytest.raises(BudgetExceededError):
        GdpFilter(AR, 10, mu=1e9).charge(Gaussian(0.0))


def test_epsilon_and_delta_give_the_largest_mu():
    book = GdpFilter(AR, 1000, epsilon=4.37718, delta=1e-5)
    assert book.mu == pytest.approx(1.0, abs=2e-6)  # N(1, 1) against N(0, 1) is (4.37718, 1e-5)
    assert gaussian_delta(4.37718, book.mu) <= 1e-5 < gaussian_delta(4.37718, book.mu * (1 + 1e-9))
    book.charge(Gaussian(10.001), 100)
    promised = book.guarantee()
    assert (promised.epsilon, promised.delta, promised.kind) == (4.37718, 1e-5, "filter budget")
    assert book.guarantee(1e-7).epsilon == gaussian_epsilon(1e-7, book.mu)
    assert book.plug_in(1e-5).kind == "NOT_A_GUARANTEE"


def test_mu_gives_an_epsilon_at_every_delta():
    book = GdpFilter(AR, 1000, mu=1.0)
    assert book.guarantee(1e-5).epsilon == pytest.approx(4.37718, abs=1e-5)
    assert book.guarantee(1e-5).epsilon >= 4.37717
    with pytest.raises(InputError, match="name a delta"):
        book.guarantee()


def test_admits_more_than_a_renyi_filter():
    """Nothing is lost to adaptivity, so as much fits as ordinary composition allows: mu^2 sigma^2
    releases.
    """
    gdp = GdpFilter(AR, 10**6, epsilon=2.0, delta=1e-5)
    renyi = RenyiFilter.planned(2.0, 1e-5, AR, 1.0, 50.0, 10**6)
    most = math.floor(gdp.mu**2 * 2500)
    assert gdp.can_afford(Gaussian(50.0), most)
    assert not gdp.can_afford(Gaussian(50.0), most + 1)
    assert not renyi.can_afford(Gaussian(50.0), most)
    assert renyi.can_afford(Gaussian(50.0), int(0.7 * most))


def test_the_worst_adversary_of_two_steps_gets_exactly_the_preset_delta():
    """Whatever the second step makes of the first one's loss, delta is at most, and can be, that of
    N(mu, 1).
    """
    epsilon, mu = 1.0, 1.2
    grid = np.linspace(-9.0, 9.0, 2001)
    weights = np.exp(-grid * grid / 2)
    weights /= weights.sum()
    for first in (0.3, 0.8, 1.1):
        book = GdpFilter(AR, 3, mu=mu)
        book.charge(Gaussian(1 / first))
        rest = math.sqrt(mu * mu - first * first)
        choices = [share * rest * (1 - 1e-9) for share in (0.0, 0.3, 0.7, 1.0)]
        assert all(book.can_afford(Gaussian(1 / choice)) for choice in choices[1:])
        assert not book.can_afford(Gaussian(1 / (rest * (1 + 1e-9))))
        losses = first * grid + first * first / 2
        worst = [max(profile(epsilon - loss, choice) for choice in choices) for loss in losses]
        assert float(weights @ worst) == pytest.approx(gaussian_delta(epsilon, mu), rel=1e-6)


def profile(epsilon: float, mu: float) -> float:
    return gaussian_delta(epsilon, mu) if mu > 0 else max(0.0, -math.expm1(epsilon))


def test_the_reserve_completes_the_run():
    book = GdpFilter(AR, 100, mu=1.0, reserve=(Gaussian(12.0), 100))
    while book.can_afford(Gaussian(4.0)):
        book.charge(Gaussian(4.0))
    assert 0 < book.releases < 16
    while book.releases < 100:
        book.charge(Gaussian(12.0))


def test_state_round_trip_and_refusals():
    for book in (
        GdpFilter(AR, 50, mu=1.0),
        GdpFilter(AR, 50, epsilon=2.0, delta=1e-5, reserve=(Gaussian(90.0), 9)),
    ):
        book.charge(Gaussian(20.0), 3)
        state = json.loads(json.dumps(book.state()))
        assert GdpFilter.from_state(state, contract=book.contract).state() == book.state()
        with pytest.raises(InputError, match="is of a 'gdp-filter'"):
            RenyiFilter.from_state(state)
        state["spent"] = [0.0]
        with pytest.raises(InputError, match="edited"):
            GdpFilter.from_state(state)


@pytest.mark.parametrize(
    "budget",
    [
        {},
        {"mu": 1.0, "epsilon": 1.0, "delta": 1e-5},
        {"epsilon": 1.0},
        {"delta": 1e-5},
        {"mu": 0.0},
        {"mu": math.inf},
        {"mu": True},
        {"epsilon": -1.0, "delta": 1e-5},
        {"epsilon": 1.0, "delta": 1.0},
    ],
)
def test_nonsense_is_refused_in_one_line(budget):
    with pytest.raises(InputError) as refused:
        GdpFilter(AR, 10, **budget)
    assert "\n" not in str(refused.value)
