"""The certified interval from loss distributions: it holds the truth, and it is narrow."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from accounting import CannotComputeError, Gaussian, NonPrivate, PoissonGaussian, SelfComposed
from accounting.mechanisms.gaussian import gaussian_delta, gaussian_epsilon
from accounting.mechanisms.poisson_gaussian import poisson_loss_grid
from accounting.pld.bounds import cheap_lower, pld_delta, pld_epsilon
from accounting.pld.composition import Composition
from accounting.rdp.curve import renyi_epsilon
from accounting.schedules import Term
from tests.support.fourier_inversion import Inversion

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "epsilon_add_remove.json").read_text())[
    "rows"
]


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row[0])
def test_the_interval_holds_the_reference_and_is_narrow(row):
    _, rate, sigma, steps, delta, truth, half_a_unit, _ = row
    lower, upper = pld_epsilon([(PoissonGaussian(rate, sigma), steps)], delta, "add-remove")
    assert lower - half_a_unit <= truth <= upper + half_a_unit
    assert upper - lower <= max(1e-3 * upper, 1e-5)


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row[0])
def test_renyi_bound_is_above_the_reference(row):
    _, rate, sigma, steps, delta, truth, half_a_unit, _ = row
    event = SelfComposed(PoissonGaussian(rate, sigma), steps)
    assert renyi_epsilon(event, delta, "add-remove")[0] >= truth - half_a_unit


# dp-accounting's loss distributions with a grid of 1e-4; exact to the digits shown.
MIXED = [
    ([(0.01, 1.0, 500), (0.01, 2.0, 500)], 1.39865),
    ([(0.01, 1.0, 250), (0.01, 1.2, 250), (0.01, 1.5, 250), (0.01, 2.0, 250)], 1.28042),
    ([(0.01, 1.0, 1000), (1.0, 20.0, 4)], 1.86990),
    ([(0.005, 0.8, 400), (0.02, 1.0, 400)], 2.64819),
]


@pytest.mark.parametrize(("schedule", "truth"), MIXED)
def test_mixed_schedules_match_an_independent_implementation(schedule, truth):
    events = [(PoissonGaussian(rate, sigma), count) for rate, sigma, count in schedule]
    lower, upper = pld_epsilon(events, 1e-5, "add-remove")
    assert lower - 2e-5 <= truth <= upper + 2e-5
    assert upper - lower <= 1e-3 * upper


# dp-accounting's replace-one loss distributions with a grid of 2.5e-5, exact to the digits shown.
REPLACED = [
    ((0.01, 1.0, 1000), 2.84344),
    ((0.1, 2.0, 500), 11.38502),
    ((0.0152044, 0.7, 198), 4.38901),
]


@pytest.mark.parametrize(("step", "theirs"), REPLACED)
def test_replacing_a_unit_matches_an_independent_implementation(step, theirs):
    rate, sigma, count = step
    lower, upper = pld_epsilon(
        [(PoissonGaussian(rate, sigma), count)],
        1e-5 if rate != 0.0152044 else 7.42e-6,
        "replace-one",
    )
    assert lower - 1e-5 <= theirs <= upper + 1e-5
    assert upper - lower <= 1e-3 * upper


def test_replacing_a_unit_of_an_unsampled_release_doubles_mu():
    lower, upper = pld_epsilon([(PoissonGaussian(0.999999, 2.0), 3)], 1e-6, "replace-one")
    expected = gaussian_epsilon(1e-6, 2 * math.sqrt(3) / 2.0)
    assert lower <= expected
    assert upper == pytest.approx(expected, rel=1e-3)


def check_against_fourier(
    rate: float, sigma: float, steps: int, delta: float, adjacency: str
) -> None:
    """delta at the lower end is at least the delta asked for, at the upper end at most."""
    event = SelfComposed(PoissonGaussian(rate, sigma), steps)
    tilt = renyi_epsilon(event, delta, adjacency)[1] - 1
    truth = Inversion(rate, sigma, steps, replaced=adjacency == "replace-one")
    lower, upper = pld_epsilon([(event.event, steps)], delta, adjacency)
    assert truth.delta(upper, tilt) <= delta * (1 + 1e-7) <= truth.delta(lower, tilt) * (1 + 2e-7)
    assert upper - lower <= 1e-3 * upper
    middle = (lower + upper) / 2
    least, most = pld_delta([(event.event, steps)], middle, adjacency)
    assert least * (1 - 1e-7) <= truth.delta(middle, tilt) <= most * (1 + 1e-7)
    assert most <= 1.1 * least


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize(
    ("rate", "sigma", "steps", "delta"),
    [
        (0.01, 1.0, 1000, 1e-5),
        (0.05, 1.5, 400, 1e-8),
        (0.3, 4.0, 100, 1e-5),
        (0.002, 0.8, 3000, 1e-6),
    ],
)
def test_the_interval_holds_what_fourier_inversion_finds(rate, sigma, steps, delta, adjacency):
    check_against_fourier(rate, sigma, steps, delta, adjacency)


@pytest.mark.long
@settings(max_examples=25, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
@given(
    log_rate=st.floats(-3.5, -0.3),
    sigma=st.floats(0.6, 5.0),
    log_steps=st.floats(1.7, 4.3),
    log_delta=st.floats(-11.0, -3.0),
    adjacency=st.sampled_from(["add-remove", "replace-one"]),
)
def test_random_intervals_hold_what_fourier_inversion_finds(
    log_rate, sigma, log_steps, log_delta, adjacency
):
    rate, steps, delta = 10.0**log_rate, int(10.0**log_steps), 10.0**log_delta
    assume(pld_epsilon([(PoissonGaussian(rate, sigma), steps)], delta, adjacency).upper > 2e-3)
    try:
        check_against_fourier(rate, sigma, steps, delta, adjacency)
    except ArithmeticError:
        assume(False)


def test_a_wrong_tilt_costs_tightness_but_never_safety():
    cells = poisson_loss_grid(0.01, 1.0, "add-remove", 2.0**-11, 1e-15)[0]
    upper = [
        Composition([cells.pessimistic()], [ONE(1000)], t, 1e-5).epsilon(1e-5)
        for t in (3.0, 7.0, 12.0)
    ]
    lower = [
        Composition([cells.optimistic()], [ONE(1000)], t, 1e-5, False).epsilon(1e-5)
        for t in (3.0, 7.0, 12.0)
    ]
    assert max(lower) <= 1.82824 + 5e-6
    assert min(upper) >= 1.82824 - 5e-6
    assert upper[1] - lower[1] <= 0.003


def ONE(count: int) -> Term:
    return Term(((0, 1.0),), count)


def test_unsampled_gaussians_only_depend_on_their_total():
    expected = gaussian_epsilon(1e-5, 1.0)
    for events in (
        [(Gaussian(10.0), 100)],
        [(Gaussian(10.0), 50), (PoissonGaussian(1.0, 10.0), 50)],
    ):
        lower, upper = pld_epsilon(events, 1e-5, "add-remove")
        assert lower <= expected * (1 + 1e-15)
        assert upper == pytest.approx(expected, rel=1e-12)
        assert lower == pytest.approx(expected, rel=1e-11)
    assert gaussian_delta(expected, 1.0) <= 1e-5
    assert gaussian_epsilon(0.0, 1.0) == math.inf
    assert gaussian_epsilon(0.5, 1.0) == 0.0


def test_the_order_of_events_and_their_grouping_do_not_matter():
    events = [
        (PoissonGaussian(0.01, 1.0), 300),
        (PoissonGaussian(0.05, 2.0), 40),
        (Gaussian(30.0), 3),
    ]
    forward = pld_epsilon(events, 1e-6, "add-remove")
    backward = pld_epsilon(events[::-1], 1e-6, "add-remove")
    assert forward.upper == pytest.approx(backward.upper, rel=1e-6)
    assert forward.lower == pytest.approx(backward.lower, rel=1e-6)


@pytest.mark.parametrize(
    ("rate", "sigma", "steps", "delta"), [(0.01, 1.0, 1000, 1e-5), (0.5, 0.5, 3, 1e-8)]
)
def test_the_cheap_lower_bound_is_below_the_interval(rate, sigma, steps, delta):
    events = [(PoissonGaussian(rate, sigma), steps)]
    assert (
        0
        < cheap_lower(events, delta, "add-remove")
        <= pld_epsilon(events, delta, "add-remove").lower
    )


def test_what_cannot_be_computed_is_refused_with_the_reason():
    with pytest.raises(CannotComputeError, match="delta = 0"):
        pld_epsilon([(PoissonGaussian(0.1, 1.0), 1)], 0.0, "add-remove")
    with pytest.raises(CannotComputeError, match="leak"):
        pld_epsilon([(NonPrivate("a leak"), 1)], 1e-5, "add-remove")
    with pytest.raises(CannotComputeError, match="hides nothing"):
        pld_epsilon([(PoissonGaussian(1.0, 0.0), 2)], 1e-5, "add-remove")
    with pytest.raises(CannotComputeError, match="grid points"):
        poisson_loss_grid(0.5, 0.01, "add-remove", 1e-4, 1e-12)
