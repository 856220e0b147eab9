"""What a guesser can achieve: closed forms of the Gaussian mechanism and randomized response, and
brute force.
"""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from accounting import (
    ApproximateDP,
    FixedBatchesGaussian,
    Gaussian,
    InputError,
    NonPrivate,
    PoissonGaussian,
    PureDP,
    make_accountant,
)
from accounting.meaning.tradeoff import (
    SMALLEST_RATE,
    advantage,
    gaussian_fit,
    gdp_mu,
    largest_true_positive_rate,
    profile_points,
    trade_off_curve,
)
from accounting.mechanisms.gaussian import gaussian_delta
from accounting.odds import best_guess, true_positive_rate
from accounting.pld.bounds import pld_delta

QUIET = settings(max_examples=50, derandomize=True, deadline=None, database=None)
NORMAL = NormalDist()
POINTS = st.lists(st.tuples(st.floats(0.0, 12.0), st.floats(0.0, 1.0)), min_size=1, max_size=6)


def book_of(*events, accountant="prv", adjacency="add-remove"):
    book = make_accountant(accountant, adjacency)
    for event, count in events:
        book.charge(event, count)
    return book


def gaussian_points(mu, count=200):
    thresholds = np.linspace(mu / 2, 9.0 + mu / 2, count)
    return [(float(e), gaussian_delta(float(e), mu)) for e in mu * thresholds - mu * mu / 2]


def test_a_guess_from_even_odds():
    assert best_guess(0.0, 0.0) == pytest.approx(0.5)
    assert best_guess(2.0, 0.0) / (1 - best_guess(2.0, 0.0)) == pytest.approx(math.exp(2.0))
    assert best_guess(0.0, 0.2) == pytest.approx(0.6)
    assert best_guess(5e5, 1e-5) == best_guess(math.inf, 0.0) == 1.0


@QUIET
@given(st.floats(0.0, 20.0), st.floats(0.0, 1.0))
def test_no_mix_of_both_errors_beats_the_best_guess(epsilon, delta):
    rates = np.linspace(0.0, 1.0, 2001)
    misses = trade_off_curve([(epsilon, delta)], rates)
    right = 1 - (rates + misses) / 2
    assert right.max() <= best_guess(epsilon, delta) + 1e-12
    assert right.max() >= best_guess(epsilon, delta) - 1e-3


@QUIET
@given(POINTS, st.floats(0.0, 1.0))
def test_the_curve_is_convex_falling_and_the_complement_of_the_true_positive_rate(points, rate):
    rates = np.linspace(0.0, 1.0, 101)
    misses = trade_off_curve(points, rates)
    assert (misses <= 1 - rates + 1e-15).all()
    assert (np.diff(misses) <= 1e-15).all()
    assert (np.diff(misses, 2) >= -1e-13).all()
    assert true_positive_rate(rate, points) == pytest.approx(
        1 - trade_off_curve(points, [rate])[0], abs=1e-14
    )


@pytest.mark.parametrize("rate", [1e-9, 0.001, 0.1, 0.5, 0.9])
def test_no_gaussian_attack_beats_the_bound_and_a_profile_tightens_it(rate):
    attack = NORMAL.cdf(NORMAL.inv_cdf(rate) + 1.0)
    tight, loose = (true_positive_rate(rate, gaussian_points(1.0)[skip:]) for skip in (0, 199))
    assert attack <= tight <= attack * 1.003
    assert tight < loose


def test_true_positive_rates_at_the_extremes():
    assert true_positive_rate(0.01, [(0.0, 0.0)]) == pytest.approx(0.01)
    assert true_positive_rate(0.0, [(3.0, 1e-5)]) == pytest.approx(1e-5)
    assert true_positive_rate(0.0, [(math.inf, 1e-5)]) == pytest.approx(1e-5)
    assert true_positive_rate(1e-300, [(5e5, 1e-5)]) == 1.0
    assert true_positive_rate(1.0, [(1.0, 0.0)]) == 1.0
    assert trade_off_curve([(math.inf, 1e-5)], [0.0, 1e-6]).tolist() == [
        pytest.approx(1 - 1e-5),
        0.0,
    ]
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="give shares of non-members"):
            true_positive_rate(rate, [(1.0, 0.0)])
    with pytest.raises(InputError, match="guarantee"):
        true_positive_rate(0.1, [(1e-5, 1.8)])  # (delta, epsilon), as a profile lists them


def test_advantage_is_the_total_variation():
    assert advantage(book_of((PoissonGaussian(0.01, 1.0), 1))) == pytest.approx(
        0.01 * (2 * ndtr(0.5) - 1), rel=1e-9
    )
    assert advantage(book_of((Gaussian(2.0), 4))) == pytest.approx(2 * ndtr(0.5) - 1, rel=1e-9)
    assert advantage(book_of((NonPrivate("a print"), 1))) == 1.0


SCHEDULES = [
    [(PoissonGaussian(0.01, 1.0), 1000)],
    [(PoissonGaussian(0.02, 0.7), 100), (PoissonGaussian(0.01, 1.5), 50), (Gaussian(20.0), 3)],
    [(PoissonGaussian(0.001, 0.5), 100)],
    [(PoissonGaussian(0.01, 50.0), 100)],
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=range(len(SCHEDULES)))
@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_points_are_valid_and_as_good_as_single_answers(schedule, adjacency):
    book = book_of(*schedule, adjacency=adjacency)
    points = profile_points(book)
    assert points == sorted(points)
    assert points[0][0] == 0.0
    assert points[-1][1] <= 1.1e-14
    for epsilon, delta in points[:: len(points) // 3]:
        lower, upper = pld_delta(schedule, epsilon, adjacency)
        assert lower <= delta <= upper * (1 + 2e-3)


def test_events_without_a_theorem_reveal_everything():
    # The event knows its mu, but not under an adjacency that would move other units between
    # batches.
    unstable, sampled = FixedBatchesGaussian(3, 2.0), PoissonGaussian(0.01, 1.0)
    for book in (
        book_of((unstable, 1)),
        book_of((sampled, 50), (unstable, 1)),
        book_of((NonPrivate("a print"), 1)),
    ):
        assert all(delta == 1.0 for _, delta in profile_points(book))
        assert gaussian_fit(book).mu == math.inf
        assert largest_true_positive_rate(book, 0.01) == advantage(book) == 1.0
    assert gaussian_fit(book_of((unstable, 1), adjacency="zero-out")).mu == pytest.approx(
        math.sqrt(3) / 2
    )


def test_points_where_there_is_nothing_to_compose():
    assert profile_points(book_of()) == [(0.0, 0.0)]
    parts = (ApproximateDP(0.5, 1e-3, "add-remove"), 3), (PoissonGaussian(0.1, 2.0), 5)
    failing = book_of(*parts)
    for epsilon, delta in profile_points(failing, 8)[::3]:
        assert 1 - (1 - 1e-3) ** 3 <= delta == pytest.approx(failing.delta(epsilon), rel=2e-3)
    slow_but_sure = book_of((PoissonGaussian(0.01, 1.0), 100), accountant="rdp")
    assert all(
        delta == slow_but_sure.delta(epsilon) for epsilon, delta in profile_points(slow_but_sure, 8)
    )
    stated = book_of((PureDP(0.1, "add-remove"), 9))
    for epsilon, delta in profile_points(stated, 8)[3::5]:
        assert delta == pytest.approx(stated.delta(epsilon), rel=2e-3, abs=1e-15)


@pytest.mark.parametrize("rate", [1e-6, 0.01, 0.3, 0.8])
def test_the_largest_true_positive_rate_of_a_gaussian_is_that_of_the_optimal_test(rate):
    attack = NORMAL.cdf(NORMAL.inv_cdf(rate) + 0.8)
    assert (
        attack
        <= largest_true_positive_rate(book_of((Gaussian(2.5), 4)), rate)
        <= attack * (1 + 1e-3)
    )


def test_the_largest_true_positive_rate_is_no_worse_than_the_points():
    book = book_of((PoissonGaussian(0.01, 0.8), 400))
    found = largest_true_positive_rate(book, 0.01)
    by_points = true_positive_rate(0.01, profile_points(book))
    assert by_points * (1 - 0.02) <= found <= by_points
    fine = [(epsilon, book.delta(epsilon)) for epsilon in np.linspace(0.5, 2.0, 31).tolist()]
    assert found <= true_positive_rate(0.01, fine) * (1 + 5e-4)


@pytest.mark.parametrize("mu", [0.01, 0.5, 1.0, 3.0, 10.0])
def test_mu_of_a_gaussian_profile(mu):
    fit = gdp_mu(gaussian_points(mu, 400))
    assert mu <= fit.mu <= mu * 1.001
    assert fit.regret <= 1e-4
    assert fit.note == ""


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_mu_of_randomized_response(epsilon):
    # Gomez et al. 2025, arXiv 2503.10945, Proposition 6.1; a poor fit by their measure, too.
    fit = gdp_mu([(epsilon, 0.0)])
    assert fit.mu == pytest.approx(-2 * ndtri(1 / (math.exp(epsilon) + 1)), rel=1e-9)
    assert fit.regret > 0.01
    assert "poor fit" in fit.note


def shift_by_bisection(points, mu):
    """The smallest shift of the points' curve along the diagonal that brings it below the Gaussian
    one.
    """
    rates = np.concatenate([[0.0], np.logspace(-8, 0, 3000)])
    gaussian = ndtr(-mu - ndtri(rates))
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        shift = (low + high) / 2
        below = trade_off_curve(points, np.minimum(rates + shift, 1.0)) - shift <= gaussian
        low, high = (low, shift) if below.all() else (shift, high)
    return high


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 0.0)],
        [(0.0, 0.3), (1.0, 0.1), (3.0, 1e-3)],
        gaussian_points(1.0, 9),
        [(0.0, 0.004), (3.0, 1e-13)],
    ],
    ids=["randomized response", "few", "coarse", "rare"],
)
def test_regret_is_the_smallest_shift(points):
    fit = gdp_mu(points)
    assert fit.regret == pytest.approx(shift_by_bisection(points, fit.mu), rel=5e-3, abs=1e-7)


@QUIET
@given(POINTS)
def test_mu_covers_the_points_wherever_it_says_so(points):
    fit = gdp_mu(points)
    if fit.mu == math.inf:
        return
    rates = np.logspace(-12, math.log10(0.5), 400)
    powers = np.asarray([true_positive_rate(rate, points) for rate in rates])
    claimed = 1 - powers >= SMALLEST_RATE
    assert (powers[claimed] <= ndtr(ndtri(rates[claimed]) + fit.mu) * (1 + 1e-9)).all()


def test_mu_where_nothing_or_everything_is_revealed():
    assert gdp_mu([(0.0, 0.0)]).mu == pytest.approx(0.0, abs=1e-12)
    assert gdp_mu([(0.0, 0.0)]).note == ""
    assert gdp_mu([(5e5, 1e-5)]).mu == gdp_mu([(0.0, 1.0)]).mu == math.inf
    with pytest.raises(InputError, match="leave it at 1e-12"):
        gdp_mu([(1.0, 0.0)], smallest_rate=0.0)


def test_mu_of_training_runs():
    # gdpnum 0.1 documents mu = 1.56856 and a regret of 0.00102 for this run, at error rates from
    # 1e-10 up.
    fit = gaussian_fit(book_of((PoissonGaussian(0.328, 9.4), 2000)))
    assert 1.5685 <= fit.mu <= 1.5685 * 1.01
    assert fit.regret <= 0.003
    assert fit.note == ""
    single = gaussian_fit(book_of((PoissonGaussian(0.01, 1.0), 1)))
    assert single.mu > 0.3
    assert "poor fit" in single.note
    assert "from even odds it is 0.502" in single.note


def test_unsampled_noise_has_exactly_its_mu():
    fit = gaussian_fit(
        book_of((Gaussian(2.0), 9), (PoissonGaussian(1.0, 1.0), 4), adjacency="replace-one")
    )
    assert fit.mu == pytest.approx(5.0)
    assert (fit.regret, fit.note) == (0.0, "")
    assert gaussian_fit(book_of()).mu == 0.0
