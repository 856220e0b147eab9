"""Releases known by their guarantee only: the exact composition, the loss distribution and the
conversions.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import InputError, PoissonGaussian, make_accountant
from accounting.events import ApproximateDP, PureDP
from accounting.mechanisms.approximate_dp import (
    response_delta,
    response_epsilon,
    response_loss_grid,
    response_renyi,
)
from accounting.pld.bounds import pld_delta, pld_epsilon
from accounting.pld.composition import Composition
from accounting.schedules import Term

few = settings(max_examples=40, derandomize=True, deadline=None, database=None)


def composed_delta(stated: float, failure: float, count: int, epsilon: float) -> float:
    """By brute force over the number of lies."""
    truth = 1 / (1 + math.exp(-stated))
    total = 0.0
    for lies in range(count + 1):
        mass = math.comb(count, lies) * truth ** (count - lies) * (1 - truth) ** lies
        total += mass * max(0.0, -math.expm1(epsilon - (count - 2 * lies) * stated))
    return 1 - (1 - failure) ** count * (1 - total)


@few
@given(
    stated=st.floats(0.0, 3.0),
    failure=st.sampled_from([0.0, 1e-9, 1e-3, 0.2]),
    count=st.integers(1, 30),
    epsilon=st.floats(0.0, 10.0),
)
def test_the_exact_composition_inverts_the_sum_over_answers(stated, failure, count, epsilon):
    delta = composed_delta(stated, failure, count, epsilon)
    found = response_epsilon(stated, failure, count, delta + 1e-14)
    assert found.lower <= epsilon + 1e-7 or delta < 1e-12
    if found.upper < math.inf:
        assert composed_delta(stated, failure, count, found.upper) <= delta + 2e-14
        assert found.lower <= found.upper
        # the profile may be flat
        assert composed_delta(stated, failure, count, found.lower) <= delta + 1e-11


def test_failures_alone_may_exceed_delta():
    assert response_epsilon(0.1, 1e-6, 10, 9e-6).upper == math.inf
    assert response_epsilon(0.1, 1e-6, 10, 1.1e-5).upper < 1.1
    assert response_epsilon(0.1, 1e-6, 2**21, 0.5) is None


@few
@given(
    stated=st.floats(0.001, 4.0),
    failure=st.sampled_from([0.0, 1e-6, 0.1]),
    epsilon=st.floats(0.0, 5.0),
)
def test_one_release_has_the_closed_form(stated, failure, epsilon):
    exact = composed_delta(stated, failure, 1, epsilon)
    low, high = (response_delta(stated, failure, epsilon, upper) for upper in (False, True))
    assert low <= exact + 1e-15
    assert high >= exact - 1e-15
    assert high - low <= 1e-12 * high + 1e-14
    assert response_delta(stated, failure, stated + 1e-9) == pytest.approx(failure, abs=1e-12)


@few
@given(
    stated=st.floats(-5.0, 1.5).map(lambda log: 10.0**log),
    order=st.sampled_from([1 + 1e-5, 1.1, 2.0, 30.0, 5000.0]),
)
def test_renyi_divergence_of_randomized_response(stated, order):
    truth, lie = 1 / (1 + math.exp(-stated)), 1 / (1 + math.exp(stated))
    logs = [
        order * math.log(p) + (1 - order) * math.log(q) for p, q in ((truth, lie), (lie, truth))
    ]
    direct = float(np.logaddexp(*logs)) / (order - 1)
    found = response_renyi(stated, order)
    assert found == pytest.approx(direct, rel=1e-6, abs=1e-14 / (order - 1))
    assert found <= stated
    # Between the divergence at order 1 and its limit at large orders.
    assert found >= stated * math.tanh(stated / 2) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("stated", "failure", "count"), [(0.1, 0.0, 100), (0.1, 1e-8, 100), (1.0, 1e-7, 12)]
)
def test_the_loss_distribution_composes_to_the_exact_epsilon(stated, failure, count):
    exact = response_epsilon(stated, failure, count, 1e-5)
    cells = response_loss_grid(stated, failure, 2.0**-12, 1e-15)
    ends = []
    for pmf, upper in ((cells.pessimistic(), True), (cells.optimistic(), False)):
        ends.append(Composition([pmf], [Term(((0, 1.0),), count)], 6.0, 1e-5, upper).epsilon(1e-5))
    assert ends[0] >= exact.upper * (1 - 1e-12)
    assert ends[1] <= exact.lower * (1 + 1e-12)
    assert ends[0] - ends[1] <= 2e-3 * exact.upper


@pytest.mark.parametrize(
    "event", [PureDP(0.2, "add-remove"), ApproximateDP(0.2, 1e-8, "add-remove")]
)
def test_the_count_is_honoured_by_every_road(event):
    for accountant in ("prv", "rdp"):
        ends = [
            make_accountant(accountant, "add-remove").quote(event, count, 1e-5).upper
            for count in (1, 4, 16)
        ]
        assert ends[0] < ends[1] < ends[2] or (accountant == "rdp" and math.isinf(ends[0]))
    by_grid = [
        pld_epsilon([(event, count), (PoissonGaussian(0.01, 2.0), 1)], 1e-5, "add-remove")
        for count in (4, 16)
    ]
    assert by_grid[0].upper < by_grid[1].lower
    exact = response_epsilon(0.2, getattr(event, "failure_probability", 0.0), 16, 1e-5)
    assert by_grid[1].upper >= exact.lower


def test_together_with_training_the_failures_are_added():
    steps = [(PoissonGaussian(0.01, 1.0), 500)]
    pure, approximate = (
        [*steps, (event, 5)]
        for event in (PureDP(0.1, "zero-out"), ApproximateDP(0.1, 1e-7, "zero-out"))
    )
    least, most = pld_epsilon(approximate, 1e-5, "zero-out")
    inner = pld_epsilon(pure, (1e-5 - 5e-7) / (1 - 5e-7), "zero-out")
    assert least <= inner.upper * (1 + 1e-6)
    assert most >= inner.lower
    assert most <= inner.upper * (1 + 1e-3)
    assert pld_delta(approximate, 20.0, "zero-out").upper >= 4.99e-7


def test_a_statement_carries_over_to_replace_one_and_nowhere_else():
    event = ApproximateDP(0.5, 1e-6, "add-remove")
    assert event.stated_under("add-remove") == (0.5, 1e-6)
    epsilon, failure = event.stated_under("replace-one")
    assert epsilon == 1.0
    assert failure == pytest.approx(1e-6 * (1 + math.exp(0.5)), rel=1e-12)
    assert event.stated_under("zero-out") is None
    assert "add-remove" in event.unsupported_reason("zero-out")
    assert PureDP(0.5, "zero-out").stated_under("replace-one") == (1.0, 0.0)
    assert "replace-one" in PureDP(0.5, "replace-one").unsupported_reason("add-remove")
    assert "probability of 1" in ApproximateDP(30.0, 1e-6, "zero-out").unsupported_reason(
        "replace-one"
    )
    for accountant in ("prv", "rdp"):
        answer = make_accountant(accountant, "zero-out").quote(event, 1, 1e-3)
        assert answer.upper == math.inf
        assert "add-remove" in answer.note


def test_replacing_is_removing_and_adding():
    """Any three laws, each (eps, d)-close to the next, end within the converted pair: a worst case
    on four atoms.
    """
    rng = np.random.default_rng(3)
    for _ in range(200):
        p, r, q = rng.dirichlet([0.7] * 4, size=3)
        for epsilon in (0.1, 0.7):
            k = math.exp(epsilon)
            failure = max(
                float(np.maximum(a - k * b, 0).sum()) for a, b in ((p, r), (r, p), (q, r), (r, q))
            )
            doubled = ApproximateDP(epsilon, min(failure, 0.999), "add-remove").stated_under(
                "replace-one"
            )
            assert float(np.maximum(p - math.exp(doubled[0]) * q, 0).sum()) <= doubled[1] + 1e-12


@pytest.mark.parametrize(
    "build",
    [
        lambda: PureDP(-0.1, "add-remove"),
        lambda: PureDP(math.inf, "add-remove"),
        lambda: PureDP(1.0, "add"),
        lambda: ApproximateDP(1.0, 1.0, "add-remove"),
        lambda: ApproximateDP(1.0, -1e-9, "add-remove"),
        lambda: ApproximateDP(math.nan, 1e-9, "add-remove"),
    ],
)
def test_bad_statements_are_refused_in_one_line(build):
    with pytest.raises(InputError, match=";") as refusal:
        build()
    assert "\n" not in str(refusal.value)


def test_a_guarantee_of_nothing_revealed_costs_nothing():
    assert PureDP(0.0, "add-remove").gaussian_mu("replace-one") == 0.0
    assert ApproximateDP(0.0, 1e-9, "add-remove").gaussian_mu("add-remove") is None
    assert (
        make_accountant("prv", "add-remove").quote(PureDP(0.0, "add-remove"), 100, 1e-5).upper
        == 0.0
    )
