"""How far updates move weights."""

from __future__ import annotations

import math

import pytest
import torch

from dpclip.clipping.control import coordinates
from dpclip.engine.movement import Movement


def test_a_length_is_the_root_mean_square_of_the_change_times_that_of_the_smaller_dimension() -> (
    None
):
    weights = [torch.tensor([3.0, 4.0]), torch.zeros(4, 9), torch.ones(())]
    movement = Movement(weights)
    weights[0] += torch.tensor([0.0, 2.0])
    weights[1] += 0.5
    assert movement.lengths() == pytest.approx([math.sqrt(2), 1.0, 0.0])


def test_noise_changes_what_a_layer_makes_of_its_input_by_that_much_whatever_its_width() -> None:
    torch.manual_seed(0)
    for width in (32, 512):
        weight = torch.randn(4 * width, width) / math.sqrt(width)
        movement, inputs, before = Movement([weight]), torch.randn(width, 64), weight.clone()
        weight += 0.1 * torch.randn(weight.shape) / math.sqrt(width)
        changed = ((weight - before) @ inputs).square().mean().sqrt()
        assert movement.lengths()[0] == pytest.approx(float(changed), rel=0.1)


def test_of_large_models_a_part_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that training changes in place are copied, whatever their type."""
    monkeypatch.setattr(coordinates, "MOST", 4096)
    weights = [torch.ones(100_000, dtype=torch.bfloat16), torch.ones(30_000), torch.ones(7)]
    movement = Movement(weights)
    for tensor in weights:
        tensor *= 1.5
    assert movement.lengths() == pytest.approx([0.5] * 3)
    assert sum(len(kept) for kept in movement._before) <= 4096
