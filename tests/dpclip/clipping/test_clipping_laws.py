"""Every registered rule keeps the laws; a rule that breaks one is caught."""

from __future__ import annotations

import pytest
import torch
from clipper_laws import check_rule
from hypothesis import given
from hypothesis import settings as laws
from hypothesis import strategies as st
from torch import Tensor

from dpclip.clipping import Flat, make_rule, rule_names
from dpclip.errors import BadInput

BOUNDED = [name for name in rule_names() if name != "none"]


@pytest.mark.parametrize("name", BOUNDED)
@laws(max_examples=15, deadline=None, derandomize=True)
@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99), threshold=st.floats(1e-3, 1e3))
def test_registered_rule_keeps_the_laws(name: str, scale: float, seed: int, threshold: float) -> None:
    settings = [f"max_grad_norm={threshold}"] if hasattr(make_rule(name), "max_grad_norm") else []
    settings += [f"upper={3 * threshold}"] if name == "global" else []
    check_rule(lambda: make_rule(f"{name}:{','.join(settings)}"), scale, seed)


class _Loose(Flat):
    """Promises C but lets 2 C through."""

    def weightings(self, norms: Tensor) -> dict[str, Tensor]:
        return {"release": (2 * self.max_grad_norm / norms).clamp(max=1.0)}


class _BatchMean(Flat):
    """Divides by the realised batch, so that one sample moves every other's contribution."""

    def weightings(self, norms: Tensor) -> dict[str, Tensor]:
        return {"release": 4 * super().weightings(norms)["release"] / max(1, norms.shape[1])}


@pytest.mark.parametrize("rule", [_Loose, _BatchMean])
def test_a_rule_that_breaks_its_promise_is_caught(rule: type[Flat]) -> None:
    with pytest.raises(AssertionError):
        check_rule(rule)


def test_flat_leaves_short_gradients_alone_and_shortens_long_ones() -> None:
    factors = Flat(2.0).weightings(torch.tensor([[0.0, 1.0, 2.0, 8.0]]))["release"]
    assert factors.tolist() == [[1.0, 1.0, 1.0, 0.25]]


def test_automatic_never_reaches_its_bound_but_keeps_the_order() -> None:
    norms = torch.tensor([[0.001, 0.01, 1.0, 100.0]])
    scaled = norms * make_rule("automatic").weightings(norms)["release"]
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
    with pytest.raises(BadInput, match=message):
        make_rule(text)
