"""The release: sigma_eff from its parts, honest Gaussian noise, and refusal of anything that breaks
the promise.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dpclip.clipping import SideQuery, StepRelease
from dpclip.gradient_sum import GradientSum
from dpclip.noise.gaussian import grid
from dpclip.noise.keystream import SecretKey
from dpclip.noise.release import SIDES, PrivacyError, WhiteGaussian
from dpclip.noise.scale import FLOAT_SLACK, scale_noise, sigma_eff
from dpclip.released import Receipt

KEY = SecretKey(bytes(range(32)))
release = WhiteGaussian().release
RECEIPT = Receipt(0, 0, 1.0, 0)


def side(sensitivity: float = 0.5, relative_noise: float = 5.0) -> SideQuery:
    return SideQuery("count", sensitivity, relative_noise, lambda norms: norms)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    bounds=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12),
    sigma=st.floats(0.3, 20),
    weights=st.lists(st.floats(0.1, 10), min_size=12, max_size=12),
)
def test_sigma_eff_of_the_parts_is_the_planned_one(
    bounds: list[float], sigma: float, weights: list[float]
) -> None:
    raw = weights[: len(bounds)]
    shares = [w / sum(raw) for w in raw]
    sides = [side(relative_noise=3 * sigma), side(2.0, 4 * sigma)]
    sides[1] = SideQuery("loss", 2.0, 4 * sigma, lambda norms: norms)
    scale = scale_noise(sigma, bounds, shares, sides)
    inflated = [bound * (1 + FLOAT_SLACK) for bound in bounds]
    precision = sum((c / s) ** 2 for c, s in zip(inflated, scale.stds, strict=True))
    precision += sum(
        (s.sensitivity * (1 + FLOAT_SLACK) / scale.side_stds[s.name]) ** 2 for s in sides
    )
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
    total = GradientSum(
        [torch.full((count,), 3.0), torch.zeros(count, dtype=torch.float64)], [0, 1]
    )
    scale = scale_noise(0.8, [1.0, 4.0], [0.5, 0.5], [side()])
    found = release(total, {"count": torch.zeros(count)}, scale, Receipt(0, 0, 0.8, 0), KEY).value
    assert float((found.gradient[0] - 3).std()) == pytest.approx(scale.stds[0], rel=0.01)
    assert float(found.gradient[1].std()) == pytest.approx(scale.stds[1], rel=0.01)
    assert float(found.sides["count"].std()) == pytest.approx(scale.side_stds["count"], rel=0.01)
    assert [t.dtype for t in found.gradient] == [torch.float32, torch.float64]
    assert found.sides["count"].dtype == torch.float64
    assert abs(float(np.corrcoef(found.gradient[0], found.gradient[1])[0, 1])) < 0.01


def test_release_divides_the_gradient_and_leaves_the_sides() -> None:
    scale = scale_noise(1.0, [1.0], [1.0], [side(relative_noise=3.0)])

    def released(divisor: float) -> tuple[torch.Tensor, torch.Tensor]:
        total = GradientSum([torch.arange(6.0)], [0])
        found = release(
            total, {"count": torch.ones(1)}, scale, Receipt(0, 0, 1.0, 0), KEY, divisor
        ).value
        return found.gradient[0], found.sides["count"]

    (whole, count), (mean, same) = released(1.0), released(8.0)
    assert torch.allclose(mean * 8, whole, rtol=1e-6)
    assert torch.equal(count, same)


def test_a_canary_sees_exactly_the_planned_mu() -> None:
    """With sigma = 1 a sample at the bound shifts the released sum by one standard deviation, less
    the slack.
    """
    scale = scale_noise(1.0, [2.0], [1.0])
    draws = 4_000
    values = [
        float(
            release(
                GradientSum([torch.tensor([x])], [0]), {}, scale, Receipt(t, 0, 1.0, 0), KEY
            ).value.gradient[0]
        )
        for x in (2.0, 0.0)
        for t in range(draws)
    ]
    mu = (np.mean(values[:draws]) - np.mean(values[draws:])) / np.std(values[draws:])
    assert mu == pytest.approx(1 / (1 + FLOAT_SLACK), abs=0.05)


class Counts(GradientSum):
    """A sum in integers on a grid and in float64 beside it."""

    def parts(self, slot: int) -> list[tuple[torch.Tensor, float]]:
        whole = (self.tensors[slot] * 8).round()
        return [
            (whole.to(torch.int64), 0.125),
            (self.tensors[slot].double() - whole.double() / 8, 1.0),
        ]


def test_all_parts_of_a_sum_are_released() -> None:
    scale, values = scale_noise(1.0, [1.0], [1.0]), torch.linspace(-3, 3, 500)
    plain = release(
        GradientSum([values.clone()], [0]), {}, scale, Receipt(0, 0, 1.0, 0), KEY, 7.0
    ).value
    parts = release(Counts([values.clone()], [0]), {}, scale, Receipt(0, 0, 1.0, 0), KEY, 7.0).value
    assert torch.equal(plain.gradient[0], parts.gradient[0])


def test_the_gradient_has_the_dtype_of_the_parameter_not_of_the_sum() -> None:
    parameters = [torch.zeros(4), torch.zeros(4, dtype=torch.float64)]
    total = GradientSum.zeros(parameters, [0, 0], torch.float64)
    for sigma in (0.0, 1.0):
        found = release(
            total, {}, scale_noise(sigma, [1.0], [1.0]), Receipt(0, 0, 0.0, 0), KEY
        ).value
        assert [t.dtype for t in found.gradient] == [torch.float32, torch.float64]


def test_noise_of_a_side_statistic_does_not_depend_on_how_many_parameters_there_are() -> None:
    scale = scale_noise(1.0, [1.0], [1.0], [side(relative_noise=3.0)])
    found = [
        release(
            GradientSum([torch.zeros(3)] * n, [0] * n),
            {"count": torch.zeros(5)},
            scale,
            RECEIPT,
            KEY,
        ).value
        for n in (1, 4)
    ]
    assert torch.equal(found[0].sides["count"], found[1].sides["count"])
    with pytest.raises(PrivacyError, match="more than have noise of their own"):
        release(GradientSum([], [0] * (SIDES + 1)), {}, scale, RECEIPT, KEY)


def test_without_noise_the_sum_is_divided_and_nothing_else() -> None:
    values = torch.randn(100, dtype=torch.float64)
    scale = scale_noise(0.0, [math.inf], [1.0])
    found = release(
        GradientSum([values.clone()], [0]), {}, scale, Receipt(0, 0, 0.0, 0), KEY, 4.0
    ).value
    assert torch.equal(found.gradient[0], values / 4)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 9.3])
def test_everything_released_lies_on_a_public_grid(sigma: float) -> None:
    """Two neighbours' releases are multiples of the same steps, whatever digits their sums have."""
    scale = scale_noise(sigma, [1.0, 0.3], [0.6, 0.4], [side(relative_noise=5 * sigma)])
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    for canary in (0.0, 1 / 3):
        total = GradientSum([values + canary, values.double() / 7 + canary], [0, 1])
        receipt = Receipt(0, 0, sigma, 0)
        found = release(
            total, {"count": values.double() * math.pi + canary}, scale, receipt, KEY
        ).value
        parts = zip(
            [*found.gradient, found.sides["count"]],
            [*scale.stds, scale.side_stds["count"]],
            strict=True,
        )
        for tensor, std in parts:
            steps = tensor.double() / grid(std)
            assert torch.equal(steps, steps.round())
            assert float(steps.abs().max()) < 2**20


def shifted(canary: bool, size: int, step: int, generation: int) -> np.ndarray:
    """One release at sigma = 1 of a sum of zeros, or of one unit spread evenly at the bound 1."""
    values = torch.full((size,), 1 / math.sqrt(size) if canary else 0.0)
    receipt, scale = Receipt(step, generation, 1.0, 0), scale_noise(1.0, [1.0], [1.0])
    step_release: StepRelease = release(GradientSum([values], [0]), {}, scale, receipt, KEY).value
    return step_release.gradient[0].double().numpy()


def fine_digits(values: np.ndarray, bits: int) -> bool:
    """The event of the attack (Mironov 2012): some value near 0 is no multiple of 2^-bits of the
    canary.
    """
    quantum = 2.0 ** round(math.log2(1 / math.sqrt(len(values))))
    return bool(
        ((np.abs(values) < quantum / 4) & (np.mod(values * 2.0**bits / quantum, 1.0) != 0)).any()
    )


@pytest.mark.parametrize("size", [1, 256, 4096])
def test_digits_of_the_released_values_do_not_tell_whose_they_are(size: int) -> None:
    repeats = 100
    found = [
        sum(fine_digits(shifted(c, size, t, int(c)), 24) for t in range(repeats))
        for c in (False, True)
    ]
    assert stats.fisher_exact([[k, repeats - k] for k in found]).pvalue > 1e-3
    assert found == [0, 0]


def test_the_attack_would_see_noise_that_is_added_in_float32() -> None:
    generator, q = torch.Generator().manual_seed(1), 1 / 64
    noise = [torch.randn(4096, generator=generator) for _ in range(40)]
    found = [
        sum(fine_digits((x + shift).double().numpy(), 24) for x in noise) for shift in (0.0, q)
    ]
    assert found[0] > 35
    assert found[1] == 0


@pytest.mark.long
@pytest.mark.parametrize("size", [1, 256, 4096])
def test_no_digit_tells_more_than_the_gaussian_mechanism_allows(size: int) -> None:
    """The event with digits cut off anywhere: its power stays below that of the best test at mu =
    1.
    """
    repeats = 5000
    seen = [[shifted(c, size, t, int(c)) for t in range(repeats)] for c in (False, True)]
    for bits in range(-2, 30):
        absent, present = (sum(fine_digits(x, bits) for x in values) for values in seen)
        if bits >= 14:  # finer than the noise's grid
            assert (absent, present) == (0, 0)
        for first, second in (
            (absent, present),
            (present, absent),
            *_complements(absent, present, repeats),
        ):
            most = stats.beta.ppf(1 - 1e-4, first + 1, repeats - first) if first < repeats else 1.0
            least = stats.beta.ppf(1e-4, second, repeats - second + 1) if second > 0 else 0.0
            assert least <= stats.norm.cdf(stats.norm.ppf(most) + 1.0)


def _complements(absent: int, present: int, repeats: int) -> list[tuple[int, int]]:
    return [(repeats - absent, repeats - present), (repeats - present, repeats - absent)]
