"""One plan: exact integers, one q for everyone, and a budget that is never exceeded."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

import dpclip
from accounting import PoissonGaussian, make_accountant
from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan, default_delta, make_plan, steps_for
from dpclip.errors import InputError
from dpclip.noise.keystream import SecretKey
from dpclip.sampling import PoissonSampler

BATCH = 8


def test_steps_and_rate_are_exact_for_every_loader_length_and_number_of_epochs() -> None:
    """int(1/(1/n)) is n - 1 for n = 93, 99, 105, ...; here nothing is divided back."""
    for batches in range(1, 501):
        for epochs in range(1, 11):
            assert steps_for(batches * BATCH, BATCH, epochs) == batches * epochs
        plan = Plan(batches * BATCH, BATCH, batches, 1.0, 1e-9, 2.0)
        assert abs(Fraction(plan.sample_rate) - Fraction(1, batches)) < Fraction(1, 10**15)


def calibrated(batches: int, epochs: int) -> Plan:
    plan = make_plan(
        units=batches * BATCH,
        expected_batch_size=BATCH,
        target_epsilon=2.0,
        target_delta=1e-5,
        epochs=epochs,
        accountant="rdp",
    )
    ours = make_accountant("rdp", "add-remove")
    ours.charge(PoissonGaussian(plan.sample_rate, plan.noise_multiplier), plan.steps)
    assert 1.99 < ours.epsilon(1e-5).upper <= 2.0, (batches, epochs)
    return plan


@pytest.mark.parametrize("batches", [93, 99, 105, 117, 123])
def test_opacus_agrees_where_its_own_engine_overshoots(batches: int) -> None:
    plan = calibrated(batches, 5)
    judge = RDPAccountant()
    judge.history = [(plan.noise_multiplier, plan.sample_rate, plan.steps)]
    # Its coarser grid of orders reads a little higher than ours on the same curve; its own engine
    # reads 2.0067.
    assert judge.get_epsilon(1e-5) <= 2.0 * 1.002


def test_requested_epsilon_is_never_exceeded_for_a_sample_of_loader_lengths() -> None:
    for batches in range(1, 501, 11):
        calibrated(batches, 1 + batches % 10)


@pytest.mark.long
def test_requested_epsilon_is_never_exceeded_for_any_loader_length_to_500_and_epochs_to_10() -> (
    None
):
    for batches in range(1, 501):
        calibrated(batches, 1 + (batches - 1) % 10)
    for epochs in range(1, 11):
        for batches in (93, 99, 105, 117, 123):
            calibrated(batches, epochs)


@pytest.mark.parametrize(("batches", "epochs"), [(93, 5), (16, 3), (1, 4)])
def test_tight_accounting_stays_within_the_budget_too(batches: int, epochs: int) -> None:
    plan = make_plan(
        units=batches * BATCH,
        expected_batch_size=BATCH,
        target_epsilon=2.0,
        target_delta=1e-5,
        epochs=epochs,
    )
    ledger = Ledger.create(None, plan)
    for step in range(plan.steps):
        ledger.charge(step, 0, plan.noise_multiplier)
    assert 1.99 < ledger.compare().epsilon <= 2.0
    with pytest.raises(dpclip.BudgetExceededError):
        ledger.charge(plan.steps, 0, plan.noise_multiplier)


def test_where_the_accountants_disagree_the_plan_satisfies_the_largest() -> None:
    """prv-accountant's lower end lies above the truth here (a defect of its numerical mean), so
    Rényi is reported.
    """
    plan = make_plan(
        units=1000, expected_batch_size=100, target_epsilon=36.8, target_delta=1e-5, steps=300
    )
    ledger = Ledger.create(None, plan)
    for step in range(plan.steps):
        ledger.charge(step, 0, plan.noise_multiplier)
    verdict = ledger.compare()
    assert plan.accountant == "rdp"
    assert 36.7 < verdict.epsilon <= 36.8


def test_everyone_reads_the_same_q() -> None:
    plan = Plan(1000, 50, 10, 1.0, 1e-9, 8.0)
    for batch in (50, 51, 500):
        changed = replace(plan, expected_batch_size=batch)
        event = changed.event()
        assert isinstance(event, PoissonGaussian)
        assert event.sample_rate == changed.sample_rate == pytest.approx(batch / 1000, rel=1e-15)
        threshold = PoissonSampler(changed, 1000, SecretKey(bytes(32))).threshold
        assert threshold / 2**64 == pytest.approx(changed.sample_rate, rel=1e-12)
    assert len({replace(plan, expected_batch_size=b).digest() for b in (50, 51)}) == 2


def test_parts_of_one_run_share_one_plan_object() -> None:
    import torch

    model = torch.nn.Linear(2, 1)
    private = dpclip.make_private(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        [(0, 0)] * 20,
        target_epsilon=1.0,
        expected_batch_size=5,
        steps=2,
        accountant="rdp",
    )
    assert (
        private.plan
        is private.engine.plan
        is private.engine.sampler.schedule
        is private.engine.ledger.plan
    )


def spelled(value: float) -> st.SearchStrategy[Any]:
    """The same number as Python and numpy write it."""
    kinds: list[Any] = [float, np.float64]
    if value == math.inf:
        return st.sampled_from([kind(value) for kind in kinds])
    kinds += [int, np.int64, np.int32] if value == int(value) else []
    return st.sampled_from([kind(value) for kind in kinds])


_WHOLE = st.sampled_from([int, np.int64, np.int32, np.uint16])


@given(
    units=st.integers(40, 5000),
    batch=st.integers(1, 20),
    steps=st.integers(1, 1000),
    kinds=st.tuples(*[_WHOLE] * 3),
    noise=st.one_of(st.integers(1, 5), st.floats(0.3, 20)).flatmap(spelled),
    epsilon=st.one_of(st.integers(1, 20), st.floats(0.01, 50), st.just(math.inf)).flatmap(spelled),
    delta=st.floats(1e-12, 1e-5).flatmap(spelled),
    arithmetic=st.sampled_from(["exact", "fast"]),
    sampling=st.sampled_from(["poisson", "halves", "passes"]),
)
@settings(max_examples=200, deadline=None)
def test_plan_survives_json_however_its_numbers_were_written(
    units: int,
    batch: int,
    steps: int,
    kinds: tuple[Any, ...],
    noise: Any,
    epsilon: Any,
    delta: Any,
    arithmetic: str,
    sampling: str,
) -> None:
    whole = [kind(value) for kind, value in zip(kinds, (units, batch, steps), strict=True)]
    plan = Plan(*whole, noise, delta, epsilon, sampling=sampling, arithmetic=arithmetic)
    reals = [float(value) for value in (noise, delta, epsilon)]
    plain = Plan(units, batch, steps, *reals, sampling=sampling, arithmetic=arithmetic)
    text = json.dumps(plan.to_json(), allow_nan=False)
    again = Plan.from_json(json.loads(text))
    assert again == plan == plain
    assert again.digest() == plan.digest() == plain.digest()
    assert json.loads(text)["arithmetic"] == arithmetic


def test_the_arithmetic_is_part_of_the_plan() -> None:
    exact = Plan(1000, 50, 10, 1.0, 1e-9, 8)
    assert exact.arithmetic == "exact"
    assert replace(exact, arithmetic="fast").digest() != exact.digest()
    with pytest.raises(InputError, match="'quick' is unknown: choose one of exact, fast"):
        replace(exact, arithmetic="quick")


@pytest.mark.parametrize("name", ["units", "expected_batch_size", "steps"])
@pytest.mark.parametrize("value", [32.5, 32.0, True, np.float64(32), np.True_, "32"])
def test_counts_are_whole_numbers(name: str, value: Any) -> None:
    values = {"units": 1000, "expected_batch_size": 50, "steps": 10}
    with pytest.raises(InputError, match=f"{name} = .*: a whole number is needed"):
        Plan(**(values | {name: value}), noise_multiplier=1.0, delta=1e-9, target_epsilon=8.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"{name} = .*: a whole number is needed"):
        make_plan(**(values | {name: value}), target_epsilon=8.0, accountant="rdp")  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [-1.0, math.nan, math.inf])
def test_a_plan_has_finite_noise(noise: float) -> None:
    with pytest.raises(InputError, match="noise_multiplier"):
        Plan(1000, 50, 10, noise, 1e-9, 8.0)


def test_a_plan_of_an_earlier_version_is_refused() -> None:
    fields = Plan(1000, 50, 10, 1.0, 1e-9, 8.0).to_json()
    del fields["arithmetic"]
    with pytest.raises(InputError, match="begun by an earlier version"):
        Plan.from_json(fields)


def test_default_delta_is_below_one_over_n() -> None:
    for units in (1, 10, 1000, 10**4, 10**7):
        assert default_delta(units) <= 0.1 / units


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_epsilon": 0.0}, "epsilon = 0.0"),
        ({"target_epsilon": math.nan}, "epsilon = nan"),
        ({"target_delta": 0.02}, "not below 1/N"),
        ({"expected_batch_size": 101}, "N = 100"),
        ({"epochs": None}, "either epochs or steps"),
        ({"steps": 3}, "either epochs or steps"),
        ({"epochs": -1}, "epochs = -1"),
        ({"epochs": None, "steps": 0}, "steps = 0"),
    ],
)
def test_meaningless_plans_are_refused(changes: dict[str, float | None], message: str) -> None:
    values = {
        "units": 100,
        "expected_batch_size": 10,
        "target_epsilon": 8.0,
        "epochs": 1,
        "accountant": "rdp",
    }
    with pytest.raises(InputError, match=message):
        make_plan(**(values | changes))  # type: ignore[arg-type]
