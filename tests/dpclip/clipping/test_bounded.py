"""What the stateless rules do to single norms."""

from __future__ import annotations

import math

import pytest
import torch

from dpclip.clipping import AutomaticV, Global, Normalized, Psac
from dpclip.errors import InputError

NORMS = torch.tensor([[0.0, 0.01, 0.2, 1.0, 50.0]], dtype=torch.float64)


def test_auto_v_gives_every_gradient_the_same_length_and_a_zero_gradient_nothing() -> None:
    scaled = NORMS * AutomaticV(2.0).clip_factors(NORMS)["release"]
    assert scaled[0].tolist() == pytest.approx([0.0, 2.0, 2.0, 2.0, 2.0])


def test_normalized_keeps_small_gradients_in_proportion() -> None:
    scaled = (NORMS * Normalized(1.0, regularizer=10.0).clip_factors(NORMS)["release"])[0]
    assert float(scaled[2] / scaled[1]) == pytest.approx(20, rel=0.02)
    assert float(scaled[4]) == pytest.approx(50 / 60)


def test_psac_weighs_most_near_its_turning_point_and_does_not_blow_up_tiny_gradients() -> None:
    rule = Psac(1.0, regularizer=0.1)
    turning = math.sqrt(0.1) - 0.1
    norms = torch.tensor([[1e-9, turning / 2, turning, 2 * turning]], dtype=torch.float64)
    factors = rule.clip_factors(norms)["release"][0].tolist()
    assert factors[0] == pytest.approx(1.0)
    assert max(factors) == factors[2]
    assert factors[2] == pytest.approx(1 / (2 * math.sqrt(0.1) - 0.1))


@pytest.mark.parametrize(("beyond", "last"), [("clip", 2.0), ("drop", 0.0)])
def test_global_scales_all_alike_up_to_its_upper_norm(beyond: str, last: float) -> None:
    scaled = NORMS * Global(2.0, upper=4.0, beyond=beyond).clip_factors(NORMS)["release"]
    assert scaled[0].tolist() == pytest.approx([0.0, 0.005, 0.1, 0.5, last])


def test_global_refuses_an_upper_norm_that_would_enlarge_gradients() -> None:
    with pytest.raises(InputError, match=r"upper = 0\.5 is below max_grad_norm = 1"):
        Global(1.0, upper=0.5)
    with pytest.raises(InputError, match="choose one of clip, drop"):
        Global(beyond="keep")
