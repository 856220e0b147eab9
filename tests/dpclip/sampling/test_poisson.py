"""Poisson sampling at the planned rate, and micro-batches that never split a unit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpclip.budget.plan import Plan
from dpclip.noise.keystream import SecretKey
from dpclip.sampling import PoissonSampler

KEY = SecretKey(bytes(32))


def plan(units: int, batch: int) -> Plan:
    return Plan(units, batch, 10, 1.0, 1e-9, 8.0)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(units=st.integers(1, 10**9), data=st.data())
def test_realised_rate_is_never_above_the_accounted_one(units: int, data: st.DataObject) -> None:
    batch = data.draw(st.integers(1, units))
    sampler = PoissonSampler(plan(units, batch), 1, KEY)
    realised = Fraction(sampler.threshold, 2**64)
    exact = Fraction(batch, units)
    assert realised <= exact <= Fraction(sampler.schedule.sample_rate)
    assert float(exact - realised) <= 2.0**-63


def test_batch_sizes_are_binomial() -> None:
    sampler = PoissonSampler(plan(1000, 50), 1000, KEY)
    sizes = np.array([len(sampler.draw(t, 0)) for t in range(2000)])
    assert sizes.mean() == pytest.approx(50, abs=0.7)
    assert sizes.var() == pytest.approx(47.5, rel=0.15)
    expected = stats.binom.ppf([0.001, 0.999], 1000, 0.05)
    assert expected[0] - 5 <= sizes.min() <= sizes.max() <= expected[1] + 8


def test_each_unit_is_drawn_equally_often_and_independently_of_the_others() -> None:
    sampler = PoissonSampler(plan(40, 10), 40, KEY)
    draws = np.zeros((4000, 40))
    for t in range(4000):
        draws[t, sampler.draw(t, 0)] = 1
    assert np.abs(draws.mean(0) - 0.25).max() < 0.03
    correlation = np.corrcoef(draws.T)
    assert np.abs(correlation - np.eye(40)).max() < 0.08


def test_a_step_is_drawn_alike_every_time_and_afresh_in_a_new_generation() -> None:
    sampler = PoissonSampler(plan(500, 100), 500, KEY)
    assert sampler.draw(3, 0).tolist() == sampler.draw(3, 0).tolist()
    assert sampler.draw(3, 0).tolist() != sampler.draw(3, 1).tolist()
    assert sampler.draw(3, 0).tolist() != sampler.draw(4, 0).tolist()


def test_full_batch_takes_everyone() -> None:
    assert PoissonSampler(plan(7, 7), 7, KEY).draw(0, 0).tolist() == list(range(7))


def test_rows_of_a_large_unit_are_a_uniform_choice() -> None:
    sampler = PoissonSampler(plan(10, 5), 10, KEY)
    rows = list(range(100, 106))
    counts = np.zeros(6)
    for t in range(3000):
        chosen = sampler.rows(t, 0, 4, rows, 2)
        assert len(set(chosen)) == 2
        counts[np.array(chosen) - 100] += 1
    assert np.abs(counts / 3000 - 1 / 3).max() < 0.04
    assert sampler.rows(0, 0, 4, rows, 6) == rows
