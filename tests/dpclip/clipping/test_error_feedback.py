"""DiceSGD's dynamics: where it ends up, what it carries, and that micro-batches and resuming do not
change it.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dpclip.clipping import ErrorFeedback, Flat, RunShape, StepRelease, make_rule
from dpclip.errors import InputError
from dpclip.gradient_sum import GradientSum
from dpclip.noise.keystream import SecretKey
from dpclip.noise.release import WhiteGaussian
from dpclip.noise.scale import scale_noise
from dpclip.per_sample import FactoredView
from dpclip.per_sample.forms.factored import Dense
from dpclip.released import Receipt, Released

KEY = SecretKey.for_tests(3)
MODES = ("one-step", "capped", "leaky", "literal")


def settled(batch: int, steps: int = 100, passes: int = 1, **settings: object) -> ErrorFeedback:
    rule = ErrorFeedback(**settings)  # type: ignore[arg-type]
    rule.set_run(RunShape(steps, batch, passes))
    rule.partition(["w"], [1])
    return rule


def step(
    rule: ErrorFeedback | Flat, gradients: Tensor, batch: int, sigma: float = 0.0, chunks: int = 1
) -> Tensor:
    """One release over gradients [B, d], in so many micro-batches; the released mean."""
    sums: dict[str, GradientSum] = {}
    for part in gradients.chunk(chunks):
        view = FactoredView([0], len(part))
        view.add(0, Dense(part))
        for name, factors in rule.clip_factors(view.squared_norms().sqrt()).items():
            empty = GradientSum.zeros([torch.zeros(gradients.shape[1], dtype=gradients.dtype)], [0])
            view.weighted_sum(factors, sums.setdefault(name, empty))
    scale = scale_noise(sigma, rule.bounds(), rule.shares())
    released: Released[StepRelease] = WhiteGaussian().release(
        rule.combine(sums), {}, scale, Receipt(0, 0, sigma, 0), KEY, batch
    )
    rule.observe(released)
    return released.value.gradient[0]


# --- card A: ninety samples at 0, ten at 10; the optimum is 1, and clipping at 1 stops at 1/9 -----


def card_a(rule: ErrorFeedback | Flat, steps: int = 4000) -> float:
    targets = torch.cat([torch.zeros(90), torch.full((10,), 10.0)]).double().unsqueeze(1)
    x = torch.zeros(1, dtype=torch.float64)
    for _ in range(steps):
        x = x - 0.05 * step(rule, x - targets, 100)
    return float(x)


def test_plain_clipping_stops_short_of_the_optimum() -> None:
    assert card_a(Flat(1.0), 600) == pytest.approx(1 / 9, abs=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("second", "end"), [(0.05, 0.1667), (0.2, 0.3333), (1.0, 1.0), (2.0, 1.0)])
def test_error_feedback_reaches_the_optimum_once_its_threshold_allows(
    mode: str, second: float, end: float
) -> None:
    capped = {"cap": 20.0} if mode in ("one-step", "capped") else {}
    assert card_a(settled(100, mode=mode, error_norm=second, **capped), 1500) == pytest.approx(
        end, abs=2e-3
    )


# --- what it is made of ---------------------------------------------------------------------------


def test_without_feedback_it_is_plain_clipping_bit_for_bit() -> None:
    gradients = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    rule, flat = settled(20, error_norm=0.0), Flat(1.0)
    for _ in range(3):
        assert torch.equal(step(rule, gradients, 20), step(flat, gradients, 20))


def test_a_threshold_that_clips_nothing_leaves_no_error() -> None:
    rule = settled(20, max_grad_norm=1e6, cap=2e6)
    step(rule, torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), 20)
    assert all(bool((t == 0).all()) for t in rule.tensor_state().values())


def test_literal_feedback_telescopes() -> None:
    """Sum of what was released = sum of the gradients - the error that is left."""
    rule = settled(10, mode="literal", error_norm=0.3)
    generator = torch.Generator().manual_seed(1)
    released, given = torch.zeros(4).double(), torch.zeros(4).double()
    for _ in range(30):
        gradients = 3 * torch.randn(10, 4, generator=generator, dtype=torch.float64)
        released += 10 * step(rule, gradients, 10)
        given += gradients.sum(0)
    assert torch.allclose(released + rule.tensor_state()["0"], given, rtol=1e-9)


def test_micro_batches_do_not_change_the_error() -> None:
    """Card D: the error is made of the same per-sample gradients as the sum, on the same scale."""
    gradients = 1 + torch.randn(1000, 20, generator=torch.Generator().manual_seed(2))
    errors = []
    for chunks in (1, 20, 1000):
        rule = settled(1000, mode="literal")
        step(rule, gradients, 1000, chunks=chunks)
        errors.append(rule.tensor_state()["0"])
    expected = (
        gradients.double() * (1 - (1 / gradients.double().norm(dim=1, keepdim=True)).clamp(max=1))
    ).sum(0)
    for error in errors:
        assert torch.allclose(error, expected, rtol=1e-4)
        assert float(torch.cosine_similarity(error, expected, dim=0)) == pytest.approx(1.0)


def test_the_error_does_not_see_the_noise() -> None:
    gradients = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)) * 5
    errors = []
    for sigma in (0.0, 2.0):
        rule = settled(20, mode="capped")
        for _ in range(3):
            step(rule, gradients, 20, sigma)
        errors.append(rule.tensor_state()["0"])
    assert torch.equal(*errors)


def test_an_empty_batch_still_feeds_back() -> None:
    rule = settled(4)
    step(rule, torch.full((4, 2), 10.0), 4)
    fed = step(rule, torch.zeros(0, 2), 4)
    # C3 - C1 = 1 for each of 4 samples, over 4
    assert float(fed.norm()) == pytest.approx(1.0, rel=1e-3)
    assert float(step(rule, torch.zeros(0, 2), 4).norm()) == 0.0


def test_a_fresh_start_forgets_the_error() -> None:
    rule = settled(4, mode="capped")
    step(rule, torch.full((4, 2), 10.0), 4)
    rule.forget_unreleased()
    assert rule.tensor_state() == {}
    assert float(step(rule, torch.zeros(0, 2), 4).norm()) == 0.0


# --- what it promises -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "passes", "steps", "expected"),
    [
        ({"mode": "capped", "cap": 2.0}, 3, 150, math.sqrt(3) + 3),
        ({"mode": "capped", "cap": 2.0}, 1, 50, math.sqrt(2)),
        ({"mode": "leaky", "error_norm": 1e-3}, 3, 150, math.sqrt(3) * (1 + math.sqrt(8))),
        ({"mode": "literal", "error_norm": 1e-3}, 3, 150, math.sqrt(3) + 2 * math.sqrt(150)),
        ({"mode": "one-step", "cap": 2.0}, None, 150, math.sqrt(2)),
        ({"mode": "one-step", "error_norm": 1e-3, "cap": 99.0}, None, 150, math.sqrt(5)),
        (
            {"mode": "literal", "error_norm": 1e-3, "calibration": "published"},
            None,
            150,
            math.sqrt(3),
        ),
    ],
)
def test_sensitivities_of_the_table(
    settings: dict[str, object], passes: int | None, steps: int, expected: float
) -> None:
    rule = ErrorFeedback(**settings)  # type: ignore[arg-type]
    rule.set_run(RunShape(steps, 1000, passes))
    assert rule.bounds()[0] == pytest.approx(expected, rel=1e-2)
    assert rule.bounds()[0] >= expected


def test_the_published_calibration_is_an_assumption_and_the_others_are_not() -> None:
    assert ErrorFeedback().assumption is None
    published = ErrorFeedback(calibration="published", mode="literal")
    assert "unchecked" in (published.assumption or "") or "could not be verified" in (
        published.assumption or ""
    )
    assert published.sampling == "poisson"
    assert {mode: ErrorFeedback(mode=mode).sampling for mode in MODES} == {
        "one-step": "halves", "capped": "passes", "leaky": "passes", "literal": "passes",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dice:mode=lazy", "choose one of one-step, capped, leaky, literal"),
        ("dice:calibration=hopeful", "choose one of proved, published"),
        ("dice:cap=0.5", "is not between max_grad_norm"),
        ("dice:error_norm=-1", "0 or more"),
        ("dice:error_norm=x", "is not a number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_rule(text)
