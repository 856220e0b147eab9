"""What a guarantee leaves to a guesser, held to closed forms of the Gaussian mechanism and to
extremes.
"""

import math
from statistics import NormalDist

import pytest

from accounting import odds

NORMAL = NormalDist()


def gaussian_delta(epsilon: float, mu: float) -> float:
    """δ(ε) of a Gaussian mechanism, Balle and Wang 2018, theorem 8."""
    return NORMAL.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * NORMAL.cdf(
        -mu / 2 - epsilon / mu
    )


def test_perfect_privacy_leaves_a_coin_toss() -> None:
    assert odds.best_guess(0.0, 0.0) == pytest.approx(0.5)
    assert odds.true_positive_rate(0.01, [(0.0, 0.0)]) == pytest.approx(0.01)


def test_pure_privacy_allows_odds_of_e_to_the_epsilon() -> None:
    share = odds.best_guess(2.0, 0.0)
    assert share / (1 - share) == pytest.approx(math.exp(2.0))


def test_delta_adds_a_sure_win() -> None:
    assert odds.best_guess(0.0, 0.2) == pytest.approx(0.6)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.1, 0.5])
def test_no_gaussian_attack_beats_the_bound_and_a_profile_tightens_it(rate: float) -> None:
    mu = 1.0
    attack = NORMAL.cdf(NORMAL.inv_cdf(rate) + mu)  # the optimal test, Dong, Roth and Su 2019
    profile = [(epsilon / 20, gaussian_delta(epsilon / 20, mu)) for epsilon in range(81)]
    tight, loose = (
        odds.true_positive_rate(rate, profile),
        odds.true_positive_rate(rate, [profile[-1]]),
    )
    assert attack - 1e-12 <= tight <= attack * 1.01 + 1e-4
    assert tight < loose


def test_a_huge_epsilon_bounds_nothing_and_does_not_overflow() -> None:
    assert odds.best_guess(5e5, 1e-5) == 1.0
    assert odds.true_positive_rate(0.001, [(5e5, 1e-5)]) == 1.0
