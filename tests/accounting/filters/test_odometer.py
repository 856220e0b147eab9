"""The odometer holds at every moment, and never says less than an ordinary accountant."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import Composed, Gaussian, InputError, NonPrivate, PoissonGaussian, SelfComposed
from accounting.filters.odometer import ODOMETER_ORDERS, Odometer
from accounting.rdp.curve import renyi_divergence, renyi_epsilon

AR = "add-remove"
some = settings(max_examples=15, derandomize=True, deadline=None, database=None)


@some
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0.6, 0.8, 1.0, 1.5, 3.0]), st.sampled_from([1, 10, 300])),
        min_size=1,
        max_size=8,
    ),
    delta=st.sampled_from([1e-2, 1e-5, 1e-8]),
)
def test_never_below_the_ordinary_epsilon_never_falling_and_finite(steps, delta):
    book, charged, before = Odometer(delta, AR), [], 0.0
    for noise, count in steps:
        book.charge(PoissonGaussian(0.01, noise), count)
        charged.append(SelfComposed(PoissonGaussian(0.01, noise), count))
        shown = book.epsilon()
        assert renyi_epsilon(Composed(tuple(charged)), delta, AR)[0] <= shown < math.inf
        assert shown >= before
        before = shown


@pytest.mark.parametrize("count", [1, 10, 100, 1000, 10000])
def test_never_above_the_doubling_ladder(count):
    """The ladder as it is published: 2^f gamma + log(1/delta_f) / (a-1), delta_f = delta / (2 K
    (f+1)^2).
    """
    delta, event, size = 1e-5, PoissonGaussian(0.01, 1.0), len(ODOMETER_ORDERS)
    ladder = math.inf
    for order in ODOMETER_ORDERS:
        gamma = 0.25 * math.log(2 * size / delta) / (order - 1)
        rho = count * renyi_divergence(event, order, AR)
        rung = math.ceil(math.log2(max(rho, gamma) / gamma))
        tail = math.log(2 * size * (rung + 1) ** 2 / delta) / (order - 1)
        ladder = min(ladder, 2**rung * gamma + tail)
    book = Odometer(delta, AR)
    book.charge(event, count)
    assert book.epsilon() < ladder


def test_is_the_proven_formula_rounded_up():
    orders, delta = (3.0, 7.5), 1e-6
    book = Odometer(delta, AR, orders)
    assert book.epsilon() == 0.0
    assert book.charge(PoissonGaussian(0.02, 0.9), 400) == 400
    assert book.charge(Gaussian(30.0)) == 401
    with localcontext() as context:
        context.prec = 40
        exact = min(
            400 * Decimal(renyi_divergence(PoissonGaussian(0.02, 0.9), order, AR))
            + Decimal(renyi_divergence(Gaussian(30.0), order, AR))
            + (Decimal(2) / Decimal(delta)).ln() / (Decimal(order) - 1)
            for order in orders
        )
        assert exact <= Decimal(book.epsilon()) <= exact * (1 + Decimal("1e-12"))


def losses_against(
    noises: tuple[float, float], delta: float, steps: int, runs: int, orders: tuple[float, ...]
):
    """(times the odometer was ever wrong, times the ordinary epsilon was) in runs that adapt the
    noise to the loss.

    The controller releases with little noise while the loss is low and waits for luck with much
    noise.
    """
    rng = np.random.default_rng(5)
    wrong = wrong_ordinary = 0
    for draws in rng.standard_normal((runs, steps)):
        book, loss, seen, seen_ordinary = Odometer(delta, AR, orders), 0.0, False, False
        rho = 0.0
        for draw in draws:
            mu = 1 / (noises[0] if loss <= rho else noises[1])
            book.charge(Gaussian(1 / mu))
            loss += mu * draw + mu * mu / 2  # log P/Q at x ~ P = N(mu, 1)
            rho += mu * mu / 2
            # the 90 % quantile, were the moment fixed in advance
            ordinary = rho + math.sqrt(2 * rho) * 1.2816
            seen = seen or loss > book.epsilon()
            seen_ordinary = seen_ordinary or loss > ordinary
        wrong, wrong_ordinary = wrong + seen, wrong_ordinary + seen_ordinary
    return wrong / runs, wrong_ordinary / runs


def test_holds_at_every_moment_of_adaptive_runs():
    wrong, ordinary = losses_against((2.0, 5.0), 0.1, 60, 300, (3.0,))
    assert wrong <= 0.1
    assert wrong > 0.0  # the adversary is not toothless
    assert ordinary > 0.2  # a figure for one moment is exceeded at some moment much more often


def test_an_unaccountable_event_is_booked_as_infinite():
    book = Odometer(1e-5, AR)
    book.charge(PoissonGaussian(0.01, 1.0))
    assert book.epsilon() < 2.0
    book.charge(NonPrivate("a debug print"))
    assert book.epsilon() == math.inf
    assert book.releases == 2


@pytest.mark.parametrize(
    ("delta", "adjacency", "orders"),
    [
        (0.0, AR, (4.0,)),
        (1.0, AR, (4.0,)),
        (float("nan"), AR, (4.0,)),
        (1e-5, "none", (4.0,)),
        (1e-5, AR, ()),
        (1e-5, AR, (1.0,)),
        (1e-5, AR, (4.0, math.inf)),
        (1e-5, AR, (4.0, 4.0)),
    ],
)
def test_nonsense_is_refused_in_one_line(delta, adjacency, orders):
    with pytest.raises(InputError) as refused:
        Odometer(delta, adjacency, orders)
    assert "\n" not in str(refused.value)


def test_a_refused_charge_books_nothing():
    book = Odometer(1e-5, AR)
    for event, count in (("noise", 1), (PoissonGaussian(0.01, 1.0), 0)):
        with pytest.raises(InputError):
            book.charge(event, count)
    assert (book.releases, book.epsilon()) == (0, 0.0)
