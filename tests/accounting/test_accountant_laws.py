"""Every accountant keeps the laws."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import Gaussian, PoissonGaussian
from tests.support import accountant_laws as laws

pytestmark = pytest.mark.parametrize("name", laws.ACCOUNTANTS)


@pytest.mark.parametrize(
    "law",
    [
        laws.nothing_charged_costs_nothing,
        laws.unaccountable_events_cost_everything,
        laws.noiseless_releases_cost_everything,
        laws.quoting_changes_nothing,
        laws.the_profile_is_what_epsilon_says,
        laws.zero_out_costs_as_add_remove_and_replace_one_more,
    ],
    ids=lambda law: law.__name__,
)
def test_law(name, law):
    law(name)


@settings(max_examples=8, derandomize=True, deadline=None, database=None)
@given(
    rate=st.floats(1e-3, 0.6),
    sigma=st.floats(0.5, 6.0),
    count=st.integers(1, 2000),
    log_delta=st.floats(-9.0, -3.0),
)
def test_more_exposure_never_costs_less(name, rate, sigma, count, log_delta):
    laws.more_exposure_never_costs_less(name, rate, sigma, count, 10.0**log_delta)


@settings(max_examples=25, derandomize=True, deadline=None, database=None)
@given(
    rate=st.floats(1e-4, 1.0),
    sigma=st.floats(0.3, 20.0),
    count=st.integers(1, 3000),
    log_delta=st.floats(-12.0, -2.0),
    adjacency=st.sampled_from(["add-remove", "replace-one"]),
)
def test_the_interval_is_in_order(name, rate, sigma, count, log_delta, adjacency):
    laws.the_interval_is_in_order(name, rate, sigma, count, 10.0**log_delta, adjacency)


@settings(max_examples=6, derandomize=True, deadline=None, database=None)
@given(
    order=st.permutations([PoissonGaussian(0.01, 1.0), PoissonGaussian(0.02, 2.0), Gaussian(20.0)])
)
def test_order_of_charges_is_irrelevant(name, order):
    laws.order_of_charges_is_irrelevant(name, list(order))


@pytest.mark.parametrize(
    ("rate", "sigma", "count"), [(0.01, 1.0, 1000), (0.1, 0.8, 20), (1.0, 5.0, 3)]
)
def test_delta_answers_epsilon(name, rate, sigma, count):
    laws.delta_answers_epsilon(name, rate, sigma, count)
