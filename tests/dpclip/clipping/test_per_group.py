"""Thresholds by group: who belongs together, what each may move, and how the noise is
shared out.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpclip.clipping import PerBlock, PerGroup, PerLayer, PerTensor, make_rule
from dpclip.errors import InputError
from dpclip.noise.scale import scale_noise

NAMES = [
    "transformer.wte.weight",
    "transformer.h.0.attn.c_attn.weight",
    "transformer.h.0.attn.c_attn.bias",
    "base.h.1.q.lora_A.default.weight",
    "base.h.1.q.lora_B.default.weight",
    "scale",
]
SIZES = [100, 12, 4, 6, 6, 1]


def test_a_layers_tensors_go_together_and_so_do_the_halves_of_an_adapter() -> None:
    assert PerLayer().partition(NAMES, SIZES) == [0, 1, 1, 2, 2, 3]
    assert PerTensor().partition(NAMES, SIZES) == [0, 1, 2, 3, 4, 5]
    assert PerBlock().partition(
        ["h.0.a.weight", "h.0.b.weight", "h.1.a.weight", "ln.bias"], [1] * 4
    ) == [0, 0, 1, 2]


def test_groups_share_the_threshold_so_that_the_whole_gradient_keeps_it() -> None:
    rule = PerLayer(3.0)
    rule.partition(NAMES, SIZES)
    assert math.sqrt(sum(bound**2 for bound in rule.bounds())) == pytest.approx(3.0)


def test_thresholds_and_groups_of_ones_own() -> None:
    rule = PerGroup(
        group_of=lambda name: "head" if name.startswith("scale") else "body",
        thresholds={"head": 0.25},
    )
    assert rule.partition(NAMES, SIZES) == [0, 0, 0, 0, 0, 1]
    assert rule.bounds() == [pytest.approx(1 / math.sqrt(2)), 0.25]
    factors = rule.clip_factors(torch.tensor([[1.0, 0.1], [1.0, 0.1]]))["release"]
    assert factors.tolist() == [[pytest.approx(1 / math.sqrt(2)), 1.0], [0.25, 1.0]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    groups=st.sampled_from([1, 2, 12]), seed=st.integers(0, 999),
    allocation=st.sampled_from(["uniform", "proportional", "minimum-variance"]),
)  # fmt: skip
def test_every_allocation_costs_the_same_and_has_the_noise_it_names(
    groups: int, seed: int, allocation: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    bounds = (torch.rand(groups, generator=generator, dtype=torch.float64) + 0.01).tolist()
    sizes = torch.randint(1, 10_000, (groups,), generator=generator).tolist()
    rule = PerTensor(
        allocation=allocation, thresholds=dict(zip(map(str, range(groups)), bounds, strict=True))
    )
    rule.partition([str(k) for k in range(groups)], sizes)
    scale = scale_noise(1.3, rule.bounds(), rule.shares())
    # Brute force: the whitened contribution of a sample that saturates every group is 1 / sigma.
    whitened = math.sqrt(
        sum((bound / std) ** 2 for bound, std in zip(bounds, scale.stds, strict=True))
    )
    assert 1 / whitened == pytest.approx(1.3, rel=2e-3)
    assert 1 / whitened >= 1.3
    expected = {
        "uniform": [1.0] * groups,
        "proportional": bounds,
        "minimum-variance": [
            math.sqrt(c / math.sqrt(d)) for c, d in zip(bounds, sizes, strict=True)
        ],
    }[allocation]
    ratios = [std / wanted for std, wanted in zip(scale.stds, expected, strict=True)]
    assert ratios == pytest.approx([ratios[0]] * groups)


def test_minimum_variance_has_the_least_noise_of_all() -> None:
    def total(allocation: str) -> float:
        rule = PerLayer(allocation=allocation)
        rule.partition(NAMES, SIZES)
        sizes = [100, 16, 12, 1]
        stds = scale_noise(1.0, rule.bounds(), rule.shares()).stds
        return sum(d * s**2 for d, s in zip(sizes, stds, strict=True))

    assert total("minimum-variance") < min(total("uniform"), total("proportional"))


def test_bad_groups_are_refused_with_the_remedy() -> None:
    with pytest.raises(
        InputError,
        match="allocation 'best' is unknown: choose one of uniform, proportional, minimum-var",
    ):
        make_rule("per-layer:allocation=best")
    with pytest.raises(
        InputError, match="no setting 'group_of': it knows max_grad_norm, allocation"
    ):
        make_rule("per-layer:group_of=x")
    with pytest.raises(
        InputError, match="threshold for nose: there is no such group; the model has"
    ):
        PerLayer(thresholds={"nose": 1.0}).partition(NAMES, SIZES)
    with pytest.raises(InputError, match=r"the threshold of head = -1\.0"):
        PerLayer(thresholds={"head": -1.0})
