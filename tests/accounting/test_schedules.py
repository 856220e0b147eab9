"""Schedules whose noise changes at every step."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import PoissonGaussian, make_accountant
from accounting.mechanisms.poisson_gaussian import poisson_delta, poisson_renyi
from accounting.schedules import blended, corners_on_lattice

rates = st.floats(1e-4, 0.5)
sigmas = st.floats(0.4, 8.0)


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(rate=rates, sigma=sigmas, epsilon=st.floats(0.0, 6.0))
def test_the_lattice_mixture_dominates_the_release(rate, sigma, epsilon):
    corners = corners_on_lattice(PoissonGaussian(rate, sigma), "add-remove")
    assert sum(weight for weight, _ in corners) == pytest.approx(1.0, abs=1e-10)
    mixed = sum(
        w * poisson_delta(node.sample_rate, node.noise_multiplier, epsilon) for w, node in corners
    )
    exact = poisson_delta(rate, sigma, epsilon, upper=False)
    assert mixed >= exact * (1 - 1e-9)
    order = 1.5 + epsilon
    moments = [
        w
        * math.exp(
            (order - 1)
            * poisson_renyi(node.sample_rate, node.noise_multiplier, order, "add-remove")
        )
        for w, node in corners
    ]
    assert (
        math.log(sum(moments)) / (order - 1)
        >= poisson_renyi(rate, sigma, order, "add-remove") * (1 - 1e-9) - 1e-10
    )


def test_a_release_with_more_noise_and_less_sampling_bounds_from_below():
    steps = [(PoissonGaussian(0.01 * 1.01**i, 1.0 + 0.01 * i), 1) for i in range(60)]
    nodes, terms, exact = blended(steps, "add-remove", upper=False)
    assert not exact
    assert len(nodes) <= 60
    assert sum(term.count for term in terms) == 60
    reached = sorted(
        (nodes[term.weights[0][0]] for term in terms for _ in range(term.count)), key=str
    )
    assert all(len(term.weights) == 1 for term in terms)
    assert min(node.noise_multiplier for node in reached) >= 1.0
    assert max(node.sample_rate for node in reached) <= 0.01 * 1.01**59


def test_few_different_releases_are_left_alone():
    steps = [(PoissonGaussian(0.01, 1.0 + 0.1 * i), 5) for i in range(10)]
    nodes, terms, exact = blended(steps, "add-remove", upper=True)
    assert exact
    assert nodes == [event for event, _ in steps]
    assert [term.weights for term in terms] == [((i, 1.0),) for i in range(10)]


def _schedule(count: int) -> list[PoissonGaussian]:
    return [PoissonGaussian(0.01, float(sigma)) for sigma in np.linspace(0.8, 1.6, count)]


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_a_thousand_noises_cost_what_a_few_groups_of_them_cost(adjacency):
    every, coarse, fine = (make_accountant("prv", adjacency) for _ in range(3))
    started = time.perf_counter()
    for event in _schedule(1000):
        every.charge(event)
    answer = every.epsilon(1e-5)
    assert time.perf_counter() - started < 20  # it is about one second; this only catches minutes
    for event in _schedule(20):
        coarse.charge(PoissonGaussian(0.01, event.noise_multiplier * 1.03), 50)
        fine.charge(PoissonGaussian(0.01, event.noise_multiplier / 1.03), 50)
    assert coarse.epsilon(1e-5).lower <= answer.upper
    assert answer.lower <= fine.epsilon(1e-5).upper
    assert answer.lower <= answer.upper <= 1.03 * answer.lower
    assert answer.upper <= make_rdp(adjacency)


def make_rdp(adjacency: str) -> float:
    book = make_accountant("rdp", adjacency)
    for event in _schedule(1000):
        book.charge(event)
    return book.epsilon(1e-5).upper


def test_the_running_bound_follows_the_full_one_from_above():
    book, full = make_accountant("prv", "add-remove"), make_accountant("rdp", "add-remove")
    for index, event in enumerate(_schedule(120)):
        book.charge(event)
        full.charge(event)
        if index % 30 == 29:
            exact = full.epsilon(1e-5).upper
            assert exact * (1 - 1e-3) <= book.running_epsilon(1e-5) <= 1.02 * exact


def test_a_noiseless_release_among_many_costs_everything():
    book = make_accountant("prv", "add-remove")
    for event in _schedule(40):
        book.charge(event)
    book.charge(PoissonGaussian(0.01, 0.0))
    assert book.running_epsilon(1e-5) == math.inf
    assert book.epsilon(1e-5).upper == math.inf
