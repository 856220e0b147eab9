"""What every filter does: refuse without booking, keep the reserve, survive a restart, promise no
realised figure.
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting import (
    Composed,
    EpsilonGuarantee,
    Gaussian,
    InputError,
    Interval,
    NonPrivate,
    PoissonGaussian,
)
from accounting.accountant import make_accountant
from accounting.errors import BudgetExceededError
from accounting.filters.base import PlugInFigure, _digest
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


def three(**more) -> RenyiFilter:
    return RenyiFilter(8.0, 1e-5, AR, THREE, 10**6, **more)


def test_what_overflows_is_refused_and_books_nothing():
    book = three()
    book.charge(STEP, 100)
    before = book.state()
    with pytest.raises(BudgetExceededError, match=r"times the budget; take more noise") as refused:
        book.charge(PoissonGaussian(0.01, 0.05), 3)
    assert "\n" not in str(refused.value)
    assert book.state() == before
    assert book.charge(STEP) == 101  # something cheaper still fits
    with pytest.raises(BudgetExceededError):
        book.charge(PoissonGaussian(0.01, 0.0))
    with pytest.raises(InputError, match="a non-private release: logits"):
        book.charge(NonPrivate("logits"))
    with pytest.raises(InputError, match="str is not an event"):
        book.can_afford("noise")
    assert book.releases == 101


def test_the_preset_number_of_releases_binds():
    book = RenyiFilter(8.0, 1e-5, AR, {4.0: 1.0}, 3)
    assert book.charge(STEP, 2) == 2
    with pytest.raises(
        BudgetExceededError, match="1 of max_releases=3 are left and 2 were asked for"
    ):
        book.charge(STEP, 2)
    assert book.charge(STEP) == 3
    assert not book.can_afford(STEP)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_charge_is_of_at_least_one_release(count):
    with pytest.raises(InputError, match="count="):
        three().charge(STEP, count)


def test_the_plug_in_figure_cannot_be_mistaken():
    book = three()
    book.charge(STEP, 1000)
    book.charge(PoissonGaussian(0.01, 2.0), 200)
    shown = book.plug_in(1e-5)
    assert shown.kind == "NOT_A_GUARANTEE"
    assert shown.note.startswith("NOT_A_GUARANTEE")
    assert isinstance(shown, PlugInFigure)
    assert not isinstance(shown, EpsilonGuarantee | Interval)
    assert not any(hasattr(shown, name) for name in ("epsilon", "upper", "evidence"))
    ordinary = make_accountant("prv", AR)
    for event, count in book.events:
        ordinary.charge(event, count)
    assert shown.figure == ordinary.epsilon(1e-5).upper < 8.0


@some
@given(asked=proposals)
def test_the_reserve_always_completes_the_run(asked):
    fallback = PoissonGaussian(0.01, 1.5)
    book = three(reserve=(fallback, 4000))
    for noise, count in asked:
        if book.can_afford(PoissonGaussian(0.01, noise), count):
            book.charge(PoissonGaussian(0.01, noise), count)
    left = max(0, 4000 - book.releases)
    if left:
        book.charge(fallback, left // 2 + 1)
    for _ in range(min(30, 4000 - book.releases)):
        book.charge(fallback)
    if book.releases < 4000:
        book.charge(fallback, 4000 - book.releases)
    assert book.releases >= 4000


def test_the_reserve_is_kept_to_the_last_release():
    book = three(reserve=(STEP, 12000))
    # leaves less room than one more step needs
    for noise in (0.7, 0.85, 0.93, 0.97, 0.99, 0.999, 0.9999):
        while book.can_afford(PoissonGaussian(0.01, noise)):
            book.charge(PoissonGaussian(0.01, noise))
    assert 0 < book.releases < 12000
    book.charge(STEP, 12000 - book.releases - 20)
    for _ in range(20):
        book.charge(STEP)
    assert book.releases == 12000
    assert not book.can_afford(STEP)


def test_the_reserve_refuses_what_would_otherwise_fit():
    free, kept = three(), three(reserve=(PoissonGaussian(0.01, 1.0), 10000))
    loud = PoissonGaussian(0.01, 0.6)
    assert free.can_afford(loud, 100)
    assert not kept.can_afford(loud, 100)
    with pytest.raises(BudgetExceededError, match="and what is reserved"):
        kept.charge(loud, 100)
    assert kept.can_afford(PoissonGaussian(0.01, 1.0), 10000)
    with pytest.raises(InputError, match="overflows the budget from the start"):
        three(reserve=(loud, 10000))
    with pytest.raises(InputError, match="exceeds max_releases"):
        three(reserve=(STEP, 10**7))


def used() -> RenyiFilter:
    book = RenyiFilter(8.0, 1e-5, AR, THREE, 10**6, reserve=(PoissonGaussian(0.01, 2.0), 50))
    book.charge(STEP, 500)
    book.charge(PoissonGaussian(0.01, 0.5))
    book.charge(STEP)
    book.charge(Composed((STEP, Gaussian(40.0))), 2)
    return book


def test_state_survives_json_and_goes_on_as_before():
    book = used()
    restored = RenyiFilter.from_state(json.loads(json.dumps(book.state())), contract=book.contract)
    assert restored.state() == book.state()
    assert restored.diagnostics() == book.diagnostics()
    assert restored.events == book.events
    for one in (book, restored):
        while one.can_afford(STEP, 10):
            one.charge(STEP, 10)
    assert restored.state() == book.state()
    dead = three()
    dead.charge(PoissonGaussian(0.01, 0.5), 3)
    assert RenyiFilter.from_state(dead.state()).alive == dead.alive == (2.5,)


def resealed(state: dict) -> dict:
    return {
        **state,
        "digest": _digest({key: value for key, value in state.items() if key != "digest"}),
    }


def less_spent(state: dict) -> None:
    state["spent"] = [value / 2 for value in state["spent"]]


def shorter_schedule(state: dict) -> None:
    state["schedule"][0][1] = 5


def forgotten(state: dict) -> None:
    state["schedule"], state["spent"], state["releases"] = [], [0.0, 0.0, 0.0], 0


def larger_budget(state: dict) -> None:
    state["contract"]["epsilon"] = 9.0


def other_orders(state: dict) -> None:
    state["contract"]["orders"] = [[2.5, 1.0]]


def newer_schema(state: dict) -> None:
    state["schema"] = 2


def other_filter(state: dict) -> None:
    state["filter"] = "gdp-filter"


def no_schedule(state: dict) -> None:
    del state["schedule"]


def unknown_event(state: dict) -> None:
    state["schedule"][0][0]["kind"] = "mystery"


def overspent(state: dict) -> None:
    state["schedule"], state["releases"] = [[STEP.to_json(), 10**5]], 10**5
    state["spent"] = [10**5 * renyi_divergence(STEP, order, AR) for order in THREE]


CHANGES = [
    less_spent,
    shorter_schedule,
    forgotten,
    larger_budget,
    other_orders,
    newer_schema,
    other_filter,
    no_schedule,
    unknown_event,
    overspent,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("reseal", [False, True])
def test_a_changed_state_is_refused(change, reseal):
    book = used()
    state = json.loads(json.dumps(book.state()))
    change(state)
    # a whole other run: only the run's own ledger can tell
    undetectable = reseal and change is forgotten
    if undetectable:
        assert RenyiFilter.from_state(resealed(state)).releases == 0
        return
    with pytest.raises(InputError) as refused:
        RenyiFilter.from_state(resealed(state) if reseal else state, contract=book.contract)
    assert "\n" not in str(refused.value)


def test_a_contract_other_than_the_configured_one_is_refused():
    state = used().state()
    for other in (three(), RenyiFilter(4.0, 1e-5, AR, {4.0: 1.0}, 10**6)):
        with pytest.raises(InputError, match="the contract was changed in"):
            RenyiFilter.from_state(state, contract=other.contract)
    with pytest.raises(InputError, match="is no record"):
        RenyiFilter.from_state("state")
