"""Rules that change coordinates: value-wise, AdaClip, GeoClip."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from dpclip.clipping import AdaClip, ClippingRule, Flat, GeoClip, StepRelease, Value, make_rule
from dpclip.clipping.geoclip import Covariance
from dpclip.errors import InputError
from dpclip.gradient_sum import GradientSum
from dpclip.noise.keystream import SecretKey
from dpclip.noise.release import WhiteGaussian
from dpclip.noise.scale import scale_noise
from dpclip.per_sample import FactoredView
from dpclip.per_sample.forms.factored import Dense
from dpclip.released import Receipt, Released

KEY = SecretKey.for_tests(2)
BATCH, SIZE = 64, 12


def step(rule: ClippingRule, gradients: Tensor, index: int, sigma: float) -> Released[StepRelease]:
    """One release over gradients [B, d] of a single parameter, as the engine makes it."""
    view = FactoredView([0], len(gradients))
    view.add(0, Dense(gradients))
    changed = rule.transformed(view)
    total = GradientSum.zeros([torch.zeros(gradients.shape[1])], [0])
    changed.weighted_sum(rule.clip_factors(changed.squared_norms().sqrt())["release"], total)
    scale = scale_noise(sigma, rule.bounds(), rule.shares())
    released = WhiteGaussian().release(
        total, {}, scale, Receipt(index, 0, sigma, index), KEY, len(gradients)
    )
    done: Released[StepRelease] = released.map(rule.inverted)
    rule.observe(done)
    return done


def fresh(rule: ClippingRule) -> ClippingRule:
    rule.partition(["w"], [SIZE])
    return rule


def drawn(spread: Tensor, seed: int) -> Tensor:
    return torch.randn(BATCH, len(spread), generator=torch.Generator().manual_seed(seed)) * spread


def error(rule: ClippingRule, spread: Tensor, steps: int, sigma: float = 0.3) -> float:
    """Mean squared error of the released gradient against the batch mean, second half of
    the run.
    """
    errors = []
    for index in range(steps):
        gradients = drawn(spread, index)
        released = step(rule, gradients, index, sigma)
        errors.append(float((released.value.gradient[0] - gradients.mean(0)).square().sum()))
    return sum(errors[steps // 2 :]) / len(errors[steps // 2 :])


def test_value_clips_each_coordinate_by_itself() -> None:
    rule = Value(max_grad_norm=2.0)
    rule.partition(["w"], [4])
    released = step(rule, torch.tensor([[10.0, -10.0, 0.5, 0.0]]), 0, 0.0)
    assert released.value.gradient[0].tolist() == pytest.approx([1.0, -1.0, 0.5, 0.0])


@pytest.mark.parametrize("make", [AdaClip, GeoClip])
def test_what_is_not_clipped_comes_back_as_it_was(make: type[ClippingRule]) -> None:
    """forward, then back, is the identity: without noise the released mean is the mean of the
    gradients.
    """
    rule = fresh(make())
    spread = torch.logspace(-1, -3, SIZE)
    for index in range(300):  # until the rule knows the scale
        step(rule, drawn(spread, index) * 0.01, index, 1e-3)
    gradients = drawn(spread, 1000) * 1e-6
    found = step(rule, gradients, 1000, 0.0).value.gradient[0]
    assert torch.allclose(found, gradients.mean(0), rtol=1e-2, atol=1e-7)


@pytest.mark.parametrize("make", [AdaClip, partial(GeoClip, decay=0.98, gamma=0.25)])
def test_noise_follows_the_gradients_shape(make: Callable[[], ClippingRule]) -> None:
    """On coordinates of very different size, less total error than flat clipping at the best of
    several thresholds.
    """
    spread = torch.logspace(0, -3, SIZE)
    flat = min(error(fresh(Flat(c)), spread, 400) for c in (0.1, 0.3, 1.0, 2.0))
    assert error(fresh(make()), spread, 400) < 0.8 * flat


@pytest.mark.parametrize("make", [AdaClip, GeoClip])
def test_the_same_releases_give_the_same_state_whatever_the_data(make: type[ClippingRule]) -> None:
    """Replay: what is learned depends on released values alone."""
    one, other = fresh(make()), fresh(make())
    for index in range(5):
        released = step(one, drawn(torch.ones(SIZE), index), index, 0.5)
        other.observe(released)
    for name, value in one.tensor_state().items():
        assert torch.equal(other.tensor_state()[name], value)


def test_a_full_covariance_is_the_exponential_average_of_algorithm_1() -> None:
    shape = Covariance(5, 5, 0.9, 1e-15, 1e9)
    dense = torch.eye(5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        z = torch.randn(5, generator=generator, dtype=torch.float64)
        shape.observe(z, 7.0)
        dense = 0.9 * dense + 0.1 * 7.0 * torch.outer(z, z)
    found = shape.directions @ torch.diag(shape.variances) @ shape.directions.mT
    assert torch.allclose(found, dense, rtol=1e-10)
    vectors = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    values, basis = torch.linalg.eigh(dense)
    expected = vectors @ basis @ torch.diag(values**-0.25) @ basis.mT
    assert torch.allclose(shape.power(-0.25, vectors), expected, rtol=1e-9)


def test_a_covariance_of_low_rank_finds_the_leading_directions_and_keeps_the_total() -> None:
    generator = torch.Generator().manual_seed(1)
    strong = torch.linalg.qr(torch.randn(40, 3, generator=generator, dtype=torch.float64)).Q
    shape = Covariance(40, 3, 0.97, 1e-15, 1e9)
    for _ in range(400):
        along = strong @ torch.randn(3, generator=generator, dtype=torch.float64) * 10
        shape.observe(along + 0.1 * torch.randn(40, generator=generator, dtype=torch.float64), 1.0)
    overlap = torch.linalg.svdvals(strong.mT @ shape.directions)
    assert float(overlap.min()) > 0.99
    total = float(shape.variances.sum() + shape.others * shape.rest)
    assert total == pytest.approx(3 * 100 + 40 * 0.01, rel=0.5)
    assert float(shape.rest) < 0.1


def test_directions_outside_the_leading_ones_are_still_released() -> None:
    rule = GeoClip(full_below=0, rank=2)
    rule.partition(["w"], [SIZE])
    unit = torch.zeros(1, SIZE)
    unit[0, -1] = 1e-3
    assert float(step(rule, unit, 0, 0.0).value.gradient[0][-1]) == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adaclip:mean_decay=1", "a decay of at least 0 and below 1"),
        ("adaclip:lowest=2,highest=1", "is not below highest"),
        ("geoclip:rank=0", "at least 1 direction"),
        ("geoclip:gamma=0", "must be positive and finite"),
        ("value:max_grad_norm=inf", "must be positive and finite"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_rule(text)


def test_adaclips_scale_aims_at_norms_of_one() -> None:
    rule = AdaClip()
    rule.partition(["w"], [SIZE])
    spread = torch.logspace(0, -2, SIZE)
    rule.load_tensor_state({"mean.0": torch.zeros(SIZE), "variance.0": spread.square()})
    w = rule.transform(0, drawn(spread, 3))
    assert float(w.square().sum(1).mean()) == pytest.approx(1.0, rel=0.2)
    assert math.isclose(
        float(rule.inverse(0, w[0])[0]), float(drawn(spread, 3)[0, 0]), rel_tol=1e-5
    )
