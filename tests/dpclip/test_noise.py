"""The release: sigma_eff from its parts, honest Gaussian noise, and refusal of anything that breaks the promise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpclip.clipping import SideQuery
from dpclip.gradient_sum import GradientSum
from dpclip.noise import FLOAT_SLACK, PrivacyError, release, scale_noise, sigma_eff
from dpclip.randomness import SecretKey
from dpclip.released import Receipt

KEY = SecretKey(bytes(range(32)))


def side(sensitivity: float = 0.5, relative_noise: float = 5.0) -> SideQuery:
    return SideQuery("count", sensitivity, relative_noise, lambda norms: norms)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    bounds=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12),
    sigma=st.floats(0.3, 20),
    weights=st.lists(st.floats(0.1, 10), min_size=12, max_size=12),
)
def test_sigma_eff_of_the_parts_is_the_planned_one(bounds: list[float], sigma: float, weights: list[float]) -> None:
    raw = weights[: len(bounds)]
    shares = [w / sum(raw) for w in raw]
    sides = [side(relative_noise=3 * sigma), side(2.0, 4 * sigma)]
    sides[1] = SideQuery("loss", 2.0, 4 * sigma, lambda norms: norms)
    scale = scale_noise(sigma, bounds, shares, sides)
    inflated = [bound * (1 + FLOAT_SLACK) for bound in bounds]
    precision = sum((c / s) ** 2 for c, s in zip(inflated, scale.stds, strict=True))
    precision += sum((s.sensitivity * (1 + FLOAT_SLACK) / scale.side_stds[s.name]) ** 2 for s in sides)
    assert 1 / math.sqrt(precision) == pytest.approx(sigma, rel=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 12])
def test_uniform_noise_for_k_groups_grows_with_the_root_of_k(groups: int) -> None:
    scale = scale_noise(1.0, [1.0] * groups, [1 / groups] * groups)
    assert scale.stds[0] == pytest.approx(math.sqrt(groups) * (1 + FLOAT_SLACK))


def test_no_noise_or_no_bound_means_no_privacy() -> None:
    assert sigma_eff([1.0], [0.0]) == 0.0
    assert sigma_eff([math.inf], [1.0]) == 0.0


@pytest.mark.parametrize(
    ("bounds", "shares", "sides", "message"),
    [
        ([math.inf], [1.0], [], "positive and finite"),
        ([0.0], [1.0], [], "positive and finite"),
        ([1.0, 1.0], [0.5, 0.4], [], "sum to 1"),
        ([1.0, 1.0], [1.0, 0.0], [], "positive"),
        ([1.0], [1.0], [side(relative_noise=1.0)], "more than one step's budget"),
    ],
)
def test_scales_that_would_break_the_promise_are_refused(
    bounds: list[float], shares: list[float], sides: list[SideQuery], message: str
) -> None:
    with pytest.raises(PrivacyError, match=message):
        scale_noise(1.0, bounds, shares, sides)


def test_release_refuses_less_noise_than_was_charged() -> None:
    total = GradientSum([torch.zeros(3)], [0])
    scale = scale_noise(1.0, [1.0], [1.0])
    with pytest.raises(PrivacyError, match=r"charged at noise multiplier 1\.1"):
        release(total, {}, scale, Receipt(0, 0, 1.1, 0), KEY)


def test_release_has_the_promised_standard_deviation_in_every_part() -> None:
    count = 200_000
    total = GradientSum([torch.full((count,), 3.0), torch.zeros(count, dtype=torch.float64)], [0, 1])
    scale = scale_noise(0.8, [1.0, 4.0], [0.5, 0.5], [side()])
    found = release(total, {"count": torch.zeros(count)}, scale, Receipt(0, 0, 0.8, 0), KEY).value
    assert float((found.gradient[0] - 3).std()) == pytest.approx(scale.stds[0], rel=0.01)
    assert float(found.gradient[1].std()) == pytest.approx(scale.stds[1], rel=0.01)
    assert float(found.sides["count"].std()) == pytest.approx(scale.side_stds["count"], rel=0.01)
    assert [t.dtype for t in found.gradient] == [torch.float32, torch.float64]
    assert abs(float(np.corrcoef(found.gradient[0], found.gradient[1])[0, 1])) < 0.01


def test_release_divides_the_gradient_and_leaves_the_sides() -> None:
    scale = scale_noise(1.0, [1.0], [1.0], [side(relative_noise=3.0)])

    def released(divisor: float) -> tuple[torch.Tensor, torch.Tensor]:
        total = GradientSum([torch.arange(6.0)], [0])
        found = release(total, {"count": torch.ones(1)}, scale, Receipt(0, 0, 1.0, 0), KEY, divisor).value
        return found.gradient[0], found.sides["count"]

    (whole, count), (mean, same) = released(1.0), released(8.0)
    assert torch.allclose(mean * 8, whole, rtol=1e-6)
    assert torch.equal(count, same)


def test_a_canary_sees_exactly_the_planned_mu() -> None:
    """With sigma = 1 a sample at the bound shifts the released sum by one standard deviation, less the slack."""
    scale = scale_noise(1.0, [2.0], [1.0])
    draws = 4_000
    values = [
        float(release(GradientSum([torch.tensor([x])], [0]), {}, scale, Receipt(t, 0, 1.0, 0), KEY).value.gradient[0])
        for x in (2.0, 0.0)
        for t in range(draws)
    ]
    mu = (np.mean(values[:draws]) - np.mean(values[draws:])) / np.std(values[draws:])
    assert mu == pytest.approx(1 / (1 + FLOAT_SLACK), abs=0.05)
