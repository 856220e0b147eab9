"""Poisson samples with a largest batch: the dominating mixture against every data set of a small
universe.
"""

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import PoissonGaussian, SelfComposed, make_accountant
from accounting.events import TruncatedPoissonGaussian, WithoutReplacementGaussian
from accounting.mechanisms.loss_grid import LossPmf, Mixture
from accounting.mechanisms.poisson_gaussian import poisson_loss_grid
from accounting.mechanisms.truncated_poisson import truncated_loss, truncated_renyi, truncation
from accounting.pld.composition import Composition
from accounting.rdp.curve import renyi_epsilon
from accounting.schedules import Term

EPSILONS = (-3.0, -0.7, -0.05, 0.0, 0.02, 0.1, 0.4, 1.0, 2.5)
ORDERS = (1.3, 2.0, 6.0)


def divergence(pmf: LossPmf, epsilon: float) -> float:
    losses = pmf.offset + (pmf.first + np.arange(pmf.masses.size)) * pmf.interval
    above = losses > epsilon
    return (
        pmf.infinite - float(pmf.masses[above] @ np.expm1(epsilon - losses[above])) - pmf.lowered_by
    )


def density(
    values: tuple[float, ...], rate: float, largest: int, sigma: float, x: np.ndarray
) -> np.ndarray:
    """The released sum, over all samples and all cuts of each."""
    total = np.zeros_like(x)
    for size in range(len(values) + 1):
        for sample in itertools.combinations(range(len(values)), size):
            weight = rate**size * (1 - rate) ** (len(values) - size)
            kept = list(itertools.combinations(sample, min(size, largest)))
            for chosen in kept:
                centre = sum(values[i] for i in chosen)
                total += weight / len(kept) * np.exp(-0.5 * ((x - centre) / sigma) ** 2)
    return total / sigma / math.sqrt(2 * math.pi)


def exact_divergences(p: np.ndarray, q: np.ndarray, step: float) -> list[float]:
    return [float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum() * step) for epsilon in EPSILONS]


@pytest.mark.parametrize(
    ("units", "rate", "largest", "sigma"),
    [(4, 0.5, 1, 1.0), (4, 0.3, 2, 0.7), (3, 0.9, 1, 2.0), (4, 1.0, 2, 1.0), (5, 0.2, 3, 1.5)],
)
@pytest.mark.parametrize("adjacency", ["zero-out", "replace-one"])
def test_no_data_set_reveals_more(units, rate, largest, sigma, adjacency):
    """All data sets of units -1, 0 and 1; under zero-out the changed unit is a zero that is drawn,
    or is absent.
    """
    x = np.linspace(-largest - 9 * sigma, largest + 9 * sigma, 12001)
    step = float(x[1] - x[0])
    bounds = truncated_loss(units, rate, largest, sigma, adjacency, 0.005, 1e-15)
    worst = [np.zeros(len(EPSILONS)) for _ in range(2)]
    worst_renyi = np.zeros(len(ORDERS))
    for others in itertools.combinations_with_replacement((-1.0, 0.0, 1.0), units - 1):
        with_unit = {
            last: density((*others, last), rate, largest, sigma, x) for last in (-1.0, 0.0, 1.0)
        }
        without = [density(others, rate, largest, sigma, x), with_unit[0.0]]
        if adjacency == "zero-out":
            pairs = [(with_unit[last], empty) for last in (-1.0, 1.0) for empty in without]
        else:
            pairs = list(itertools.combinations(with_unit.values(), 2))
        for p, q in pairs:
            directions = [exact_divergences(p, q, step), exact_divergences(q, p, step)]
            for found, one in zip(worst, directions, strict=True):
                np.maximum(found, one, out=found)
            for i, order in enumerate(ORDERS):
                moments = [
                    float((a**order * b ** (1 - order)).sum() * step) for a, b in ((p, q), (q, p))
                ]
                worst_renyi[i] = max(worst_renyi[i], math.log(max(moments)) / (order - 1))
    if adjacency == "replace-one":
        worst = [np.maximum(*worst)]
    assert len(bounds) == len(worst)
    for bound, found in zip(bounds, worst, strict=True):
        above, below = bound.pessimistic(), bound.optimistic()
        for epsilon, largest_seen in zip(EPSILONS, found, strict=True):
            assert divergence(above, epsilon) >= largest_seen - 1e-6
            assert divergence(below, epsilon) <= divergence(above, epsilon)
    # All other units at 0 show a plain Poisson sample, drawn as often as the unit survives.
    parts = truncation(units, rate, largest)
    takes_part = parts.uncut * rate + math.exp(parts.log_cut) * parts.survival
    attained = poisson_loss_grid(takes_part * (1 - 1e-9), sigma, adjacency, 0.005, 1e-15)
    for cells, found in zip(attained, worst, strict=True):
        least = cells.optimistic()
        for epsilon, largest_seen in zip(EPSILONS, found, strict=True):
            assert divergence(least, epsilon) <= largest_seen + 1e-6
    for order, seen in zip(ORDERS, worst_renyi, strict=True):
        assert truncated_renyi(units, rate, largest, sigma, order, adjacency) >= seen - 1e-9


@settings(max_examples=30, derandomize=True, deadline=None, database=None)
@given(units=st.integers(2, 40), rate=st.floats(0.01, 0.99), share=st.floats(0.0, 1.0))
def test_the_probabilities_are_those_of_counting(units, rate, share):
    largest = 1 + int(share * (units - 2))
    masses = [
        math.comb(units - 1, k) * rate**k * (1 - rate) ** (units - 1 - k) for k in range(units)
    ]
    cut = math.fsum(masses[largest:])
    # Given that k others are drawn, at least as many as fit, the unit is drawn and survives.
    survives = math.fsum(
        mass * rate * largest / (k + 1) for k, mass in enumerate(masses) if k >= largest
    )
    high, low = (truncation(units, rate, largest).rounded(sign) for sign in (1, -1))
    assert (
        cut * (1 - 1e-8)
        <= math.exp(low.log_cut)
        <= cut
        <= math.exp(high.log_cut)
        <= cut * (1 + 1e-8)
    )
    assert low.uncut - 1e-15 <= 1 - cut <= high.uncut + 1e-15
    assert high.uncut - low.uncut <= 1e-8 * min(cut, 1 - cut) + 1e-15
    assert survives / cut * (1 - 1e-8) <= low.survival <= survives / cut * (1 + 1e-12)
    assert survives / cut * (1 - 1e-12) <= high.survival <= survives / cut * (1 + 1e-8)


@pytest.mark.parametrize("largest", [1500, 30_000, 59_999])
def test_a_cut_that_never_happens_changes_nothing(largest):
    event = TruncatedPoissonGaussian(60_000, 256 / 60_000, largest, 1.1)
    plain = PoissonGaussian(256 / 60_000, 1.1)
    for order in (1.01, 3.0, 20.0):
        assert event.renyi(order, "zero-out") == pytest.approx(
            plain.renyi(order, "zero-out"), rel=1e-8
        )
    ours, theirs = (make_accountant("prv", "zero-out").quote(e, 1000, 1e-5) for e in (event, plain))
    assert ours.upper == pytest.approx(theirs.upper, rel=1e-5)


# units, rate, largest batch, sigma, releases, delta, the sheet's value
GOLDEN = [
    (60_000, 256 / 60_000, 320, 1.1, 14_063, 1e-5, 2.417),
    (60_000, 256 / 60_000, 400, 1.1, 14_063, 1e-5, 2.3906),
    (67_349, 1024 / 67_349, 1150, 0.7, 198, 7.42e-6, 4.443),
    (67_349, 1024 / 67_349, 1250, 0.7, 198, 7.42e-6, 3.8785),
]


@pytest.mark.parametrize("row", GOLDEN, ids=str)
def test_known_values(row):
    """The sheet's are upper bounds on a grid of 1e-3, and by a pair that is a little larger after a
    cut.
    """
    units, rate, largest, sigma, count, delta, theirs = row
    event = TruncatedPoissonGaussian(units, rate, largest, sigma)
    order = renyi_epsilon(SelfComposed(event, count), delta, "zero-out")[1]
    least, most = [], []
    for bound in event.loss_grid("zero-out", 2.0**-12, 1e-15):
        term = Term(((0, 1.0),), count)
        most.append(Composition([bound.pessimistic()], [term], order - 1, delta).epsilon(delta))
        least.append(
            Composition([bound.optimistic()], [term], order - 1, delta, False).epsilon(delta)
        )
    plain = make_accountant("prv", "zero-out").quote(PoissonGaussian(rate, sigma), count, delta)
    assert max(most) * (1 - 2e-3) <= max(least) <= max(most)
    assert plain.lower <= max(most)
    assert theirs * (1 - 5e-3) <= max(most) <= theirs


@pytest.mark.parametrize(
    ("adjacency", "relation"), [("zero-out", "REPLACE_SPECIAL"), ("replace-one", "REPLACE_ONE")]
)
def test_route_by_cases_with_the_larger_pair_is_another_implementations(
    monkeypatch, adjacency, relation
):
    """With (1-c) N(0) + c N(+-2) after a cut, as dp-accounting has it, both agree; ours is
    smaller.
    """
    units, rate, largest, sigma, count = 1000, 0.05, 60, 1.0, 50
    event = TruncatedPoissonGaussian(units, rate, largest, sigma)
    oracle = PLDAccountant(NeighboringRelation[relation], value_discretization_interval=1e-3)
    oracle.compose(
        dp_accounting.TruncatedSubsampledGaussianDpEvent(units, rate, largest, sigma), count
    )
    theirs = oracle.get_epsilon(1e-5)
    ours = make_accountant("prv", adjacency).quote(event, count, 1e-5)
    assert ours.lower <= theirs
    assert theirs * 0.9 <= ours.upper <= theirs * (1 + 1e-4)

    def larger(rate: float, sigma: float, interval: float, tail: float) -> Mixture:
        return Mixture(
            ((1.0, poisson_loss_grid(rate, sigma / 2, "replace-one", interval, tail)[0]),)
        )

    monkeypatch.setattr("accounting.mechanisms.truncated_poisson.fixed_size_loss_grid", larger)
    monkeypatch.setattr(
        "accounting.mechanisms.truncated_poisson.truncated_renyi", lambda *_: math.inf
    )
    same = make_accountant("prv", adjacency).quote(event, count, 1e-5)
    assert same.upper == pytest.approx(theirs, rel=1e-3)
    assert same.upper >= ours.upper


def test_drawing_everything_and_cutting_is_sampling_without_replacement():
    cut, fixed = TruncatedPoissonGaussian(40, 1.0, 4, 2.0), WithoutReplacementGaussian(40, 4, 2.0)
    for order in (1.5, 4.0, 20.0):
        assert cut.renyi(order, "replace-one") == pytest.approx(
            fixed.renyi(order, "replace-one"), rel=1e-6
        )
    ours, theirs = (make_accountant("prv", "replace-one").quote(e, 20, 1e-5) for e in (cut, fixed))
    assert ours.upper == pytest.approx(theirs.upper, rel=1e-3)


def test_the_bound_responds_as_it_should():
    def cost(
        rate: float = 0.05,
        largest: int = 70,
        sigma: float = 3.0,
        count: int = 20,
        name: str = "prv",
    ) -> float:
        event = TruncatedPoissonGaussian(1000, rate, largest, sigma)
        return make_accountant(name, "zero-out").quote(event, count, 1e-5).upper

    base = cost()
    assert cost(sigma=4.0) < base * 0.9
    assert cost(count=60) > base * 1.1
    assert cost(rate=0.06) > base * 1.05
    assert cost(largest=60) > base * 1.01
    assert cost(largest=90) < base * (1 + 1e-3)
    assert cost(name="rdp") >= base


def test_add_remove_is_refused():
    event = TruncatedPoissonGaussian(100, 0.1, 20, 1.0)
    answer = make_accountant("prv", "add-remove").quote(event, 1, 1e-5)
    assert answer.upper == math.inf
    assert "public" in answer.note
    assert event.renyi(2.0, "add-remove") == math.inf
    whole = TruncatedPoissonGaussian(100, 0.1, 100, 1.0)  # but with one unit more it would be cut
    assert make_accountant("prv", "add-remove").quote(whole, 1, 1e-5).upper == math.inf
    assert whole.gaussian_mu("add-remove") is None
    assert whole.delta(1.0, "add-remove") is None
    plain = make_accountant("prv", "zero-out").quote(PoissonGaussian(0.1, 1.0), 3, 1e-5)
    assert make_accountant("prv", "zero-out").quote(whole, 3, 1e-5) == plain
    assert (
        make_accountant("prv", "zero-out")
        .quote(TruncatedPoissonGaussian(9, 0.5, 3, 0.0), 1, 1e-5)
        .upper
        == math.inf
    )
    assert (
        make_accountant("prv", "zero-out")
        .quote(TruncatedPoissonGaussian(9, 0.0, 3, 1.0), 9, 1e-5)
        .upper
        == 0.0
    )
