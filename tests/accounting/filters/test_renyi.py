"""The Rényi filter: what it admits, what it refuses, and that its preset budget holds against an
adversary.
"""

from __future__ import annotations

import random
import re
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import Composed, InputError, PoissonGaussian
from accounting.errors import BudgetExceededError
from accounting.filters.renyi import RenyiFilter
from accounting.rdp.curve import renyi_divergence

AR = "add-remove"
STEP = PoissonGaussian(0.01, 1.0)
NOISES = (0.5, 0.7, 0.85, 1.0, 1.3, 2.0, 4.0)
THREE = {2.5: 0.3, 4.0: 0.4, 8.0: 0.3}
some = settings(max_examples=60, derandomize=True, deadline=None, database=None)
proposals = st.lists(
    st.tuples(st.sampled_from(NOISES), st.sampled_from([1, 2, 7, 60, 500, 4000])), max_size=25
)


def single(order: float, epsilon: float = 8.0, **more) -> RenyiFilter:
    return RenyiFilter(epsilon, 1e-5, AR, {order: 1.0}, 10**6, **more)


def three(**more) -> RenyiFilter:
    return RenyiFilter(8.0, 1e-5, AR, THREE, 10**6, **more)


@pytest.mark.parametrize(
    ("order", "steps"), [(3, 12085), (4, 13526), (6, 10690), (8, 7593), (16, 2)]
)
def test_one_order_admits_exactly_the_known_number_of_steps(order, steps):
    at_once, by_steps = single(order), single(order)
    assert at_once.can_afford(STEP, steps)
    assert not at_once.can_afford(STEP, steps + 1)
    assert at_once.charge(STEP, steps) == steps
    by_steps.charge(STEP, max(1, steps - 50))
    while by_steps.can_afford(STEP):
        by_steps.charge(STEP)
    assert by_steps.releases == steps
    # one by one costs the same to the last bit
    assert by_steps.diagnostics() == at_once.diagnostics()
    with pytest.raises(BudgetExceededError):
        at_once.charge(STEP)


def test_an_order_without_budget_is_refused():
    with pytest.raises(InputError, match="order 2 with weight 1 has no budget"):
        single(2)


def exact_budget(order: float, epsilon: float, delta: float, weight: float) -> Decimal:
    a, e, d, w = (Decimal(value) for value in (order, epsilon, delta, weight))
    return e + ((d * w).ln() + a.ln()) / (a - 1) - ((a - 1) / a).ln()


@some
@given(
    order=st.floats(1.01, 500.0),
    epsilon=st.floats(0.1, 50.0),
    log_delta=st.floats(-12.0, -1.0),
    weight=st.floats(0.01, 1),
)
def test_the_budget_is_the_exact_one_rounded_down(order, epsilon, log_delta, weight):
    delta = 10.0**log_delta
    with localcontext() as context:
        context.prec = 50
        exact = exact_budget(order, epsilon, delta, weight)
        size = Decimal(epsilon) + (1 - Decimal(delta * weight).ln()) / (Decimal(order) - 1)
        try:
            book = RenyiFilter(epsilon, delta, AR, {order: weight}, 1)
        except InputError:
            assert exact <= size * Decimal("1e-12")
        else:
            budget = Decimal(book.diagnostics()["orders"][0]["budget"])
            assert exact - size * Decimal("1e-12") <= budget <= exact


@some
@given(asked=proposals)
def test_admits_only_what_some_single_order_can_pay_for_in_full(asked):
    book = three()
    charged: dict[float, int] = {}
    for noise, count in asked:
        event, before = PoissonGaussian(0.01, noise), book.state()
        after = {**charged, noise: charged.get(noise, 0) + count}
        with localcontext() as context:
            context.prec = 50
            shares = []
            for order, weight in THREE.items():
                rho = {
                    n: Decimal(renyi_divergence(PoissonGaussian(0.01, n), order, AR)) for n in after
                }
                budget = exact_budget(order, 8.0, 1e-5, weight)
                shares.append(sum(rho[n] * k for n, k in after.items()) / budget)
        affordable = book.can_afford(event, count)
        try:
            book.charge(event, count)
        except BudgetExceededError:
            assert not affordable
            assert min(shares) > 1 - Decimal("1e-9")
            assert book.state() == before
        else:
            assert affordable
            assert min(shares) <= 1  # overshoot: none
            charged = after
            assert set(book.alive) == {
                order for order, share in zip(THREE, shares, strict=True) if share <= 1
            }
    assert 0.0 <= book.remaining() <= 1.0


def test_an_order_that_died_pays_for_nothing_more():
    book = three()
    loud, quiet = PoissonGaussian(0.01, 0.5), PoissonGaussian(0.01, 1.0)
    fresh = three()
    fresh.charge(quiet, 9000)  # order 4 pays
    assert 4.0 in fresh.alive
    book.charge(loud, 3)
    assert book.alive == (2.5,)
    assert not book.can_afford(quiet, 9000)
    row = next(row for row in book.diagnostics()["orders"] if row["order"] == 4.0)
    assert row["spent"] > row["budget"]
    assert not row["alive"]


def worst_delta(
    book: RenyiFilter,
    noises: tuple[float, ...],
    rate: float,
    epsilon: float,
    depth: int,
    remove: bool,
):
    """The exact delta of the adversary that sees every loss and picks, or stops, to make delta as
    large as it can.

    W(schedule, e) = sup E_Q[(e^L - e^e)+] over what follows = max(1 - e^e, sup over events of
    E_P[W(.., e - loss)]).
    """
    grid = np.linspace(-12.0, 12.0, 1601)

    def value(schedule: tuple[float, ...]) -> np.ndarray:
        best = np.maximum(0.0, -np.expm1(np.minimum(grid, 0.0)))
        if len(schedule) == depth:
            return best
        spent = RenyiFilter.from_state(book.state())
        for noise in schedule:
            spent.charge(PoissonGaussian(rate, noise))
        for noise in noises:
            if spent.can_afford(PoissonGaussian(rate, noise)):
                x = np.linspace(-8 * noise, 1 + 8 * noise, 401)
                base = np.exp(-0.5 * (x / noise) ** 2)
                ratio = 1 - rate + rate * np.exp((x - 0.5) / noise**2)
                mass = base * ratio if remove else base
                loss = np.log(ratio) if remove else -np.log(ratio)
                follow = value((*schedule, noise))
                shifted = np.interp(grid[:, None] - loss[None, :], grid, follow)
                best = np.maximum(best, shifted @ (mass / mass.sum()))
        return best

    return float(np.interp(epsilon, grid, value(())))


@pytest.mark.parametrize("remove", [True, False])
def test_no_adversary_gets_past_the_preset_delta(remove):
    epsilon, delta, noises = 1.0, 0.05, (1.0, 1.5, 3.0)
    book = RenyiFilter(epsilon, delta, AR, {3.0: 0.5, 6.0: 0.5}, 10)
    found = worst_delta(book, noises, 0.5, epsilon, 4, remove)
    assert found <= delta
    if remove:
        assert found > 0.05 * delta  # the bound is not vacuous
    careless = RenyiFilter(100.0, delta, AR, {3.0: 0.5}, 10)
    # without a filter it would get past
    assert worst_delta(careless, noises, 0.5, epsilon, 4, remove) > delta


def test_a_composed_event_is_one_release_and_costs_its_sum():
    book, both = three(), Composed((STEP, PoissonGaussian(0.01, 2.0)))
    quoted = book.quote(both, 10)
    assert book.charge(both, 10) == 10
    for order in THREE:
        parts = [renyi_divergence(part, order, AR) for part in both.events]
        assert quoted[order] == pytest.approx(10 * sum(parts), rel=1e-12)
        assert quoted[order] >= 10 * sum(parts)
    spent = {row["order"]: row["spent"] for row in book.diagnostics()["orders"]}
    assert spent == pytest.approx(quoted, rel=1e-12)


def test_the_guarantee_is_the_preset_budget_whatever_was_spent():
    book = three()
    untouched = book.guarantee()
    book.charge(STEP, 5)
    promised = book.guarantee()
    assert promised == untouched
    assert (promised.epsilon, promised.delta, promised.kind, promised.adjacency) == (
        8.0,
        1e-5,
        "filter budget",
        AR,
    )
    assert promised.evidence.upper == 8.0


def test_the_smallest_noise_spreads_the_rest_evenly():
    book = RenyiFilter.planned(2.0, 1e-5, AR, 0.01, 0.97, 1000)
    book.charge(PoissonGaussian(0.01, 1.2), 300)
    noise = book.smallest_noise(700, 0.01, 0.5)
    assert not book.can_afford(PoissonGaussian(0.01, noise * (1 - 2e-6)), 700)
    for _ in range(700):
        book.charge(PoissonGaussian(0.01, noise))
    assert book.remaining() < 1e-3
    with pytest.raises(BudgetExceededError):
        book.smallest_noise(1, 0.01, 0.5)
    assert three().smallest_noise(10, 0.01, 3.0) == 3.0
    for nonsense in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError):
            three().smallest_noise(10, 0.01, nonsense)


def test_the_plan_takes_the_order_that_affords_most_of_the_smallest_noise():
    book = RenyiFilter.planned(2.0, 1e-5, AR, 0.01, 0.92, 10**6)
    main = book.orders[0]
    assert sum(weight for _, weight in book.contract["orders"]) <= 1.0
    assert all(order < main for order in book.orders[1:])
    event = PoissonGaussian(0.01, 0.92)
    for other in (main - 0.5, main + 0.5):
        rival = RenyiFilter(2.0, 1e-5, AR, {other: 1.0}, 10**6)
        assert rival.smallest_noise(400, 0.01, 0.5) > book.smallest_noise(400, 0.01, 0.5)
        assert not rival.can_afford(event, 460)
    assert book.can_afford(event, 460)
    with pytest.raises(InputError, match="does not fit even once"):
        RenyiFilter.planned(0.5, 1e-5, AR, 0.01, 0.3, 10)


PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "adaptive-noise.md").read_text()


def test_the_documented_loop_ends_within_its_budget(capsys):
    random.seed(3)
    scope: dict = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], scope)
    printed = capsys.readouterr().out.splitlines()
    assert "epsilon=2.0, delta=1e-05, kind='filter budget'" in printed[0]
    assert "kind='NOT_A_GUARANTEE'" in printed[1]
    assert scope["book"].releases == 1000
    assert scope["book"].plug_in(1e-5).figure < 2.0


def test_the_documented_cliff_is_what_the_filter_does():
    rows = re.findall(
        r"^\| ([0-9.]*) ?σ \| ([0-9.]+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE
    )
    assert len(rows) == 4
    for floor, order, *steps in rows:
        planned = RenyiFilter.planned(2.0, 1e-5, AR, 0.01, float(floor or 1) * 1.0223, 10**6)
        assert planned.orders[0] == float(order)
        book = RenyiFilter(2.0, 1e-5, AR, {float(order): 1.0}, 10**6)
        for share, most in zip((0.8, 0.9, 1.0, 1 / 0.9), map(int, steps), strict=True):
            event = PoissonGaussian(0.01, share * 1.0223)
            assert most == 0 or book.can_afford(event, most)
            assert not book.can_afford(event, most + 1)


def test_an_order_for_more_noise_falls_off_the_cliff():
    plan, lower = 1.0223, PoissonGaussian(0.01, 0.9 * 1.0223)
    for_plan = RenyiFilter.planned(2.0, 1e-5, AR, 0.01, plan, 10**6)
    for_floor = RenyiFilter.planned(2.0, 1e-5, AR, 0.01, 0.9 * plan, 10**6)
    assert for_plan.can_afford(PoissonGaussian(0.01, plan), 980)
    assert not for_plan.can_afford(lower, 150)
    assert for_floor.can_afford(lower, 450)


@pytest.mark.parametrize(
    ("epsilon", "delta", "adjacency", "orders", "most"),
    [
        (0.0, 1e-5, AR, {4.0: 1.0}, 10),
        (float("inf"), 1e-5, AR, {4.0: 1.0}, 10),
        (float("nan"), 1e-5, AR, {4.0: 1.0}, 10),
        (True, 1e-5, AR, {4.0: 1.0}, 10),
        (8.0, 0.0, AR, {4.0: 1.0}, 10),
        (8.0, 1.0, AR, {4.0: 1.0}, 10),
        (8.0, "1e-5", AR, {4.0: 1.0}, 10),
        (8.0, 1e-5, "neighbours", {4.0: 1.0}, 10),
        (8.0, 1e-5, AR, {}, 10),
        (8.0, 1e-5, AR, [4.0], 10),
        (8.0, 1e-5, AR, {1.0: 1.0}, 10),
        (8.0, 1e-5, AR, {float("inf"): 1.0}, 10),
        (8.0, 1e-5, AR, {4.0: 0.0}, 10),
        (8.0, 1e-5, AR, {4.0: 1.1}, 10),
        (8.0, 1e-5, AR, {4.0: 0.6, 5.0: 0.6}, 10),
        (8.0, 1e-5, AR, {4.0: 1.0}, 0),
        (8.0, 1e-5, AR, {4.0: 1.0}, 2.5),
        (8.0, 1e-5, AR, {4.0: 1.0}, None),
    ],
)
def test_nonsense_is_refused_in_one_line(epsilon, delta, adjacency, orders, most):
    with pytest.raises(InputError) as refused:
        RenyiFilter(epsilon, delta, adjacency, orders, most)
    assert "\n" not in str(refused.value)
