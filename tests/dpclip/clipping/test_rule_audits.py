"""Every rule survives the audit of its claim, and each planted fault is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from dpclip.clipping import RULES, ClippingRule, PerTensor, Quantile, make_rule
from dpclip.noise.scale import NoiseScale
from dpclip.testing import rules as clipper_laws
from tests.support import rule_audit

NAMES = [name for name in RULES.names() if name not in ("none", "dice", "rl")]
NAMES += [f"dice:mode={mode}" for mode in ("one-step", "capped", "leaky", "literal")]
NAMES += [
    f"rl:interval=1,mode={mode},groups={groups}" for mode in "ABC" for groups in ("model", "layer")
]


@pytest.mark.parametrize("name", NAMES)
def test_no_canary_has_more_energy_than_is_paid_for(name: str) -> None:
    """The exact likelihood ratio of a few runs, for short, long and very long canaries."""
    for gradient in (0.01, 1.0, 1e3, 1e8):
        _, energy = rule_audit.audit(lambda: make_rule(name), 1.0, 2, gradient)
        assert energy <= 1 + 1e-6, gradient


@pytest.mark.long
@pytest.mark.parametrize("epsilon", [1.0, 8.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_audit_proves_no_more_than_is_stated(name: str, epsilon: float) -> None:
    lower, energy = rule_audit.audit(lambda: make_rule(name), epsilon, 200)
    assert lower <= epsilon
    assert energy <= 1 + 1e-6


def _sigma_for_each_group(sigma: float, rule: ClippingRule) -> NoiseScale:
    """The fault of many: each group noised as if it were alone."""
    return replace(
        rule_audit.as_stated(sigma, rule), stds=tuple(sigma * bound for bound in rule.bounds())
    )


def _mean_of_the_realised_batch(sigma: float, rule: ClippingRule) -> NoiseScale:
    """Noise made for a sum over the expected batch, added to the mean of the realised one (3 of
    12).
    """
    stated = rule_audit.as_stated(sigma, rule)
    return replace(stated, stds=tuple(std * 3 / 12 for std in stated.stds))


def _silent_count(sigma: float, rule: ClippingRule) -> NoiseScale:
    """The quantile's count almost without noise."""
    return replace(rule_audit.as_stated(sigma, rule), side_stds={"within": 1e-3})


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "noise", "epsilon", "trials"),
    [
        (lambda: make_rule("flat"), _mean_of_the_realised_batch, 1.0, 600),
        (Quantile, _silent_count, 1.0, 600),
    ],
)
def test_planted_faults_are_found(
    make: Callable[[], ClippingRule], noise: rule_audit.Noise, epsilon: float, trials: int
) -> None:
    lower, energy = rule_audit.audit(make, epsilon, trials, noise=noise)
    assert lower > epsilon
    assert energy > 5


@pytest.mark.long
def test_noise_for_each_of_twelve_groups_as_if_alone_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (rule_audit, clipper_laws):
        monkeypatch.setattr(module, "NAMES", tuple(f"h.{k}.weight" for k in range(12)))
        monkeypatch.setattr(module, "SIZES", (3,) * 12)
    lower, energy = rule_audit.audit(PerTensor, 2.0, 800, noise=_sigma_for_each_group)
    assert lower > 2.0
    assert energy > 11


def test_the_bound_itself_is_sound_on_two_gaussians() -> None:
    """mu = 1 GDP at delta 1e-2: the exact epsilon is 2.9; the bound must be below it and
    not idle.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    one, other = generator.normal(0.5, 1, 4000), generator.normal(-0.5, 1, 4000)
    found = rule_audit.lower_bound(one, other, 1e-2)
    assert 1.0 < found < 2.9
    assert math.isfinite(found)
