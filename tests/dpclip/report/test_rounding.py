"""Displayed numbers: which way each is rounded, and that nothing stated is made to look more
private.
"""

from decimal import Decimal

import pytest

from dpclip.report import rounding


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (7.98, "7.98"),  # the decimal that was written, not the binary number just above it
        (7.9701, "7.98"),
        (7.970000001, "7.98"),
        (8, "8.00"),
        (0.1, "0.10"),
        (0.09991, "0.100"),
        (0.001941, "0.00195"),
        (0.0, "0"),
        (1.2341e-7, "1.24×10⁻⁷"),
        (504264.001, "504264.01"),
        (1.2341e9, "1.24×10⁹"),
        ("inf", "∞"),
        (float("inf"), "∞"),
        (None, "not stated"),
        (float("nan"), "not stated"),
        (True, "not stated"),
        ("7.98", "not stated"),
    ],
)
def test_epsilon_is_rounded_up(value: object, shown: str) -> None:
    assert rounding.epsilon(value) == shown


@pytest.mark.parametrize(
    "value", [0.00012345, 0.0456, 0.0999, 0.1001, 1.005, 2.675, 7.9701, 99.999, 12345.678]
)
def test_no_displayed_epsilon_is_below_the_stated_one(value: float) -> None:
    assert Decimal(rounding.epsilon(value)) >= Decimal(repr(value))
    assert Decimal(rounding.lower_epsilon(value)) <= Decimal(repr(value))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.83219, "0.8321"),
        (0.83, "0.83"),
        (1, "1"),
        (12.3499, "12.34"),
        (0.00123999, "0.001239"),
        (None, "not stated"),
    ],
)
def test_noise_multiplier_is_rounded_down(value: object, shown: str) -> None:
    assert rounding.noise_multiplier(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1e-5, "1×10⁻⁵"),
        (7.421e-6, "7.43×10⁻⁶"),
        (9.999e-6, "1×10⁻⁵"),
        (0.02, "2×10⁻²"),
        (0, "0"),
        (None, "not stated"),
    ],
)
def test_delta_is_scientific_and_rounded_up(value: object, shown: str) -> None:
    assert rounding.delta(value) == shown


def test_sample_rate_is_rounded_up() -> None:
    assert rounding.rounded_up(256 / 4097, 6) == "0.0624848"  # 0.062484745…
    assert rounding.rounded_up(0.0625, 6) == "0.0625"
    assert rounding.rounded_up(1e-7, 3) == "1×10⁻⁷"


def test_probability_is_never_rounded_down() -> None:
    assert rounding.percentage(0.99961) == "99.97%"
    assert rounding.percentage(0.012341) == "1.24%"
    assert rounding.percentage(1.0) == "100%"
    assert rounding.percentage(0.5) == "50%"


def test_other_numbers_keep_their_size() -> None:
    assert rounding.number(1_750_000) == "1,750,000"
    assert rounding.number(1_750_000.5) == "1,750,000"
    assert rounding.number(31.25) == "31.25"
    assert rounding.number(3.2e-7) == "3.2×10⁻⁷"
    assert rounding.number(0.0) == "0"


def test_words_cannot_hide_control_or_direction_marks() -> None:
    assert rounding.text("a\u202eb\x00c\nd") == "a�b�c d"


def test_a_nested_value_is_spelled_out() -> None:
    value = {"rule": "flat", "max_grad_norm": 1.0, "groups": [1, None], "on": True}
    assert (
        rounding.anything(value) == "rule: flat; max grad norm: 1; groups: 1, not stated; on: yes"
    )
