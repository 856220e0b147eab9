"""What a statement prints is never less than what was computed."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accounting import NonPrivate, PoissonGaussian, compare, statement, wording


@given(st.floats(0, 1e6))
def test_epsilon_is_rounded_up(epsilon: float) -> None:
    plain = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
    shown = float(wording.shown_epsilon(epsilon).replace("×10", "e").translate(plain))
    assert epsilon <= shown
    assert shown <= epsilon * 1.011 + 1e-300 or shown - epsilon <= 0.01


@pytest.mark.parametrize(
    ("epsilon", "shown"),
    [
        (8.0, "8.00"),
        (7.9992, "8.00"),
        (7.99, "7.99"),
        (7.9900001, "8.00"),
        (0.01004, "0.0101"),
        (0.05, "0.0500"),
        (math.inf, "∞"),
    ],
)
def test_figures_look_as_people_write_them(epsilon: float, shown: str) -> None:
    assert wording.shown_epsilon(epsilon) == shown


def test_sentence_names_the_condition_and_refuses_to_promise_nothing() -> None:
    said = wording.sentence(
        1.234, 1e-6, "one row", "add-remove", "conditional", "the seed stays secret"
    )
    assert "(1.24, 1e-06)" in said
    assert "adding or removing one row" in said
    assert "provided that the seed stays secret" in said
    assert "no privacy guarantee" in wording.sentence(
        math.inf, 1e-6, "one row", "add-remove", "worst-case", None
    )


def test_sections_are_plain_json_even_without_privacy() -> None:
    for event in (PoissonGaussian(0.1, 1.0), NonPrivate("no noise")):
        comparison = compare([(event, 3)], 1e-5, "add-remove", "prv")
        section = statement.accountants_section(comparison)
        assert json.loads(json.dumps(section, allow_nan=False)) == section
        assert {opinion["accountant"] for opinion in section["accountants"]} == {
            "rdp",
            "prv",
            "prv-accountant",
        }


def test_spending_starts_at_zero_ends_at_the_whole_and_never_falls() -> None:
    event = PoissonGaussian(0.1, 1.0)
    points = statement.spending(event, 37, 1e-5, "add-remove", "rdp")
    assert points[0] == (0, 0.0)
    assert points[-1][0] == 37
    assert points[-1][1] == pytest.approx(compare([(event, 37)], 1e-5, "add-remove", "rdp").epsilon)
    assert [e for _, e in points] == sorted(e for _, e in points)
