"""Calibration never exceeds the budget and hardly stays below it."""

import math

import pytest

from accounting import (
    InvalidInput,
    PoissonGaussian,
    calibrate_noise_multiplier,
    make_accountant,
    most_steps,
)

RUNS = [
    (8.0, 1e-5, 0.01, 1000),
    (3.0, 1e-5, 256 / 60000, 2344),
    (1.0, 1e-6, 1.0, 10),
    (0.1, 1e-5, 0.05, 40),
    (8.0, 7.4e-6, 1024 / 67349, 198),
]


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
@pytest.mark.parametrize(("epsilon", "delta", "rate", "steps"), RUNS)
def test_noise_is_sufficient_and_hardly_more_than_needed(accountant, epsilon, delta, rate, steps):
    result = calibrate_noise_multiplier(epsilon, delta, rate, steps, accountant=accountant)
    again = make_accountant(accountant).quote(PoissonGaussian(rate, result.noise_multiplier), steps, delta).upper
    assert again == result.epsilon <= epsilon
    assert result.epsilon >= epsilon * (1 - 1e-3)
    less = PoissonGaussian(rate, result.noise_multiplier * (1 - 2e-3))
    assert make_accountant(accountant).quote(less, steps, delta).upper > epsilon * (1 - 5e-4)


@pytest.mark.parametrize("batches", [1, 7, 93, 99, 105])
@pytest.mark.parametrize("epochs", range(1, 11))
def test_opacus_confirms_that_no_loader_length_exceeds_the_budget(batches, epochs):
    from opacus.accountants import RDPAccountant

    rate, steps = 1 / batches, batches * epochs
    sigma = calibrate_noise_multiplier(8.0, 1e-5, rate, steps, accountant="rdp").noise_multiplier
    oracle = RDPAccountant()
    oracle.history = [(sigma, rate, steps)]
    alphas = [1 + 0.02 * k for k in range(1, 300)] + list(range(8, 64))
    assert oracle.get_epsilon(1e-5, alphas=alphas) <= 8.0 * (1 + 2e-3)
    assert make_accountant("rdp").quote(PoissonGaussian(rate, sigma), steps, 1e-5).upper <= 8.0


def test_the_tight_accountant_needs_less_noise():
    loose, tight = (calibrate_noise_multiplier(3.0, 1e-5, 0.01, 500, accountant=name) for name in ("rdp", "prv"))
    assert tight.noise_multiplier < loose.noise_multiplier


def test_replace_one_needs_more_noise():
    near, far = (
        calibrate_noise_multiplier(3.0, 1e-5, 1.0, 5, adjacency=adjacency) for adjacency in ("zero-out", "replace-one")
    )
    assert far.noise_multiplier == pytest.approx(2 * near.noise_multiplier, rel=1e-3)
    assert far.adjacency == "replace-one"


def test_most_steps_is_the_last_one_that_fits():
    for accountant in ("rdp", "prv"):
        steps = most_steps(2.0, 1e-5, 0.01, 1.0, accountant=accountant)
        book = make_accountant(accountant)
        assert book.quote(PoissonGaussian(0.01, 1.0), steps, 1e-5).upper <= 2.0
        assert book.quote(PoissonGaussian(0.01, 1.0), steps + 1, 1e-5).upper > 2.0
    assert most_steps(0.1, 1e-5, 1.0, 1.0) == 0
    # The Rényi optimum over all orders admits 13621 steps on a sparser grid of orders.
    assert 13621 <= most_steps(8.0, 1e-5, 0.01, 1.0, accountant="rdp") <= 13630


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
    request = {"epsilon": 8.0, "delta": 1e-5, "sample_rate": 0.01, "steps": 100, **change}
    with pytest.raises(InvalidInput) as refusal:
        calibrate_noise_multiplier(**request)
    assert "\n" not in str(refusal.value)
