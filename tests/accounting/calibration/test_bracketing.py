"""The edge of a budget is found from any start, for smooth, stepped and noisy figures, and never on
the wrong side.
"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accounting.calibration.bracketing import Search
from accounting.errors import InputError

QUIET = settings(max_examples=60, derandomize=True, deadline=None, database=None)


@QUIET
@given(
    st.floats(1e-2, 1e3),
    st.floats(0.3, 8.0),
    st.floats(-6.0, 6.0),
    st.floats(0.2, 5.0),
    st.sampled_from([1, -1]),
    st.floats(0.0, 2e-4),
)
def test_the_edge_of_a_power_law_is_met_from_the_safe_side(root, power, start, slope, safer, noise):
    calls = []

    def figure(value):
        calls.append(value)
        # what a change of grid does to a computed bound
        wobble = noise * math.sin(1e4 * math.log(value))
        return 3.0 * (value / root) ** (-safer * power) * (1 + wobble)

    value, found = Search(safer, 1e-8, 1e8).edge(figure, 3.0, root * math.exp(start), slope)
    assert found == figure(value) <= 3.0
    assert figure(value * (1 - safer * 1e-3)) > 3.0
    assert len(calls) <= 45


@QUIET
@given(st.floats(1e-2, 1e2), st.floats(-5.0, 5.0))
def test_a_figure_that_drops_to_zero_or_rises_to_infinity_has_an_edge_too(root, start):
    def figure(value):
        return 0.0 if value >= root else math.inf

    value, found = Search(1, 1e-8, 1e8).edge(figure, 1.0, root * math.exp(start), 1.3)
    assert (found, figure(value * (1 - 1e-3))) == (0.0, math.inf)


def test_limits_of_the_values_allowed():
    assert Search(1, 1e-3, 1e3).edge(lambda value: 1.0, 2.0, 1.0, 1.3) == (1e-3, 1.0)
    assert Search(-1, 1e-3, 1.0).edge(lambda value: 1.0, 2.0, 0.1, 1.3) == (1.0, 1.0)
    with pytest.raises(InputError, match="not even 1000 meets"):
        Search(1, 1e-3, 1e3).edge(lambda value: 1e9 / value, 2.0, 1.0, 1.3)


def test_a_rough_start_is_near_and_knows_the_slope():
    value, slope = Search(1, 1e-8, 1e8).roughly(lambda value: 5.0 * value**-2.0, 5.0, 300.0)
    assert value == pytest.approx(1.0, rel=0.02)
    assert slope == pytest.approx(2.0, rel=0.01)


@QUIET
@given(st.integers(1, 10**7), st.floats(0.3, 1.5), st.floats(1.0, 1e6), st.floats(0.0, 3e-4))
def test_the_last_count_that_fits(last, power, start, noise):
    calls = []

    def figure(count):
        calls.append(count)
        wobble = noise * math.sin(1e3 * count) if 1 < count != last else 0.0
        return (count / (last + 0.5)) ** power * (1 + wobble)

    found = Search(-1, 1.0, 2.0**40).last_count(figure, 1.0, start, 0.8)
    assert figure(found) <= 1.0 or found == 1
    assert figure(found + 1) > 1.0
    assert len(calls) <= 60


def test_a_count_without_end_is_refused():
    with pytest.raises(InputError, match="set the number of steps yourself"):
        Search(-1, 1.0, 2.0**20).last_count(lambda count: 0.0, 1.0, 16.0, 1.0)
