"""Conversions against closed forms of the Gaussian mechanism, brute force, and the accountants' own
theorems.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from accounting import (
    ApproximateDP,
    Composed,
    Gaussian,
    InputError,
    Laplace,
    MixtureGaussian,
    NonPrivate,
    PoissonGaussian,
    PureDP,
    SelfComposed,
    Unsupported,
    WithoutReplacementGaussian,
    make_accountant,
)
from accounting.meaning.conversion import (
    delta_from_points,
    epsilon_from_points,
    epsilon_from_zcdp,
    group_event,
    group_points,
    group_privacy,
    mu_from_epsilon_delta,
    mu_from_zcdp,
    power_curve,
    replace_one_delta,
    replace_one_epsilon,
    replace_one_from_add_remove,
    trade_off_corners,
    zcdp_from_mu,
)
from accounting.mechanisms.gaussian import gaussian_delta, gaussian_epsilon

QUIET = settings(max_examples=50, derandomize=True, deadline=None, database=None)


def gaussian_points(mu, count=60, farthest=8.0):
    thresholds = np.linspace(mu / 2, farthest + mu / 2, count)
    return [(float(e), gaussian_delta(float(e), mu)) for e in mu * thresholds - mu * mu / 2]


def quoted(event, count, delta, adjacency="add-remove"):
    return make_accountant("prv", adjacency).quote(event, count, delta).upper


@QUIET
@given(st.floats(0.0, 50.0), st.floats(-12.0, -0.1))
def test_mu_is_bracketed_by_its_roundings(epsilon, exponent):
    delta = 10.0**exponent
    low, high = (mu_from_epsilon_delta(epsilon, delta, upper) for upper in (False, True))
    assert low <= high <= low * (1 + 1e-9) + 1e-12
    assert gaussian_delta(epsilon, high) >= delta
    assert gaussian_delta(epsilon, low, upper=False) <= delta


def test_mu_of_known_guarantees():
    assert mu_from_epsilon_delta(4.377178, 1e-5) == pytest.approx(1.0, rel=1e-6)
    assert mu_from_epsilon_delta(0.0, 0.3829249225480262) == pytest.approx(1.0, rel=1e-9)
    for epsilon, delta in [
        (-1.0, 1e-5),
        (math.inf, 1e-5),
        (1.0, 0.0),
        (1.0, 1.0),
        (math.nan, 1e-5),
    ]:
        with pytest.raises(InputError, match="give a guarantee's"):
            mu_from_epsilon_delta(epsilon, delta)


def test_concentrated_privacy():
    assert zcdp_from_mu(1.0) == pytest.approx(0.5)
    assert mu_from_zcdp(zcdp_from_mu(0.7)) == pytest.approx(0.7)
    # dp-accounting gives 4.7285 for one Gaussian with unit noise, on fewer orders; the Gaussian
    # itself spends 4.3772.
    assert 4.728 < epsilon_from_zcdp(0.5, 1e-5) <= 4.72855
    assert epsilon_from_zcdp(1e-4, 1e-5) < 1e-4 + 2 * math.sqrt(1e-4 * math.log(1e5))
    assert epsilon_from_zcdp(0.0, 1e-5) == 0.0
    with pytest.raises(InputError, match="rho=-1"):
        epsilon_from_zcdp(-1, 1e-5)


@QUIET
@given(
    st.lists(st.tuples(st.floats(0.0, 12.0), st.floats(0.0, 1.0)), min_size=1, max_size=8),
    st.floats(0.0, 1.0),
)
def test_the_broken_line_is_the_least_of_all_straight_ones(points, rate):
    expected = 1.0
    for epsilon, delta in points:
        expected = min(
            expected, math.exp(epsilon) * rate + delta, 1 - math.exp(-epsilon) * (1 - delta - rate)
        )
    rates, powers = power_curve(points)
    assert np.interp(rate, rates, powers) == pytest.approx(min(expected, 1.0), abs=1e-11)
    assert (np.diff(rates) >= 0).all()
    corner_rates, corner_powers = trade_off_corners(points)
    assert corner_powers[-1] == 1 - corner_rates[-1]


@QUIET
@given(
    st.lists(st.tuples(st.floats(0.0, 8.0), st.floats(0.0, 0.9)), min_size=1, max_size=6),
    st.floats(0.0, 9.0),
)
def test_what_points_imply_elsewhere_is_what_every_power_curve_below_them_obeys(points, epsilon):
    implied = delta_from_points(points, epsilon)
    rates = np.concatenate([[0.0], np.logspace(-9, 0, 4000)])
    lines = [np.minimum(np.exp(e) * rates + d, 1 - np.exp(-e) * (1 - d - rates)) for e, d in points]
    brute = float(np.max(np.minimum(np.min(lines, axis=0), 1.0) - np.exp(epsilon) * rates))
    assert brute - 1e-12 <= implied <= brute + 5e-3
    for e, d in points:
        assert delta_from_points(points, e) <= d + 1e-11


@pytest.mark.parametrize("delta", [0.2, 1e-3, 1e-6])
def test_epsilon_and_delta_from_points_are_inverse(delta):
    points = gaussian_points(1.2)
    epsilon = epsilon_from_points(points, delta)
    assert delta_from_points(points, epsilon) == pytest.approx(delta, rel=1e-6)
    assert gaussian_epsilon(delta, 1.2) <= epsilon <= gaussian_epsilon(delta, 1.2) * 1.01
    assert epsilon_from_points([(1.0, 1e-3)], 1e-4) == math.inf


@QUIET
@given(st.floats(0.0, 6.0), st.floats(1e-12, 1e-3), st.integers(1, 8))
def test_group_privacy_is_a_geometric_sum(epsilon, delta, units):
    total, failure = group_privacy(epsilon, delta, units)
    growth = math.fsum(math.exp(j * epsilon) for j in range(units))
    assert total == pytest.approx(units * epsilon, rel=1e-12)
    assert failure == pytest.approx(min(1.0, growth * delta), rel=1e-9)
    assert (
        delta_from_points(group_points([(epsilon, delta)], units), total)
        <= failure * (1 + 1e-9) + 1e-11
    )


def test_group_privacy_at_the_extremes():
    assert group_privacy(0.5, 0.0, 3) == (pytest.approx(1.5), 0.0)
    assert group_privacy(600.0, 1e-300, 2) == (pytest.approx(1200.0), 1.0)
    assert group_privacy(math.inf, 0.1, 2) == (math.inf, 0.1)
    for units in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="size of the group"):
            group_privacy(1.0, 1e-5, units)


@pytest.mark.parametrize("units", [1, 2, 3, 5])
@pytest.mark.parametrize("mu", [0.1, 0.7])
def test_a_group_of_a_gaussian_is_a_gaussian_of_k_mu(mu, units):
    group = group_points(gaussian_points(mu, 120, 9.0), units)
    for delta in (0.01, 1e-4, 1e-6):
        exact = gaussian_epsilon(delta, units * mu)
        assert exact <= epsilon_from_points(group, delta) <= exact * 1.01


def test_a_group_under_pure_privacy_costs_k_epsilon_and_no_more():
    group = group_points([(0.4, 0.0)], 3)
    assert delta_from_points(group, 1.2) == pytest.approx(0.0, abs=1e-10)
    # Randomized response three times in a row attains it: its power curve is the chain of one's.
    once = (math.exp(0.4) * np.asarray([1e-4])).item()
    assert np.interp(1e-4, *power_curve(group)) == pytest.approx(math.exp(0.8) * once, rel=1e-9)


def test_replace_one_by_conversion_holds_and_the_whole_profile_gives_less():
    event, book = PoissonGaussian(0.02, 1.1), make_accountant("prv", "add-remove")
    book.charge(event, 50)
    proven = quoted(event, 50, 1e-5, "replace-one")
    points = [(epsilon, book.delta(epsilon)) for epsilon in np.linspace(0.0, 4.0, 25).tolist()]
    by_points = epsilon_from_points(replace_one_from_add_remove(points), 1e-5)
    by_halves = replace_one_epsilon(lambda delta: book.epsilon(delta).upper, 1e-5)
    assert proven <= by_points <= by_halves * 1.01
    assert replace_one_delta(book.delta, by_halves) <= 1e-5 * 1.02
    assert replace_one_delta(book.delta, by_halves * 0.98) > 1e-5


def test_replace_one_epsilon_of_hopeless_profiles():
    assert replace_one_epsilon(lambda delta: math.inf, 1e-5) == math.inf
    assert replace_one_epsilon(lambda delta: 400.0, 1e-5) in (800.0, math.inf)
    assert replace_one_delta(lambda epsilon: 0.5, 3.0) == 1.0


def hockey_stick(shifts, weights, sigma, factor, remove):
    """H_factor(P || Q) by quadrature: P mixes N(shift, sigma^2), Q = N(0, sigma^2); or the other
    way round.
    """
    x = np.linspace(-14 * sigma - 3, 14 * sigma + 3, 40001)
    q = np.exp(-0.5 * (x / sigma) ** 2)
    p = sum(w * np.exp(-0.5 * ((x - s) / sigma) ** 2) for s, w in zip(shifts, weights, strict=True))
    gap = p - factor * q if remove else q - factor * p
    return float(np.trapezoid(np.maximum(gap, 0.0), x) / sigma / math.sqrt(2 * math.pi))


@QUIET
@given(
    st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=3),
    st.floats(0.01, 0.9),
    st.floats(0.4, 3.0),
    st.floats(0.2, 6.0),
    st.booleans(),
)
def test_no_group_of_contributions_is_told_apart_better_than_equal_ones(
    shifts, rate, sigma, factor, remove
):
    subsets = [[(index >> i) & 1 for i in range(len(shifts))] for index in range(2 ** len(shifts))]
    weights = [math.prod(rate if taken else 1 - rate for taken in subset) for subset in subsets]
    moved = [sum(t * s for t, s in zip(subset, shifts, strict=True)) for subset in subsets]
    event = group_event(PoissonGaussian(rate, sigma), len(shifts))
    assert isinstance(event, MixtureGaussian)
    worst = hockey_stick(event.sensitivities, event.probabilities, sigma, factor, remove)
    assert hockey_stick(moved, weights, sigma, factor, remove) <= worst + 1e-9


def test_a_sampled_group_costs_less_than_the_profile_shows_but_more_than_its_size():
    one = PoissonGaussian(0.01, 1.0)
    pair = group_event(SelfComposed(one, 1000), 2)
    direct, alone = quoted(pair, 1, 1e-5), quoted(one, 1000, 1e-5)
    book = make_accountant("prv", "add-remove")
    book.charge(one, 1000)
    points = [(book.epsilon(delta).upper, delta) for delta in np.logspace(-12, -1.2, 20).tolist()]
    assert 2 * alone < direct < epsilon_from_points(group_points(points, 2), 1e-5)
    assert direct == pytest.approx(3.979, abs=0.01)


@pytest.mark.parametrize("adjacency", ["add-remove", "zero-out", "replace-one"])
def test_events_of_groups(adjacency):
    event = Composed((Gaussian(2.0), SelfComposed(PoissonGaussian(1.0, 5.0), 4)))
    mu = 3 * math.sqrt(1 / 4 + 4 / 25) * (2 if adjacency == "replace-one" else 1)
    assert quoted(group_event(event, 3), 1, 1e-6, adjacency) == pytest.approx(
        gaussian_epsilon(1e-6, mu), rel=1e-9
    )
    thirds = [
        quoted(event, 1, 1e-9, adjacency)
        for event in (group_event(Laplace(4.0), 3), Laplace(4.0 / 3))
    ]
    assert thirds[0] == pytest.approx(thirds[1], rel=1e-12)


def test_events_of_groups_without_a_theorem_are_infinite_with_the_reason():
    event = WithoutReplacementGaussian(1000, 10, 1.0)
    assert group_event(event, 1) is event
    group = group_event(event, 2)
    assert isinstance(group, Unsupported)
    assert "group_points" in group.reason
    assert quoted(group, 1, 1e-5, "replace-one") == math.inf
    lost = NonPrivate("raw labels were printed")
    assert group_event(lost, 4) is lost


def test_stated_guarantees_of_groups():
    assert group_event(PureDP(0.5, "add-remove"), 4).epsilon == pytest.approx(2.0)
    approximate = group_event(ApproximateDP(0.5, 1e-6, "add-remove"), 2)
    assert approximate.failure_probability == pytest.approx(1e-6 * (1 + math.exp(0.5)))
    assert isinstance(group_event(ApproximateDP(5.0, 0.1, "add-remove"), 4), Unsupported)


@pytest.mark.parametrize(
    "point", [(-0.1, 0.5), (1.0, -1e-9), (1.0, 1.1), (math.nan, 0.1), (1.0, math.nan)]
)
def test_points_that_are_no_guarantees_are_refused(point):
    with pytest.raises(InputError, match="no \\(epsilon, delta\\) guarantee"):
        delta_from_points([(0.0, 0.5), point], 1.0)


def test_power_of_a_gaussian_profile_is_the_optimal_test():
    rates, powers = power_curve(gaussian_points(1.0, 200))
    best = ndtr(1.0 + np.asarray([-3.0, -2.0, -1.0, 0.0, 1.0]))
    bound = np.interp(ndtr(np.asarray([-3.0, -2.0, -1.0, 0.0, 1.0])), rates, powers)
    assert (best <= bound + 1e-12).all()
    assert bound == pytest.approx(best, rel=1e-3)
