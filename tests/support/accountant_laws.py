"""What every accountant must keep, whatever its method: laws over the registry of accountants."""

from __future__ import annotations

import math

from accounting import (
    Accountant,
    Composed,
    Event,
    NonPrivate,
    PoissonGaussian,
    SelfComposed,
    Unsupported,
    make_accountant,
)
from accounting.pld.bounds import cheap_lower

ACCOUNTANTS = ("rdp", "prv")
# The discretised accountant is tight to about 2e-4: two of its answers may be off by that much.
NOISE = {"rdp": 1e-9, "prv": 5e-4}


def spent(
    name: str, event: Event, count: int, delta: float, adjacency: str = "add-remove"
) -> float:
    """Epsilon of `count` releases of one event."""
    return make_accountant(name, adjacency).quote(event, count, delta).upper


def not_above(name: str, smaller: float, larger: float) -> bool:
    """smaller <= larger up to the accountant's own accuracy."""
    return smaller <= larger * (1 + NOISE[name]) + 2e-6


def nothing_charged_costs_nothing(name: str) -> None:
    book = make_accountant(name, "add-remove")
    assert book.epsilon(1e-5).upper == 0.0
    assert book.epsilon(0.0).upper == 0.0
    assert book.delta(0.0) == 0.0
    assert book.steps == 0
    book.charge(PoissonGaussian(0.1, 1.0), 0)
    assert book.epsilon(1e-5).upper == 0.0


def unaccountable_events_cost_everything(name: str) -> None:
    for event, word in (
        (NonPrivate("the raw losses were printed"), "raw losses"),
        (Unsupported("shuffled", "no amplification theorem"), "no amplification theorem"),
        (Composed((PoissonGaussian(0.1, 1.0), SelfComposed(NonPrivate("peeked"), 2))), "peeked"),
    ):
        book = make_accountant(name, "add-remove")
        book.charge(PoissonGaussian(0.01, 1.0), 5)
        assert book.supports(event) is not None
        book.charge(event)
        answer = book.epsilon(1e-5)
        assert answer.upper == math.inf
        assert word in answer.note
        assert book.delta(10.0) == 1.0


def noiseless_releases_cost_everything(name: str) -> None:
    assert spent(name, PoissonGaussian(0.1, 0.0), 1, 1e-5) == math.inf
    assert spent(name, PoissonGaussian(0.0, 0.0), 1, 1e-5) == 0.0


def quoting_changes_nothing(name: str) -> None:
    book = make_accountant(name, "add-remove")
    book.charge(PoissonGaussian(0.02, 1.0), 10)
    before = (book.events, book.steps, book.epsilon(1e-5))
    quoted = book.quote(PoissonGaussian(0.02, 1.0), 40, 1e-5)
    assert (book.events, book.steps, book.epsilon(1e-5)) == before
    book.charge(PoissonGaussian(0.02, 1.0), 40)
    assert book.epsilon(1e-5) == quoted
    assert book.steps == 50


def order_of_charges_is_irrelevant(name: str, events: list[Event]) -> None:
    forward, backward = make_accountant(name, "add-remove"), make_accountant(name, "add-remove")
    for event in events:
        forward.charge(event, 7)
    for event in reversed(events):
        backward.charge(event, 7)
    assert math.isclose(forward.epsilon(1e-5).upper, backward.epsilon(1e-5).upper, rel_tol=1e-6)


def more_exposure_never_costs_less(
    name: str, rate: float, sigma: float, count: int, delta: float
) -> None:
    base = spent(name, PoissonGaussian(rate, sigma), count, delta)
    assert not_above(name, spent(name, PoissonGaussian(rate, sigma * 1.1), count, delta), base)
    assert not_above(name, base, spent(name, PoissonGaussian(rate, sigma), 2 * count, delta))
    assert not_above(
        name, base, spent(name, PoissonGaussian(min(1.0, 1.5 * rate), sigma), count, delta)
    )
    assert not_above(name, spent(name, PoissonGaussian(rate, sigma), count, 2 * delta), base)


def delta_answers_epsilon(name: str, rate: float, sigma: float, count: int) -> None:
    book: Accountant = make_accountant(name, "add-remove")
    book.charge(PoissonGaussian(rate, sigma), count)
    epsilon = book.epsilon(1e-5).upper
    assert book.delta(epsilon) <= 1.05e-5
    assert book.delta(2 * epsilon) <= book.delta(epsilon) <= book.delta(epsilon / 2)


def the_interval_is_in_order(
    name: str, rate: float, sigma: float, count: int, delta: float, adjacency: str
) -> None:
    """exact lower bounds <= certified lower <= estimate <= upper <= Rényi."""
    event = PoissonGaussian(rate, sigma)
    found = make_accountant(name, adjacency).quote(event, count, delta)
    renyi = make_accountant("rdp", adjacency).quote(event, count, delta).upper
    assert found.upper <= renyi * (1 + 1e-9)
    assert cheap_lower([(event, count)], delta, adjacency) <= found.upper * (1 + 1e-9)
    if found.lower is not None:
        assert 0.0 <= found.lower <= found.estimate <= found.upper
    book = make_accountant(name, adjacency)
    book.charge(event, count)
    promise = book.guarantee(delta)
    assert (promise.epsilon, promise.delta, promise.adjacency) == (found.upper, delta, adjacency)
    assert (promise.kind, promise.accountant) == ("worst-case", name)
    assert found.upper <= book.running_epsilon(delta) * (1 + 1e-9) or name == "rdp"
    # another grid of orders may do a little better
    assert renyi * 0.99 <= book.running_epsilon(delta)


def the_profile_is_what_epsilon_says(name: str) -> None:
    book = make_accountant(name, "add-remove")
    book.charge(PoissonGaussian(0.02, 1.2), 200)
    points = book.profile([1e-3, 1e-6])
    assert points == [(delta, book.epsilon(delta).upper) for delta in (1e-3, 1e-6)]
    assert points[0][1] < points[1][1]


def zero_out_costs_as_add_remove_and_replace_one_more(name: str) -> None:
    event = PoissonGaussian(0.05, 1.0)
    plain = spent(name, event, 100, 1e-5)
    assert spent(name, event, 100, 1e-5, "zero-out") == plain
    assert spent(name, event, 100, 1e-5, "replace-one") > plain
