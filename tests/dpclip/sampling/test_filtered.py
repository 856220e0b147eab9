"""Noise chosen while training: every step is admitted by a filter first, and what is promised is
its budget.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

import dpclip
from accounting import ApproximateDP
from accounting.journal.merge import merged
from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan, make_plan
from dpclip.clipping import ControlledClipping, Flat
from dpclip.errors import BudgetExceededError, InputError
from dpclip.noise.keystream import SecretKey
from dpclip.sampling.filtered import NOISE_RANGE


def plan(epsilon: float = 2.0, steps: int = 60) -> Plan:
    return make_plan(
        units=2000,
        expected_batch_size=100,
        target_epsilon=epsilon,
        target_delta=1e-5,
        steps=steps,
        sampling="filtered",
    )


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0])
def test_the_planned_noise_is_what_the_filter_affords(epsilon: float) -> None:
    filtered = plan(epsilon)
    fixed = make_plan(
        units=2000, expected_batch_size=100, target_epsilon=epsilon, target_delta=1e-5, steps=60
    )
    assert fixed.noise_multiplier < filtered.noise_multiplier < 1.2 * fixed.noise_multiplier
    ledger = Ledger.create(None, filtered)
    for step in range(60):
        assert ledger.admitted_noise(step, 0, 0.0) == pytest.approx(
            filtered.noise_multiplier, rel=1e-5
        )
        ledger.charge(step, 0, filtered.noise_multiplier)


@pytest.mark.parametrize("wishes", [(-1.0,), (1.0, -1.0), (-1.0, -1.0, 0.3), (-50.0,)])
def test_a_greedy_controller_overshoots_by_nothing_and_can_finish(
    wishes: tuple[float, ...],
) -> None:
    filtered = plan()
    ledger = Ledger.create(None, filtered)
    low, high = (by * filtered.noise_multiplier for by in NOISE_RANGE)
    left = 1.0
    for step in range(filtered.steps):
        sigma = ledger.admitted_noise(step, 0, wishes[step % len(wishes)])
        assert low * (1 - 1e-9) <= sigma <= high * (1 + 1e-5)
        receipt = ledger.charge(step, 0, sigma)
        assert 0 <= receipt.budget_left < left
        left = receipt.budget_left
    beyond = 0
    with suppress(BudgetExceededError):
        for beyond in range(10 * filtered.steps):
            left = ledger.charge(
                filtered.steps + beyond, 0, ledger.admitted_noise(beyond + 99, 0, -1.0)
            ).budget_left
    assert left >= 0
    assert beyond < filtered.steps
    assert ledger.compare().epsilon == filtered.target_epsilon


def test_a_budget_too_small_for_a_filter_is_refused() -> None:
    with pytest.raises(InputError, match="leaves a privacy filter no budget at any of its orders"):
        plan(1e-5)


def test_nothing_is_written_of_a_step_that_is_refused(tmp_path: Path) -> None:
    filtered = plan(steps=3)
    ledger = Ledger.create(tmp_path / "ledger.jsonl", filtered)
    with pytest.raises(
        BudgetExceededError, match="does not fit into what the privacy filter has left"
    ):
        ledger.charge(0, 0, filtered.noise_multiplier / 10)
    assert ledger.charges == 0
    ledger.close()


def test_a_reopened_ledger_admits_what_it_would_have_admitted(tmp_path: Path) -> None:
    filtered = plan()
    ledger = Ledger.create(tmp_path / "ledger.jsonl", filtered)
    receipts = [ledger.charge(step, 0, ledger.admitted_noise(step, 0, -1.0)) for step in range(40)]
    expected = [ledger.admitted_noise(40, 0, wish) for wish in (-1.0, 0.0, 1.0)]
    ledger.close()
    again = Ledger.open(tmp_path / "ledger.jsonl", filtered)
    assert [again.admitted_noise(40, 0, wish) for wish in (-1.0, 0.0, 1.0)] == expected
    assert again.admitted_noise(7, 0, 1.0) == receipts[7].noise_multiplier, (
        "a replay has the noise that was charged"
    )
    assert again.charge(7, 0, receipts[7].noise_multiplier) == receipts[7]
    assert again.charges == 40
    again.close()


@dataclass
class _Greedy(Flat):
    """Wants as little noise as it can have."""

    name: ClassVar[str] = "greedy"

    def noise_preference(self) -> float:
        return -1.0


def run(rule: Flat | ControlledClipping, *, key: SecretKey | None = None) -> dpclip.PrivateTraining:
    net = nn.Linear(3, 2)
    rows = [(row, int(row[0] > 0)) for row in torch.randn(60, 3)]
    private = dpclip.make_private(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        rows,
        target_epsilon=2,
        expected_batch_size=12,
        steps=20,
        clipping=rule,
        key=key,
    )
    for inputs, targets in private.batches():
        with private.microbatch((inputs, targets)):
            private.backward(nn.functional.cross_entropy(net(inputs), targets, reduction="none"))
        private.step()
    return private


def noises(private: dpclip.PrivateTraining) -> list[float]:
    """Each step's noise over the planned one."""
    planned = private.plan.noise_multiplier
    return [r.noise_multiplier / planned for r in private.engine.ledger._charged.values()]


def test_a_plan_with_fixed_noise_hears_no_wish() -> None:
    assert noises(run(_Greedy())) == [1.0] * 20


def test_a_filtered_run_promises_its_budget() -> None:
    rule = _Greedy()
    rule.sampling = "filtered"
    private = run(rule)
    assert noises(private)[0] == pytest.approx(0.95)
    assert max(noises(private)) > 1.1, "what was taken early is missing later"
    guarantee = private.guarantee()
    assert (guarantee.epsilon, guarantee.kind, guarantee.assumption) == (2.0, "filter budget", None)
    assert private.engine.step == 20


def test_a_controller_in_mode_c_chooses_the_noise() -> None:
    private = run(ControlledClipping(mode="C", controller="random", interval=1, warmup=0.0))
    assert len(set(noises(private))) > 5
    assert private.guarantee().kind == "filter budget"
    assert private.engine.ledger.compare().opinions[1].note.startswith("NOT_A_GUARANTEE")
    assert private.engine.ledger.profile() == [{"delta": private.plan.delta, "epsilon": 2}]


def test_the_agent_is_told_what_is_left() -> None:
    rule = ControlledClipping(mode="C", interval=2)
    private = run(rule, key=SecretKey.for_tests(1))
    left = rule.agent.tensor_state()["memory.observations"][:, 0, 16]
    assert len(left) == 10
    assert 0 < float(left[-1]) < 0.5
    assert bool((left.diff() < 0).all())
    assert private.guarantee().kind == "conditional"


def test_merged_journals_count_the_budget_of_a_filtered_run(tmp_path: Path) -> None:
    """Adding up noise that was chosen while training would say less than was promised."""
    filtered = plan(steps=10)
    ordinary = make_plan(
        units=2000, expected_batch_size=100, target_epsilon=1.0, target_delta=1e-5, steps=10
    )
    for name, each in {"filtered": filtered, "ordinary": ordinary, "unused": filtered}.items():
        ledger = Ledger.create(tmp_path / name, each)
        for step in range(0 if name == "unused" else 10):
            ledger.charge(step, 0, ledger.admitted_noise(step, 0, 1.0))
        ledger.close()
    found = merged([tmp_path / name for name in ("filtered", "ordinary", "unused")])
    assert found == [(ordinary.event(), 10), (ApproximateDP(2.0, 1e-5, "add-remove"), 1)]
