"""nn.MultiheadAttention: the same outputs and input gradients as torch's, and exact per-sample
gradients.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpclip.errors import BatchDimensionError
from dpclip.gradient_sum import GradientSum
from dpclip.per_sample import make_backend

B, T, S, D = 4, 5, 3, 6


class Net(nn.Module):
    """Attention in one of its many uses; inputs are made from x [B, T, D] with gradients that flow
    back.
    """

    def __init__(self, use: str, call: dict[str, Any], **options: Any) -> None:
        super().__init__()
        self.attention, self.use, self.call = nn.MultiheadAttention(D, 2, **options), use, call

    def forward(self, x: Tensor) -> Tensor:
        memory = x[:, :S].cos()
        if self.attention.kdim != D:
            memory = torch.cat([memory, memory.sin()], 2)[..., : self.attention.kdim]
        query, key, value = {
            "self": (x, x, x),
            "memory": (x, memory, memory),
            "apart": (x, x.sin(), x.cos()),
        }[self.use]
        if not self.attention.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
            if self.use == "self":
                key = value = query
        out, weights = self.attention(query, key, value, **self.call)
        out = out if self.attention.batch_first else out.transpose(0, 1)
        return (
            out
            if weights is None
            else out.sum(1) + weights.flatten(1).square().sum(1, keepdim=True)
        )


def causal(dtype: torch.dtype) -> Tensor:
    mask = torch.ones(T, T, dtype=torch.bool).triu(1)
    return mask if dtype == torch.bool else torch.zeros(T, T, dtype=dtype).masked_fill(mask, -2.0)


padding = torch.zeros(B, T, dtype=torch.bool)
padding[1, 3:] = padding[2, 4:] = True
USES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "self": ("self", {"need_weights": False}, {}),
    "time first": ("self", {"need_weights": False}, {"batch_first": False}),
    "weights": ("self", {}, {}),
    "weights by head": ("self", {"average_attn_weights": False}, {}),
    "memory": ("memory", {"need_weights": False}, {}),
    "apart": ("apart", {}, {}),
    "no bias": ("memory", {}, {"bias": False}),
    "other widths": ("memory", {}, {"kdim": 8, "vdim": 8}),
    "learned key": ("self", {"need_weights": False}, {"add_bias_kv": True}),
    "learned key and zeros": (
        "apart",
        {"attn_mask": causal(torch.bool)},
        {"add_bias_kv": True, "add_zero_attn": True},
    ),
    "causal": (
        "self",
        {"attn_mask": causal(torch.bool), "is_causal": True, "need_weights": False},
        {},
    ),
    "float mask": ("self", {"attn_mask": causal(torch.float64)}, {}),
    "mask by head": ("self", {"attn_mask": causal(torch.bool).expand(2 * B, T, T)}, {}),
    "padding": ("self", {"key_padding_mask": padding, "need_weights": False}, {}),
    "both masks": (
        "apart",
        {"key_padding_mask": padding, "attn_mask": causal(torch.bool)},
        {"add_zero_attn": True},
    ),
}


def net(name: str) -> Net:
    torch.manual_seed(0)
    use, call, options = USES[name]
    model = Net(use, call, **{"batch_first": True, **options}).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def one(model: Net, row: int) -> dict[str, Any]:
    """The call's masks for one row alone."""
    call = dict(model.call)
    if "key_padding_mask" in call:
        call["key_padding_mask"] = call["key_padding_mask"][row : row + 1]
    if call.get("attn_mask") is not None and call["attn_mask"].dim() == 3:
        call["attn_mask"] = call["attn_mask"][:2]
    return call


@pytest.mark.parametrize("mode", ["bookkeeping", "ghost", "hooks", "functorch"])
@pytest.mark.parametrize("name", USES)
def test_norms_and_sums_are_those_of_one_row_at_a_time(name: str, mode: str) -> None:
    model = net(name)
    x = torch.randn(B, T, D, dtype=torch.float64)
    parameters = list(model.parameters())
    whole = dict(model.call)
    backend = make_backend(mode, model, parameters, [0] * len(parameters))
    for _ in range(2):
        with backend.capture(B) as view:
            model(x).flatten(1).square().sum(1).mean().backward()
    factors = torch.tensor([[0.5, 0.0, 2.0, 1.0]], dtype=torch.float64)
    total = GradientSum.zeros(parameters, [0] * len(parameters))
    view.weighted_sum(factors, total)
    backend.close()
    expected = [torch.zeros_like(p) for p in parameters]
    for row in range(B):
        model.call = one(model, row) if name in ("padding", "both masks", "mask by head") else whole
        gradients = torch.autograd.grad(model(x[row : row + 1]).square().sum(), parameters)
        model.call = whole
        square = sum(float(g.square().sum()) for g in gradients)
        assert float(view.squared_norms()[0, row]) == pytest.approx(square, rel=1e-10)
        for sum_, gradient in zip(expected, gradients, strict=True):
            sum_ += float(factors[0, row]) * gradient
    for found, wanted in zip(total.tensors, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", USES)
def test_outputs_and_input_gradients_are_torchs(name: str) -> None:
    model = net(name)
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    plain = model(x)
    (expected,) = torch.autograd.grad(plain.square().sum(), [x])
    parameters = list(model.parameters())
    backend = make_backend("bookkeeping", model, parameters, [0] * len(parameters))
    for _ in range(2):
        with backend.capture(B):
            watched = model(x)
            assert torch.allclose(watched, plain, rtol=1e-12, atol=1e-12)
            (found,) = torch.autograd.grad(watched.square().sum(), [x])
        assert torch.allclose(found, expected, rtol=1e-11, atol=1e-12)
    backend.close()
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize(
    ("training", "norm_first"), list(itertools.product([True, False], repeat=2))
)
def test_torchs_transformer_encoder_in_training_and_in_evaluation(
    training: bool, norm_first: bool
) -> None:
    """In evaluation its layers have a fast path that calls no module at all."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        D, 2, 7, dropout=0.0, batch_first=True, norm_first=norm_first
    )
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().train(training)
    x = torch.randn(B, T, D, dtype=torch.float64)
    parameters = list(model.parameters())
    backend = make_backend("bookkeeping", model, parameters, [0] * len(parameters))
    for _ in range(2):
        with backend.capture(B) as view:
            model(x).flatten(1).square().sum(1).mean().backward()
    backend.close()
    for row in range(B):
        gradients = torch.autograd.grad(model(x[row : row + 1]).square().sum(), parameters)
        square = sum(float(g.square().sum()) for g in gradients)
        assert float(view.squared_norms()[0, row]) == pytest.approx(square, rel=1e-10)


def test_dropout_of_the_weights_is_drawn_in_training_only() -> None:
    model = Net("self", {"need_weights": False}, batch_first=True, dropout=0.9)
    x, parameters = torch.randn(B, T, D), list(model.parameters())
    backend = make_backend("bookkeeping", model, parameters, [0] * len(parameters))

    def outputs() -> Tensor:
        with backend.capture(B):
            found = model(x)
            found.mean().backward()
        return found.detach()

    assert not torch.allclose(outputs(), outputs())
    model.eval()
    assert torch.equal(outputs(), outputs())
    backend.close()


def test_mixed_precision_clips_in_float32() -> None:
    torch.manual_seed(0)
    model = Net("self", {"need_weights": False}, batch_first=True)
    x, parameters = torch.randn(B, T, D), list(model.parameters())
    norms = []
    for enabled in (False, True):
        backend = make_backend("bookkeeping", model, parameters, [0] * len(parameters))
        for _ in range(2):
            with backend.capture(B) as view:
                with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                    out = model(x)
                out.float().flatten(1).square().sum(1).mean().backward()
        backend.close()
        norms.append(view.squared_norms()[0].sqrt())
    assert norms[1].dtype == torch.float64
    assert torch.allclose(norms[0], norms[1], rtol=3e-2)


@pytest.mark.parametrize("shape", [(T, D), (B + 1, T, D)])
def test_inputs_without_one_row_a_sample_are_refused(shape: tuple[int, ...]) -> None:
    layer = nn.MultiheadAttention(D, 2, batch_first=True)
    parameters = list(layer.parameters())
    backend = make_backend("bookkeeping", layer, parameters, [0] * len(parameters))
    x = torch.randn(shape)
    with (
        pytest.raises(BatchDimensionError, match=r"batch dimension|5 sequences in a batch of 4"),
        backend.capture(B),
    ):
        layer(x, x, x)
    backend.close()
