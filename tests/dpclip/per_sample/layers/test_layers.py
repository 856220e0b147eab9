"""Every kind of layer in every gradient mode, against one-at-a-time autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.pytorch_utils import Conv1D

from dpclip.per_sample import make_backend
from tests.support.per_sample import (
    MODES,
    B,
    D,
    Net,
    SharedPositions,
    T,
    UsesBoth,
    captured,
    clipped_sum,
    one_at_a_time,
    relative_gap,
)


class Scaled(nn.Module):
    """A learned scalar, a vector and a table of positions, used outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.randn(D))
        self.positions = nn.Parameter(torch.randn(T, D))
        self.layer = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * self.scale + self.shift + self.positions[: x.shape[1]])


class ClassToken(nn.Module):
    """A token put before each row, as in vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.layer = nn.Parameter(torch.randn(1, 1, D)), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.cat([self.token.expand(len(x), -1, -1), x], 1))


class Tied(nn.Module):
    """A table that is looked up in, is a linear layer's weight, and is used twice as each."""

    def __init__(self, vocabulary: int = 11) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(vocabulary, D), nn.Linear(D, vocabulary, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        first = self.table(ids) + self.table(ids.flip(1)).sin()
        return self.head(first.tanh()) + self.head(first.cos())


class Repeated(nn.Module):
    """One layer called three times, once by keyword; batch norm would not survive this, ALBERT
    does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.norm(x + self.layer(x).tanh())
        return self.layer(input=x)


class Attention(nn.Module):
    """torch's attention, among rows or with the time first, with a mask."""

    def __init__(self, batch_first: bool = True, **options: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(D, 2, batch_first=batch_first, **options)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        given = x if self.batch_first else x.transpose(0, 1)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        found = self.attention(given, given, given.cos(), attn_mask=mask, need_weights=False)[0]
        return found if self.batch_first else found.transpose(0, 1)


class Gemma(nn.Module):
    """An embedding that refines nn.Embedding."""

    class Table(nn.Embedding):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids) * 2.5

    def __init__(self) -> None:
        super().__init__()
        self.table = self.Table(11, D, padding_idx=0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


class T5LayerNorm(nn.Module):
    """The RMS norm of transformers, under one of its many names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return (
            self.weight
            * hidden_states
            * torch.rsqrt(hidden_states.square().mean(-1, keepdim=True) + 1e-6)
        )


class GemmaRMSNorm(T5LayerNorm):
    """... and in the form (1 + w)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return (
            (1 + self.weight)
            * hidden_states
            * torch.rsqrt(hidden_states.square().mean(-1, keepdim=True) + 1e-6)
        )


def rows(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(B, *shape, dtype=torch.float64)


def ids(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(11, (B, *shape))


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear 2-D": (lambda: nn.Linear(D, 3), rows(D)),
    "linear 3-D": (lambda: nn.Linear(D, 3, bias=False), rows(T, D)),
    "linear 4-D": (lambda: nn.Linear(D, 3), rows(2, T, D)),
    "linear, long rows": (lambda: nn.Linear(D, 2), rows(150, D)),
    "linear, wide": (lambda: nn.Linear(40, 50), rows(3, 40)),
    "linear, wide and long": (lambda: nn.Linear(600, 700), rows(140, 600)),
    "HF Conv1D": (lambda: Conv1D(3, D), rows(T, D)),
    "embedding 1-D": (lambda: nn.Embedding(11, D), ids()),
    "embedding": (lambda: nn.Embedding(11, D), ids(T)),
    "embedding with padding": (lambda: nn.Embedding(11, D, padding_idx=0), ids(2, T)),
    "embedding that scales": (Gemma, ids(T)),
    "tied": (Tied, ids(T)),
    "tied, wide": (lambda: Tied(4000), ids(T)),
    "layer norm": (lambda: nn.LayerNorm(D), rows(T, D)),
    "layer norm 2-D": (lambda: nn.LayerNorm((T, D)), rows(3, T, D)),
    "layer norm without bias": (lambda: nn.LayerNorm(D, bias=False), rows(T, D)),
    "RMS norm": (lambda: nn.RMSNorm(D), rows(T, D)),
    "T5 layer norm": (T5LayerNorm, rows(T, D)),
    "Gemma RMS norm": (GemmaRMSNorm, rows(T, D)),
    "group norm": (lambda: nn.GroupNorm(2, D), rows(D, 3, 3)),
    "instance norm 1-D": (lambda: nn.InstanceNorm1d(D, affine=True), rows(D, 7)),
    "instance norm 2-D": (lambda: nn.InstanceNorm2d(D, affine=True), rows(D, 3, 3)),
    "instance norm 3-D": (lambda: nn.InstanceNorm3d(D, affine=True), rows(D, 3, 2, 2)),
    "conv 1-D": (lambda: nn.Conv1d(D, 4, 3, stride=2, padding=1), rows(D, 9)),
    "conv 1-D, same, dilated": (lambda: nn.Conv1d(D, 4, 3, padding="same", dilation=2), rows(D, 9)),
    "conv 2-D": (lambda: nn.Conv2d(D, 4, 3, padding=1, bias=False), rows(D, 6, 5)),
    "conv 2-D, strided, few positions": (
        lambda: nn.Conv2d(16, 60, 3, stride=(2, 1), padding=(1, 0)),
        rows(16, 4, 4),
    ),
    "conv 2-D, few positions": (lambda: nn.Conv2d(60, 70, 3, padding=1), rows(60, 3, 3)),
    "conv 2-D, dilated, few positions": (lambda: nn.Conv2d(60, 70, 2, dilation=2), rows(60, 4, 4)),
    "conv 2-D, grouped": (lambda: nn.Conv2d(D, 8, 3, groups=2), rows(D, 5, 5)),
    "conv 2-D, depthwise": (lambda: nn.Conv2d(D, D, 3, groups=D, padding=1), rows(D, 5, 5)),
    "conv 2-D, reflected": (
        lambda: nn.Conv2d(D, 4, 3, padding=1, padding_mode="reflect"),
        rows(D, 5, 5),
    ),
    "conv 2-D, 1 x 1": (lambda: nn.Conv2d(D, 4, 1, stride=2), rows(D, 5, 5)),
    "conv 3-D": (lambda: nn.Conv3d(3, 4, 2, stride=(1, 2, 1)), rows(3, 3, 4, 3)),
    "attention": (Attention, rows(T, D)),
    "attention, time first": (lambda: Attention(False), rows(T, D)),
    "attention with key and value biases": (
        lambda: Attention(add_bias_kv=True, add_zero_attn=True),
        rows(T, D),
    ),
    "transformer layer": (
        lambda: nn.TransformerEncoderLayer(D, 2, 8, dropout=0.0, batch_first=True),
        rows(T, D),
    ),
    "scalar and vectors": (Scaled, rows(T, D)),
    "class token": (ClassToken, rows(T, D)),
    "shared positions": (SharedPositions, rows(T, D)),
    "shared positions, as many as rows": (SharedPositions, rows(B, D)),
    "layer called again": (Repeated, rows(T, D)),
    "unknown layer": (UsesBoth, rows(T, D)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layer_in_float64_and_float32_and_in_any_chunks(name: str, mode: str) -> None:
    torch.manual_seed(3)
    make, data = LAYERS[name]
    model, x = Net(make()).double().eval(), data()
    bound = 0.8 * float(
        torch.tensor(
            clipped_sum(one_at_a_time(model, x, list(model.parameters())), 1.0)[0]
        ).median()
    )
    lengths, expected = clipped_sum(one_at_a_time(model, x, list(model.parameters())), bound)
    for chunks in ([B], [1, 3], [1] * B):
        if chunks == [B]:
            # what a run does first: one row, so that positions are not rows
            captured(mode, model, x[:1], [1], bound)
        norms, total = captured(mode, model, x, chunks, bound)
        # and never low, but for the oracle's own rounding
        assert norms == pytest.approx(lengths, rel=1e-9)
        assert all(
            found >= length * (1 - 1e-14) for found, length in zip(norms, lengths, strict=True)
        )
        assert relative_gap(total, expected) <= 1e-9
    norms, total = captured(
        mode, model.float(), x.float() if x.is_floating_point() else x, [1, B - 1], bound
    )
    # high by what rounding may amount to, most where terms cancel
    assert norms == pytest.approx(lengths, rel=3e-3)
    assert all(found >= length * (1 - 2e-6) for found, length in zip(norms, lengths, strict=True))
    assert relative_gap(total, expected) <= 3e-3


# torch.func warns that it has no batching rule
@pytest.mark.parametrize("mode", ["bookkeeping", "ghost"])
@pytest.mark.parametrize(
    ("reduction", "padding"), [("mean", None), ("sum", None), ("mean", 0), ("sum", 3)]
)
def test_embedding_bag(mode: str, reduction: str, padding: int | None) -> None:
    torch.manual_seed(0)
    model = Net(nn.EmbeddingBag(11, D, mode=reduction, padding_idx=padding)).double()
    x = torch.randint(11, (B, T))
    lengths, expected = clipped_sum(one_at_a_time(model, x, list(model.parameters())), 1.0)
    captured(mode, model, x[:1], [1], 1.0)
    norms, total = captured(mode, model, x, [B], 1.0)
    assert norms == pytest.approx(lengths, rel=1e-12)
    assert relative_gap(total, expected) <= 1e-12


def test_embedding_bag_with_offsets() -> None:
    torch.manual_seed(0)
    layer, ids, offsets = (
        nn.EmbeddingBag(11, D, mode="mean").double(),
        torch.randint(11, (9,)),
        torch.tensor([0, 2, 3, 7]),
    )
    backend = make_backend("bookkeeping", layer, [layer.weight], [0])
    with backend.capture(B) as view:
        layer(ids, offsets).square().sum(1).mean().backward()
    bags = [ids[0:2], ids[2:3], ids[3:7], ids[7:9]]
    alone = [
        torch.autograd.grad(layer(bag.unsqueeze(0)).square().sum(), [layer.weight]) for bag in bags
    ]
    lengths, _ = clipped_sum([list(row) for row in alone], 1.0)
    assert view.squared_norms().sqrt()[0].tolist() == pytest.approx(lengths, rel=1e-12)


class Vision(nn.Module):
    """A tiny ViT as a function of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=8,
            patch_size=4,
            num_labels=3,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.model = ViTForImageClassification(config)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).logits


class Sequences(nn.Module):
    """A tiny T5 or MT5, reading and writing the same tokens."""

    def __init__(self, multilingual: bool, dropout: float = 0.0) -> None:
        super().__init__()
        shape = {
            "vocab_size": 11,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "dropout_rate": dropout,
            "relative_attention_num_buckets": 4,
            "relative_attention_max_distance": 8,
        }
        self.model = (
            MT5ForConditionalGeneration(MT5Config(**shape))
            if multilingual
            else T5ForConditionalGeneration(T5Config(**shape))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, decoder_input_ids=tokens.flip(1)).logits


class ResidualNet(nn.Module):
    """Convolutions, group norms and a shortcut, with in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, 8) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = x + conv(F.relu(norm(x), inplace=True))
        return self.head(x.mean((2, 3)))


WHOLE: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], float]] = {
    "ViT": (Vision, rows(3, 8, 8), 1e-12),
    "T5": (lambda: Sequences(False), ids(T), 2e-7),  # its norms are computed in float32
    "MT5": (lambda: Sequences(True), ids(T), 2e-7),
    "T5, as many tokens as rows": (lambda: Sequences(False), ids(B), 2e-7),
    "ResNet": (ResidualNet, rows(3, 6, 6), 1e-12),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", sorted(WHOLE))
def test_whole_model(name: str, mode: str) -> None:
    torch.manual_seed(1)
    make, data, tolerance = WHOLE[name]
    model, x = Net(make()).double().eval(), data()
    bound = 0.5
    lengths, expected = clipped_sum(one_at_a_time(model, x, list(model.parameters())), bound)
    for chunks in ([1, 3], [2, 2], [B]):
        norms, total = captured(mode, model, x, chunks, bound)
        assert norms == pytest.approx(lengths, rel=tolerance)
        assert relative_gap(total, expected) <= tolerance
