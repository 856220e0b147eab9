"""The gradient backends against one-at-a-time autograd, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpclip.clipping import Flat
from dpclip.errors import BatchDimensionError, InputError
from dpclip.gradient_sum import GradientSum
from dpclip.per_sample import make_backend
from tests.support import reference

MODES = ["bookkeeping", "ghost", "hooks", "functorch"]


def captured(
    mode: str,
    model: nn.Module,
    rows: dict[str, Tensor],
    chunks: list[int],
    factors: Tensor | None = None,
) -> tuple[Tensor, GradientSum]:
    """Norms [B] and the sum weighted by `factors` (default: flat clipping at 1) over physical
    chunks.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = GradientSum.zeros(parameters, [0] * len(parameters))
    backend = make_backend(mode, model, parameters, total.groups)
    norms, start = [], 0
    for size in chunks:
        chunk = {k: v[start : start + size] for k, v in rows.items()}
        with backend.capture(size) as view:
            reference.losses(model, chunk).mean().backward()
        norm = view.squared_norms().sqrt()
        chosen = (
            Flat(1.0).clip_factors(norm)["release"]
            if factors is None
            else factors[:, start : start + size].to(norm)
        )
        view.weighted_sum(chosen, into=total)
        norms.append(norm[0])
        start += size
    backend.close()
    return torch.cat(norms), total


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted(reference.MODELS))
def test_clipped_sum_equals_one_at_a_time_autograd_in_float64(name: str, mode: str) -> None:
    model = reference.MODELS[name]().double().eval()
    rows = reference.batch(4)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = [torch.zeros_like(p) for p in parameters]
    lengths = []
    for gradient in reference.one_at_a_time(model, rows, parameters):
        lengths.append(reference.length(gradient))
        for total, part in zip(expected, gradient, strict=True):
            total += part * min(1.0, 1.0 / lengths[-1])
    for chunks in ([4], [3, 1], [1, 1, 1, 1]):
        norms, total = captured(mode, model, rows, chunks)
        assert norms.tolist() == pytest.approx(lengths, rel=reference.tolerance(name))
        assert reference.distance(total.tensors, expected) <= reference.tolerance(
            name
        ) * reference.length(expected)


@pytest.mark.parametrize("name", ["gpt2 tied", "bert", "llama lora"])
def test_clipped_sum_is_right_to_single_precision_in_float32(name: str) -> None:
    model = reference.MODELS[name]().eval()
    rows = reference.batch(5)
    _, total = captured("hooks", model, rows, [5])
    exact_norms, exact = captured("hooks", model.double(), rows, [5])
    assert float(exact_norms.max()) > 0
    assert reference.distance(total.tensors, exact.tensors) <= 1e-5 * reference.length(
        exact.tensors
    )


class _Blocks(nn.Module):
    """Two residual blocks, recomputed in the backward pass if asked."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh()) for _ in range(2)
        )
        self.reentrant: bool | None = None

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = x + (
                block(x)
                if self.reentrant is None
                else checkpoint(block, x, use_reentrant=self.reentrant)
            )
        return x.square().sum((1, 2))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_norms(reentrant: bool) -> None:
    model = _Blocks().double()
    ids = torch.randint(7, (4, 5))
    parameters = list(model.parameters())
    backend = make_backend("hooks", model, parameters, [0] * len(parameters))
    found = []
    for model.reentrant in (None, reentrant):
        with backend.capture(4) as view:
            model(ids).mean().backward()
        found.append(view.squared_norms()[0].tolist())
    assert found[1] == pytest.approx(found[0], rel=1e-12)
    assert min(found[0]) > 0


def test_rows_of_one_unit_are_added_before_the_norm() -> None:
    model = reference.gpt2().double().eval()
    rows = reference.batch(4)
    parameters = list(model.parameters())
    twice = 2
    backend = make_backend("hooks", model, parameters, [0] * len(parameters))
    with backend.capture(2, twice) as view:
        (reference.losses(model, rows) / 2).sum().div(2).backward()
    gradients = list(reference.one_at_a_time(model, rows, parameters))
    for unit, members in enumerate(([0, 1], [2, 3])):
        joint = [sum(gradients[m][i] for m in members) / 2 for i in range(len(parameters))]
        assert float(view.squared_norms()[0, unit].sqrt()) == pytest.approx(
            reference.length(joint), rel=1e-12
        )


def test_groups_have_norms_of_their_own() -> None:
    model = reference.gpt2().double().eval()
    parameters = list(model.parameters())
    groups = [i % 3 for i in range(len(parameters))]
    backend = make_backend("hooks", model, parameters, groups)
    rows = reference.batch(2)
    with backend.capture(2) as view:
        reference.losses(model, rows).mean().backward()
    squared = view.squared_norms()
    assert squared.shape == (3, 2)
    gradients = list(reference.one_at_a_time(model, rows, parameters))
    for group in range(3):
        part = [g for g, k in zip(gradients[1], groups, strict=True) if k == group]
        assert float(squared[group, 1].sqrt()) == pytest.approx(reference.length(part), rel=1e-12)


def test_padding_row_of_an_embedding_gets_no_gradient_as_in_autograd() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3, padding_idx=0)

        def forward(self, ids: Tensor) -> Tensor:
            return self.table(ids).square().sum((1, 2)) + self.table(ids).sum((1, 2))

    model = Padded().double()
    backend = make_backend("hooks", model, list(model.parameters()), [0])
    with backend.capture(2) as view:
        model(torch.tensor([[0, 1, 1], [0, 0, 0]])).mean().backward()
    squared = view.squared_norms()[0]
    assert float(squared[1]) == 0.0
    assert float(squared[0]) > 0.0


class _Direct(nn.Module):
    """Uses a parameter outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.layer.weight


@pytest.mark.parametrize("mode", MODES)
def test_a_parameter_used_outside_its_layer_is_refused(mode: str) -> None:
    model = _Direct()
    parameters = list(model.parameters())
    backend = make_backend(mode, model, parameters, [0] * len(parameters))
    with (
        pytest.raises(BatchDimensionError, match=r"layer.weight.*do not add up"),
        backend.capture(4),
    ):
        model(torch.randn(4, 5, 3)).mean((1, 2)).mean().backward()


def test_closing_leaves_no_trace_on_the_model() -> None:
    model = reference.gpt2()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    parameters = list(model.parameters())
    backend = make_backend("hooks", model, parameters, [0] * len(parameters))
    with backend.capture(2):
        reference.losses(model, reference.batch(2)).mean().backward()
    backend.close()
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in parameters)


def test_unknown_mode_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'magic'.*auto, bookkeeping, functorch, ghost, hooks"):
        make_backend("magic", nn.Linear(1, 1), [], [])
