"""Bounds hold in float64 whatever computes the gradients; mixed precision, checkpointing and
compilation.
"""

from __future__ import annotations

import gc
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpclip.clipping import Flat
from dpclip.diagnosis.footprint import footprint
from dpclip.engine.rounding import norms_from_above
from dpclip.gradient_sum import GradientSum
from dpclip.per_sample import make_backend
from dpclip.per_sample.forms.factored import Dense, Factored, sums_of_squares
from dpclip.per_sample.forms.lookups import Lookups as Table
from dpclip.per_sample.forms.outer_products import OuterProducts, Tied
from tests.support import reference


def clipped_length(use: Factored, bound: float) -> float:
    """The exact length of one clipped sample, with the engine's norms and factors and the float32
    sum.
    """
    norms, finite = norms_from_above(use.squared_norms().unsqueeze(0))
    factors = (Flat(bound).clip_factors(norms)["release"] * finite)[0]
    total = torch.zeros(use.shape)
    use.add_weighted(factors, total)
    return math.sqrt(
        float(sum(part.double().square().sum() for part in total.reshape(-1).split(1 << 22)))
    )


def large_dense() -> Factored:
    return Dense(torch.randn(1, 38_600_000) * 1e-3)


def large_outer(length: int) -> Factored:
    return OuterProducts(torch.randn(1, length, 50_257), torch.randn(1, length, 768))


def cancelling() -> Factored:
    """Outer products that nearly cancel: the Gram matrices' entries are a million times larger than
    the norm.
    """
    left, right = torch.randn(1, 40, 300), torch.randn(1, 40, 400)
    left[:, 20:], right[:, 20:] = left[:, :20], -right[:, :20] * (1 + 1e-4)
    return OuterProducts(left, right)


def cancelling_tie() -> Factored:
    """An output gradient that undoes the input gradient of the same table."""
    ids, values = torch.arange(30).unsqueeze(0), torch.randn(1, 30, 200)
    left = -nn.functional.one_hot(ids, 500).float() * (1 + 1e-4)
    return Tied(OuterProducts(left, values), Table(ids, values, 500))


USES = {
    "38.6 million elements": large_dense,
    "38.6 million elements, one position": lambda: large_outer(1),
    "38.6 million elements, Gram matrices": lambda: large_outer(5),
    "cancelling products": cancelling,
    "cancelling tie": cancelling_tie,
}


@pytest.mark.parametrize("name", sorted(USES))
def test_no_clipped_sample_is_longer_than_its_bound(name: str) -> None:
    torch.manual_seed(0)
    use = USES[name]()
    bound = 0.5 * math.sqrt(float(use.squared_norms()[0]))
    length = clipped_length(use, bound)
    assert length <= bound
    if "cancelling" not in name:
        # a little shorter: what rounding may amount to
        assert length == pytest.approx(bound, rel=1e-3)
    gc.collect()


def test_sums_of_squares_of_long_rows_are_right_where_a_norm_reads_low() -> None:
    rows = torch.randn(2, 20_000_001) * 1e-3
    exact = rows.double().square().sum(1)
    found = sums_of_squares(rows)
    assert torch.allclose(found, exact, rtol=2e-5)
    assert bool((found >= exact).all())


@pytest.mark.parametrize("mode", ["bookkeeping", "ghost", "hooks", "functorch"])
@pytest.mark.parametrize("name", ["gpt2 tied", "llama tied", "bert"])
def test_autocast_to_bfloat16_keeps_norms_and_sums_in_float32(name: str, mode: str) -> None:
    torch.manual_seed(0)
    model, rows = reference.MODELS[name]().eval(), reference.batch(4)
    parameters = list(model.parameters())
    exact, found = [], []
    for autocast, into in ((False, exact), (True, found)):
        backend = make_backend(mode, model, parameters, [0] * len(parameters))
        with backend.capture(4) as view:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = reference.losses(model, rows).float().mean()
            loss.backward()
        total = GradientSum.zeros(parameters, [0] * len(parameters))
        view.weighted_sum(torch.ones(1, 4), into=total)
        assert view.squared_norms().dtype == torch.float64
        assert all(t.dtype == torch.float32 for t in total.tensors)
        into += total.tensors
        backend.close()
    assert reference.distance(found, exact) <= 0.05 * reference.length(exact)
    assert reference.distance(found, exact) > 0


def test_products_stay_exact_when_the_user_allows_faster_ones() -> None:
    torch.manual_seed(0)
    use = OuterProducts(torch.randn(2, 64, 900), torch.randn(2, 64, 800))
    model, rows = reference.gpt2(width=64).eval(), reference.batch(2)
    parameters = list(model.parameters())
    backend = make_backend("bookkeeping", model, parameters, [0] * len(parameters))
    with backend.capture(2) as view:
        reference.losses(model, rows).mean().backward()
    before = torch.get_float32_matmul_precision()
    exact = GradientSum.zeros(parameters, [0] * len(parameters))
    view.weighted_sum(torch.ones(1, 2), into=exact)
    try:
        torch.set_float32_matmul_precision("medium")
        found = GradientSum.zeros(parameters, [0] * len(parameters))
        view.weighted_sum(torch.ones(1, 2), into=found)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(torch.equal(a, b) for a, b in zip(found.tensors, exact.tensors, strict=True))
    assert use.prefers_gram


class Deep(nn.Module):
    """Blocks that are recomputed in the backward pass, if asked."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 32)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(32), nn.Linear(32, 128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, 32)
            )
            for _ in range(4)
        )
        self.reentrant = reentrant

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = x + (
                block(x)
                if self.reentrant is None
                else checkpoint(block, x, use_reentrant=self.reentrant)
            )
        return x.square().sum((1, 2))


@pytest.mark.parametrize("mode", ["bookkeeping", "ghost", "hooks", "functorch"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_norms_and_sums(mode: str, reentrant: bool) -> None:
    found = []
    for kind in (None, reentrant):
        torch.manual_seed(0)
        model, ids = Deep(kind).double(), torch.randint(7, (4, 5))
        parameters = list(model.parameters())
        backend = make_backend(mode, model, parameters, [0] * len(parameters))
        for _ in range(2):
            torch.manual_seed(5)
            with backend.capture(4) as view:
                model(ids).mean().backward()
        total = GradientSum.zeros(parameters, [0] * len(parameters))
        view.weighted_sum(torch.linspace(0.1, 1, 4, dtype=torch.float64).unsqueeze(0), into=total)
        found.append((view.squared_norms(), total.tensors))
        backend.close()
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-12)
    assert reference.distance(found[1][1], found[0][1]) <= 1e-12 * reference.length(found[0][1])


def test_checkpointing_frees_the_inputs_of_watched_layers() -> None:
    rows = [torch.randint(7, (1, 50)) for _ in range(3)]
    plain, freed = (
        footprint(Deep(kind), lambda m, b: m(b), torch.cat, rows) for kind in (None, False)
    )
    assert freed.row < 0.8 * plain.row


@pytest.mark.filterwarnings("ignore")  # of the compiler, about its own imports
@pytest.mark.parametrize("name", ["gpt2 tied", "bert"])
def test_compiled_models_have_the_same_norms(name: str) -> None:
    torch.manual_seed(0)
    model, rows = reference.MODELS[name]().eval(), reference.batch(4)
    parameters = list(model.parameters())
    backend = make_backend("bookkeeping", model, parameters, [0] * len(parameters))
    with backend.capture(4) as view:
        reference.losses(model, rows).mean().backward()
    compiled = torch.compile(model, backend="eager")
    for _ in range(2):
        with backend.capture(4) as again:
            reference.losses(compiled, rows).mean().backward()
    assert torch.allclose(again.squared_norms(), view.squared_norms(), rtol=1e-5)
    backend.close()
    torch._dynamo.reset()
