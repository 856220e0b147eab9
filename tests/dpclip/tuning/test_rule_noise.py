"""`dpclip calibrate --clipping`: the noise of a rule on a plan, and error feedback's best
thresholds.
"""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from dpclip.cli.app import app
from dpclip.clipping import ErrorFeedback
from dpclip.errors import InputError
from dpclip.tuning.rule_noise import best_thresholds, calibrate_rule, plan_of

SCHEDULE = {
    "epsilon": 2.0,
    "delta": 1e-5,
    "sample_rate": 0.02,
    "steps": 150,
    "batch_size": 1000,
    "accountant": "prv",
}


@pytest.mark.parametrize(
    ("rule", "noise"),
    [
        ("flat", 0.927),
        ("flat:max_grad_norm=2", 1.85),
        ("dice", 1.57),
        ("dice:mode=one-step,error_norm=0.001,cap=99", 2.48),
        ("dice:mode=capped", 9.43),
        ("dice:mode=leaky", 13.2),
        ("dice:mode=literal", 52.3),
        ("dice:mode=literal,calibration=published", 1.61),
    ],
)
def test_noise_of_the_table(rule: str, noise: float) -> None:
    """N = 50,000, B = 1000, 3 passes, epsilon 2 at 1e-5: standard deviation on the sum over C1."""
    assert calibrate_rule(rule, **SCHEDULE)["noise"] == pytest.approx(noise, rel=8e-3)


def test_the_best_thresholds_are_half_the_cap_where_a_sample_counts_once_or_in_pairs() -> None:
    for mode, steps in (("one-step", 150), ("capped", 50)):
        rule = ErrorFeedback(mode=mode, cap=4.0)
        plan = plan_of(rule, **{**SCHEDULE, "steps": steps})  # type: ignore[arg-type]
        best = best_thresholds(rule, plan)
        assert best.max_grad_norm == pytest.approx(2.0, abs=0.05)
        assert best.bounds()[0] == pytest.approx(4 / math.sqrt(2), rel=5e-3)


def test_over_several_passes_capped_feedback_is_best_not_used() -> None:
    rule = ErrorFeedback(mode="capped", cap=4.0)
    best = best_thresholds(rule, plan_of(rule, **SCHEDULE))  # type: ignore[arg-type]
    assert best.max_grad_norm == pytest.approx(4.0)


def test_the_command_line_prints_both_forms() -> None:
    words = [
        "calibrate",
        "--epsilon",
        "2",
        "--delta",
        "1e-5",
        "--sample-rate",
        "0.02",
        "--steps",
        "150",
    ]
    words += ["--clipping", "dice", "--batch-size", "1000"]
    text = CliRunner().invoke(app, words)
    assert text.exit_code == 0, text.output
    assert text.output.count("least noise") == 2
    assert "flat at C = 2" in text.output
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert found["noise_multiplier"] == pytest.approx(1.11, rel=6e-3)
    assert found["sensitivity"] == pytest.approx(math.sqrt(2), rel=2e-3)


def test_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="--sample-rate 0"):
        calibrate_rule("flat", **{**SCHEDULE, "sample_rate": 0.0})
