"""Every registered rule keeps the laws; a rule that breaks one is caught."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as laws
from hypothesis import strategies as st
from torch import Tensor

from dpclip.clipping import RULES, ClippingRule, Flat, make_rule
from dpclip.errors import InputError
from dpclip.testing.rules import adding_a_unit_moves_the_exact_sum_by_at_most_its_limit, check_rule
from dpclip.testing.shift_cases import KINDS, MODELS, Case

BOUNDED = [name for name in RULES.names() if name != "none"]


@pytest.mark.parametrize("name", BOUNDED)
@laws(max_examples=15, deadline=None, derandomize=True)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99), threshold=st.floats(1e-3, 1e3))
def test_registered_rule_keeps_the_laws(
    name: str, scale: float, seed: int, threshold: float
) -> None:
    check_rule(lambda: _rule(name, threshold), scale, seed)


def _rule(name: str, threshold: float) -> ClippingRule:
    settings = [f"max_grad_norm={threshold}"] if hasattr(make_rule(name), "max_grad_norm") else []
    settings += [f"upper={3 * threshold}"] if name == "global" else []
    return make_rule(f"{name}:{','.join(settings)}")


_BFLOAT = torch.bfloat16
_COMPUTED = [("bookkeeping", torch.float32), ("hooks", torch.float32), ("functorch", torch.float32)]
# torch.func repeats no layer whose weights are bfloat16
_COMPUTED += [("bookkeeping", _BFLOAT), ("hooks", _BFLOAT)]
_SHAPES = [
    (model, positions)
    for model in MODELS
    for positions in (1, 2, 3, 30)
    if model != "wide" or positions == 30
]


@pytest.mark.parametrize("name", BOUNDED)
@laws(max_examples=40, deadline=None, derandomize=True)
@given(
    computed=st.sampled_from(_COMPUTED),
    shape=st.sampled_from(_SHAPES),
    rows_each=st.integers(1, 3),
    kind=st.sampled_from(KINDS),
    magnitude=st.sampled_from([1e-8, 1e-4, 1.0, 1e4, 1e12, 1e20]),
    seed=st.integers(0, 999),
    threshold=st.sampled_from([1.0, 1e-3, 1e-6]),
)
def test_adding_a_unit_moves_the_exact_sum_by_at_most_its_limit(
    name: str,
    computed: tuple[str, torch.dtype],
    shape: tuple[str, int],
    rows_each: int,
    kind: str,
    magnitude: float,
    seed: int,
    threshold: float,
) -> None:
    case = Case(*shape, rows_each, kind, magnitude, seed, computed[1])
    adding_a_unit_moves_the_exact_sum_by_at_most_its_limit(
        _rule(name, threshold), computed[0], case
    )


class _Loose(Flat):
    """Promises C but lets 2 C through."""

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        return {"release": (2 * self.max_grad_norm / norms).clamp(max=1.0)}


class _BatchMean(Flat):
    """Divides by the realised batch, so that one sample moves every other's contribution."""

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        return {"release": 4 * super().clip_factors(norms)["release"] / max(1, norms.shape[1])}


@pytest.mark.parametrize("rule", [_Loose, _BatchMean])
def test_a_rule_that_breaks_its_promise_is_caught(rule: type[Flat]) -> None:
    with pytest.raises(AssertionError):
        check_rule(rule)


@pytest.mark.parametrize("factor", [1.01, 1 + 2.0**-16])
def test_the_exact_law_catches_a_rule_that_is_a_little_too_loose(factor: float) -> None:
    class Looser(Flat):
        def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
            return {"release": factor * super().clip_factors(norms)["release"]}

    case = Case("images", 2, 1, "plain", 1e4, 3)
    with pytest.raises(AssertionError, match="of the limit"):
        adding_a_unit_moves_the_exact_sum_by_at_most_its_limit(Looser(), "hooks", case)


def test_flat_leaves_short_gradients_alone_and_shortens_long_ones() -> None:
    factors = Flat(2.0).clip_factors(torch.tensor([[0.0, 1.0, 2.0, 8.0]]))["release"]
    assert factors.tolist() == [[1.0, 1.0, 1.0, 0.25]]


def test_automatic_never_reaches_its_bound_but_keeps_the_order() -> None:
    norms = torch.tensor([[0.001, 0.01, 1.0, 100.0]])
    scaled = norms * make_rule("automatic").clip_factors(norms)["release"]
    assert scaled[0, 1] == pytest.approx(0.5)
    assert bool((scaled < 1).all())
    assert bool((scaled.diff() > 0).all())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flatt", "'flatt' is unknown: choose one of adaclip, automatic, automatic-v, "),
        ("flat:c=1", "has no setting 'c': it knows max_grad_norm"),
        ("flat:max_grad_norm=big", "'big' is not a number"),
        ("flat:max_grad_norm=0", "must be positive and finite"),
        ("automatic:gamma=-1", "gamma = -1.0"),
    ],
)
def test_bad_rules_are_refused_with_the_remedy(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_rule(text)
