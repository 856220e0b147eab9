"""How batches are drawn where a sample's trace lasts, and what all steps cost together."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from accounting import Gaussian, PoissonGaussian, calibrate_noise_multiplier, compare
from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan, make_plan
from dpclip.errors import BudgetExceededError, InputError
from dpclip.noise.keystream import SecretKey
from dpclip.sampling import HalvesSampler, PassesSampler, Sampler

KEY = SecretKey(bytes(32))


def sampler_of(made: Plan, population: int) -> Sampler:
    """What draws the batches of a plan."""
    return made.scheme.sampler(made, population, KEY)


def plan(
    sampling: str, steps: int = 10, units: int = 1000, batch: int = 50, epsilon: float = 8.0
) -> Plan:
    return make_plan(
        units=units,
        expected_batch_size=batch,
        target_epsilon=epsilon,
        target_delta=1e-5,
        steps=steps,
        sampling=sampling,
        accountant="rdp",
    )


# --- drawing --------------------------------------------------------------------------------------


def test_halves_are_disjoint_even_coins_and_drawn_in_turn_at_twice_the_rate() -> None:
    sampler = sampler_of(plan("halves"), 1000)
    assert isinstance(sampler, HalvesSampler)
    even = [set(sampler.draw(step, 0).tolist()) for step in range(0, 400, 2)]
    odd = [set(sampler.draw(step, 0).tolist()) for step in range(1, 400, 2)]
    assert set.union(*even).isdisjoint(set.union(*odd))
    assert 430 < len(set.union(*even)) < 570
    sizes = [len(batch) for batch in even + odd]
    assert np.mean(sizes) == pytest.approx(50, abs=2)
    counts = np.bincount(list(itertools.chain(*even)), minlength=1000)
    drawn = counts[sorted(set.union(*even))]
    assert stats.binomtest(int(drawn.sum()), 200 * len(drawn), 0.1).pvalue > 1e-3


def test_a_half_does_not_depend_on_the_generation_and_coins_do() -> None:
    sampler = sampler_of(plan("halves"), 1000)
    assert set(sampler.draw(0, 0)) != set(sampler.draw(0, 1))
    assert set(sampler.draw(0, 1)).isdisjoint(set(sampler.draw(1, 0)))


def test_a_pass_draws_every_slot_at_most_once_and_is_the_same_when_repeated() -> None:
    sampler = sampler_of(plan("passes", units=103, batch=10), 101)
    assert isinstance(sampler, PassesSampler)
    passes = [
        np.concatenate([sampler.draw(10 * turn + step, 0) for step in range(10)])
        for turn in range(40)
    ]
    for drawn in passes:
        assert len(set(drawn.tolist())) == len(drawn)
        assert 96 <= len(drawn) <= 100
    assert not np.array_equal(passes[0], passes[1])
    assert np.array_equal(sampler.draw(3, 0), sampler.draw(3, 5))
    counts = np.bincount(np.concatenate(passes), minlength=101)
    assert counts.min() >= 34  # of 40: each unit is left out by chance only
    assert max(len(sampler.draw(step, 0)) for step in range(400)) <= 10


def test_more_units_than_slots_are_refused() -> None:
    with pytest.raises(InputError, match=r"101 units are present but N = 100.*public-units"):
        sampler_of(plan("passes", units=100, batch=10), 101)


# --- planning -------------------------------------------------------------------------------------


def test_halves_need_half_the_compositions_at_twice_the_rate() -> None:
    made = plan("halves", steps=11)
    assert made.sample_rate == 0.1
    assert made.whole == (PoissonGaussian(0.1, made.noise_multiplier), 6)
    found = calibrate_noise_multiplier(8.0, 1e-5, 0.1, 6, adjacency="add-remove", accountant="rdp")
    assert made.noise_multiplier == found.noise_multiplier


def test_passes_are_one_gaussian_whatever_their_number() -> None:
    made = [plan("passes", steps=steps) for steps in (10, 60)]
    assert made[0].whole == (Gaussian(made[0].noise_multiplier), 1)
    assert made[0].noise_multiplier == made[1].noise_multiplier
    assert [p.scheme.participations(p) for p in made] == [1, 3]
    assert compare([made[0].whole], 1e-5, adjacency="add-remove", accountant="rdp").epsilon <= 8.0


@pytest.mark.parametrize(
    ("sampling", "epochs", "epsilon", "sigma"),
    [
        ("poisson", 3, 2.0, 0.927),
        ("poisson", 10, 8.0, 0.655),
        ("passes", 3, 2.0, 1.995),
        ("halves", 3, 2.0, 1.11),
    ],
)
def test_noise_of_published_and_derived_settings(
    sampling: str, epochs: int, epsilon: float, sigma: float
) -> None:
    """N = 50,000, B = 1000: DP-SGD .927 and .655; unamplified 3.45 / sqrt(3); one-step 1.57 /
    sqrt(2) for C3 = 2 C1.
    """
    made = make_plan(
        units=50_000,
        expected_batch_size=1000,
        target_epsilon=epsilon,
        target_delta=1e-5,
        epochs=epochs,
        sampling=sampling,
    )
    assert made.noise_multiplier == pytest.approx(sigma, rel=6e-3)


def test_plans_that_a_scheme_cannot_carry_out_are_refused() -> None:
    with pytest.raises(InputError, match=r"more than half of N = 60 units.*choose at most 30"):
        plan("halves", units=60, batch=31)
    for sampling in ("halves", "passes"):
        with pytest.raises(InputError, match="adjacency replace-one has no proof"):
            replace(plan(sampling), adjacency="replace-one")
    with pytest.raises(InputError, match="choose one of filtered, halves, passes, poisson"):
        plan("often")


def test_a_plan_survives_its_json_and_old_ones_are_poisson() -> None:
    for sampling in ("poisson", "filtered", "halves", "passes"):
        made = plan(sampling)
        assert Plan.from_json(made.to_json()) == made
    assert "sampling" not in plan("poisson").to_json()


# --- charging -------------------------------------------------------------------------------------


def charged(made: Plan, steps: list[tuple[int, int]], path: Path | None = None) -> Ledger:
    ledger = Ledger.create(path, made)
    for step, generation in steps:
        ledger.charge(step, generation, made.noise_multiplier)
    return ledger


def test_halves_pay_for_the_half_that_was_drawn_from_more_often() -> None:
    made = plan("halves", steps=10)
    assert charged(made, [(t, 0) for t in range(10)]).events == [(made.event(), 5)]
    repeated = charged(made, [(t, 0) for t in range(6)] + [(5, 1), (6, 1)])
    assert repeated.events == [(made.event(), 4)]
    assert repeated.compare().epsilon < 8.0


def test_live_figures_know_how_many_planned_steps_have_been_spent() -> None:
    made = plan("halves", steps=9)
    ledger = Ledger.create(None, made)
    receipts = [ledger.charge(step, 0, made.noise_multiplier) for step in range(9)]
    assert [receipt.planned_steps for receipt in receipts] == [2, 2, 4, 4, 6, 6, 8, 8, 9]
    passes = plan("passes")
    assert charged(passes, [(0, 0)]).charge(1, 0, passes.noise_multiplier).planned_steps == 1


def test_a_repeated_pass_spends_the_run_again_and_the_budget_says_no(tmp_path: Path) -> None:
    made = plan("passes")
    ledger = charged(made, [(t, 0) for t in range(4)], tmp_path / "ledger.jsonl")
    assert ledger.events == [(Gaussian(made.noise_multiplier), 1)]
    with pytest.raises(BudgetExceededError):
        ledger.charge(3, 1, made.noise_multiplier)
    ledger.close()
    again = Ledger.open(tmp_path / "ledger.jsonl", made)
    assert again.events == ledger.events
    assert again.charges == 4
    again.close()


def test_halves_stop_where_one_half_is_spent() -> None:
    made = plan("halves", steps=4)
    ledger = charged(made, [(0, 0), (1, 0), (0, 1)])
    with pytest.raises(BudgetExceededError):
        ledger.charge(2, 1, made.noise_multiplier)
    ledger.charge(1, 1, made.noise_multiplier)
