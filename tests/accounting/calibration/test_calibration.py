"""Calibration never exceeds the budget, and one part in a thousand (or one step) more would."""

import math

import pytest

from accounting import (
    InputError,
    PoissonGaussian,
    calibrate_noise_multiplier,
    make_accountant,
    most_steps,
)
from accounting.accountant import booked
from accounting.calibration.calibration import (
    Advantage,
    TruePositiveRate,
    calibrate_noise_multiplier_for,
    calibrate_sample_rate,
)

RUNS = [
    (8.0, 1e-5, 0.01, 1000),
    (3.0, 1e-5, 256 / 60000, 2344),
    (1.0, 1e-6, 1.0, 10),
    (0.1, 1e-5, 0.05, 40),
    (8.0, 7.4e-6, 1024 / 67349, 198),
    (500.0, 1e-5, 0.01, 10),
    (1e-3, 1e-5, 1e-4, 1),
]


def spent(rate, sigma, steps, delta, adjacency="add-remove", accountant="prv"):
    return (
        make_accountant(accountant, adjacency)
        .quote(PoissonGaussian(rate, sigma), steps, delta)
        .upper
    )


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(("epsilon", "delta", "rate", "steps"), RUNS)
def test_noise_is_sufficient_and_hardly_more_than_needed(accountant, epsilon, delta, rate, steps):
    result = calibrate_noise_multiplier(
        epsilon, delta, rate, steps, adjacency="add-remove", accountant=accountant
    )
    sigma = result.noise_multiplier
    assert spent(rate, sigma, steps, delta, accountant=accountant) == result.epsilon <= epsilon
    assert spent(rate, sigma * (1 - 1e-3), steps, delta, accountant=accountant) > epsilon
    assert (result.accountant, result.adjacency, result.steps) == (accountant, "add-remove", steps)


def test_the_usual_budgets_are_used_up():
    for epsilon, delta, rate, steps in RUNS[:5]:
        result = calibrate_noise_multiplier(epsilon, delta, rate, steps, adjacency="add-remove")
        assert result.epsilon >= epsilon * (1 - 1e-3)


@pytest.mark.parametrize("batches", [1, 7, 93, 99, 105])
@pytest.mark.parametrize("epochs", [1, 3, 10])
def test_opacus_confirms_that_no_loader_length_exceeds_the_budget(batches, epochs):
    from opacus.accountants import RDPAccountant

    rate, steps = 1 / batches, batches * epochs
    sigma = calibrate_noise_multiplier(
        8.0, 1e-5, rate, steps, adjacency="add-remove", accountant="rdp"
    ).noise_multiplier
    oracle = RDPAccountant()
    oracle.history = [(sigma, rate, steps)]
    alphas = [1 + 0.1 * k for k in range(1, 70)] + list(range(8, 64))
    assert oracle.get_epsilon(1e-5, alphas=alphas) <= 8.0 * (1 + 2e-3)


def test_the_tight_accountant_needs_less_noise():
    loose, tight = (
        calibrate_noise_multiplier(3.0, 1e-5, 0.01, 500, adjacency="add-remove", accountant=name)
        for name in ("rdp", "prv")
    )
    assert tight.noise_multiplier < loose.noise_multiplier


def test_replace_one_needs_more_noise():
    near, far = (
        calibrate_noise_multiplier(3.0, 1e-5, 1.0, 5, adjacency=adjacency)
        for adjacency in ("zero-out", "replace-one")
    )
    assert far.noise_multiplier == pytest.approx(2 * near.noise_multiplier, rel=1e-3)
    assert far.adjacency == "replace-one"


def test_a_budget_for_anything_still_gets_some_noise():
    assert (
        calibrate_noise_multiplier(1e9, 1e-5, 0.5, 1, adjacency="add-remove").noise_multiplier
        == 1e-3
    )


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "sigma", "known"),
    [
        (2.0, 1e-5, 0.01, 1.0, 1202),
        (0.1, 1e-5, 1.0, 1.0, 0),
        (3.0, 1e-5, 1.0, 20.0, 206),
        (1.0, 1e-5, 0.1, 2.0, 16),
    ],
)
def test_most_steps_is_the_last_one_that_fits(epsilon, delta, rate, sigma, known):
    for accountant in ("rdp", "prv"):
        steps = most_steps(
            epsilon, delta, rate, sigma, adjacency="add-remove", accountant=accountant
        )
        assert steps == 0 or spent(rate, sigma, steps, delta, accountant=accountant) <= epsilon
        assert spent(rate, sigma, steps + 1, delta, accountant=accountant) > epsilon
    assert abs(steps - known) <= 1


def test_most_steps_by_the_renyi_bound_meets_a_published_count():
    # The optimum over all orders admits 13621 steps on a sparser grid of orders.
    steps = most_steps(8.0, 1e-5, 0.01, 1.0, adjacency="add-remove", accountant="rdp")
    assert 13621 <= steps <= 13630


def test_steps_without_end_are_refused():
    with pytest.raises(InputError, match="set the number of steps yourself"):
        most_steps(5.0, 1e-5, 1e-9, 1e5, adjacency="add-remove", accountant="rdp")


@pytest.mark.parametrize(
    ("epsilon", "delta", "sigma", "steps"),
    [(8.0, 1e-5, 0.6, 1000), (1.0, 1e-5, 1.0, 300), (0.1, 1e-5, 2.0, 1000), (2.0, 1e-5, 1.0, 1)],
)
@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_the_sample_rate_is_the_largest_that_fits(epsilon, delta, sigma, steps, accountant):
    result = calibrate_sample_rate(
        epsilon, delta, sigma, steps, adjacency="add-remove", accountant=accountant
    )
    rate = result.sample_rate
    assert 0.0 < rate < 1.0
    assert spent(rate, sigma, steps, delta, accountant=accountant) == result.epsilon <= epsilon
    assert spent(rate * (1 + 1e-3), sigma, steps, delta, accountant=accountant) > epsilon


def test_everything_may_be_sampled_where_the_noise_alone_is_enough():
    result = calibrate_sample_rate(5.0, 1e-5, 4.0, 10, adjacency="zero-out")
    assert result.sample_rate == 1.0
    assert result.epsilon == pytest.approx(spent(1.0, 4.0, 10, 1e-5, "zero-out"))


@pytest.mark.parametrize(
    ("target", "rate", "steps", "adjacency"),
    [
        (Advantage(0.1), 0.01, 200, "add-remove"),
        (Advantage(0.2), 1.0, 10, "replace-one"),
        (TruePositiveRate(0.01, 0.1), 1.0, 10, "zero-out"),
        (TruePositiveRate(0.001, 0.02), 0.02, 100, "add-remove"),
        (TruePositiveRate(0.1, 0.13), 0.05, 1, "add-remove"),
    ],
    ids=str,
)
@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_noise_for_a_guesser_is_sufficient_and_hardly_more_than_needed(
    target, rate, steps, adjacency, accountant
):
    result = calibrate_noise_multiplier_for(
        target, rate, steps, adjacency=adjacency, accountant=accountant
    )

    def achieved(sigma):
        return target.achieved(
            booked([(PoissonGaussian(rate, sigma), steps)], adjacency, accountant)
        )

    assert achieved(result.noise_multiplier) == result.achieved <= target.value
    assert achieved(result.noise_multiplier * (1 - 1e-3)) > target.value


def test_noise_for_a_guesser_at_unsampled_noise_has_closed_forms():
    # 10 releases: mu = sqrt(10) / sigma; advantage 2 Phi(mu/2) - 1 = 0.2 at mu = 0.506694.
    found = calibrate_noise_multiplier_for(Advantage(0.2), 1.0, 10, adjacency="add-remove")
    assert found.noise_multiplier == pytest.approx(math.sqrt(10) / 0.5066942, rel=1e-3)
    # Phi^-1(0.1) - Phi^-1(0.01) = 1.044796.
    found = calibrate_noise_multiplier_for(
        TruePositiveRate(0.01, 0.1), 1.0, 10, adjacency="add-remove"
    )
    assert found.noise_multiplier == pytest.approx(math.sqrt(10) / 1.0447963, rel=1e-3)


def test_a_target_that_no_noise_can_miss_gets_the_least_noise():
    # A unit that takes part in 1 % of releases adds at most 1 % to any true positive rate.
    found = calibrate_noise_multiplier_for(
        TruePositiveRate(0.01, 0.03), 0.01, 1, adjacency="add-remove"
    )
    assert found.noise_multiplier == 1e-3


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"delta": 0.0},
        {"delta": 1.0},
        {"delta": math.nan},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"sample_rate": math.nan},
        {"steps": 0},
        {"steps": 2.5},
        {"accountant": "moments"},
        {"adjacency": "neighbours"},
        {"epsilon": 1e-9, "delta": 1e-12},
    ],
    ids=str,
)
def test_impossible_requests_are_refused_in_one_line(change):
    request = {
        "epsilon": 8.0,
        "delta": 1e-5,
        "sample_rate": 0.01,
        "steps": 100,
        "adjacency": "add-remove",
        **change,
    }
    with pytest.raises(InputError) as refusal:
        calibrate_noise_multiplier(**request)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: Advantage(0.0),
        lambda: Advantage(1.0),
        lambda: Advantage(math.nan),
        lambda: TruePositiveRate(0.1, 0.1),
        lambda: TruePositiveRate(0.1, 0.05),
        lambda: TruePositiveRate(0.0, 0.05),
        lambda: TruePositiveRate(0.1, 1.0),
        lambda: TruePositiveRate(0.1, 0.1 + 1e-12),
        lambda: calibrate_noise_multiplier_for(Advantage(0.1), 0.0, 10, adjacency="add-remove"),
        lambda: calibrate_noise_multiplier_for(Advantage(0.1), 0.1, 0, adjacency="add-remove"),
        lambda: calibrate_noise_multiplier_for(Advantage(0.1), 0.1, 10, adjacency="next"),
        lambda: calibrate_sample_rate(1.0, 1e-5, 0.0, 10, adjacency="add-remove"),
        lambda: calibrate_sample_rate(1.0, 1e-5, math.nan, 10, adjacency="add-remove"),
        lambda: calibrate_sample_rate(1.0, 1e-5, 1.0, 0, adjacency="add-remove"),
        lambda: most_steps(1.0, 1e-5, 0.0, 1.0, adjacency="add-remove"),
    ],
)
def test_impossible_targets_are_refused_in_one_line(attempt):
    with pytest.raises(InputError) as refusal:
        attempt()
    assert "\n" not in str(refusal.value)
