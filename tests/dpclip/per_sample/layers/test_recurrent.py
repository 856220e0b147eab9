"""torch's recurrent layers: the same outputs and gradients, and per-sample gradients in
every mode.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from dpclip.errors import BatchDimensionError
from dpclip.per_sample import make_backend
from tests.support.per_sample import captured, clipped_sum, one_at_a_time, relative_gap

B, T, D, H = 4, 5, 3, 4
KINDS: dict[str, type[nn.RNNBase]] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "two layers, both ways": {"num_layers": 2, "bidirectional": True},
    "time first": {"batch_first": False},
}
CASES = [(kind, option) for kind in KINDS for option in OPTIONS]


class Net(nn.Module):
    """Uses the outputs and the last states; packs its input if asked."""

    def __init__(
        self, layer: nn.RNNBase, lengths: list[int] | None = None, start: bool = False
    ) -> None:
        super().__init__()
        self.layer, self.lengths, self.start = layer, lengths, start

    def forward(self, x: Tensor) -> Tensor:
        layer, first = self.layer, self.layer.batch_first
        given: Any = x if first else x.transpose(0, 1)
        if self.lengths is not None:
            lengths = x[:, :, 0].ne(0).sum(1)  # padding is zero, so that a row knows its own length
            given = pack_padded_sequence(given, lengths, batch_first=first, enforce_sorted=False)
        states = None
        if self.start:
            count = layer.num_layers * (2 if layer.bidirectional else 1)
            h = (
                x.mean(1)[:, :1]
                .expand(-1, layer.proj_size or layer.hidden_size)
                .expand(count, -1, -1)
            )
            c = x.mean(1)[:, 1:2].expand(-1, layer.hidden_size).expand(count, -1, -1)
            states = (h, c) if layer.mode == "LSTM" else h
        out, last = layer(given, states)
        if self.lengths is not None:
            out = pad_packed_sequence(out, batch_first=first, total_length=x.shape[1])[0]
        out = out if first else out.transpose(0, 1)
        ends = torch.cat(
            [t.transpose(0, 1).flatten(1) for t in (last if isinstance(last, tuple) else (last,))],
            1,
        )
        return (
            out.square().flatten(1).sum(1)
            + (out.cumsum(1) * 0.3).sin().flatten(1).sum(1)
            + ends.cos().sum(1)
        )


def check(model: Net, x: Tensor, mode: str) -> None:
    bound = 0.8 * float(
        torch.tensor(
            clipped_sum(one_at_a_time(model, x, list(model.parameters())), 1.0)[0]
        ).median()
    )
    lengths, expected = clipped_sum(one_at_a_time(model, x, list(model.parameters())), bound)
    for chunks in ([B], [1, 3], [2, 2]):
        norms, total = captured(mode, model, x, chunks, bound)
        assert norms == pytest.approx(lengths, rel=1e-12)
        assert relative_gap(total, expected) <= 1e-12


@pytest.mark.parametrize("mode", ["bookkeeping", "ghost", "hooks", "functorch"])
@pytest.mark.parametrize(("kind", "option"), CASES)
def test_per_sample_gradients(kind: str, option: str, mode: str) -> None:
    torch.manual_seed(0)
    layer = KINDS[kind](D, H, **{"batch_first": True, **OPTIONS[option]})
    check(
        Net(layer, start=option == "plain").double(),
        torch.randn(B, T, D, dtype=torch.float64),
        mode,
    )


@pytest.mark.parametrize("mode", ["bookkeeping", "hooks"])
def test_other_options(mode: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(B, T, D, dtype=torch.float64)
    check(
        Net(nn.LSTM(D, H, proj_size=2, num_layers=2, batch_first=True), start=True).double(),
        x,
        mode,
    )
    check(Net(nn.RNN(D, H, nonlinearity="relu", batch_first=True)).double(), x, mode)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("option", ["two layers, both ways", "time first"])
def test_packed_sequences(kind: str, option: str) -> None:
    torch.manual_seed(0)
    layer = KINDS[kind](D, H, **{"batch_first": True, **OPTIONS[option]})
    x = torch.randn(B, T, D, dtype=torch.float64)
    lengths = [2, 5, 3, 5]
    for row, length in enumerate(lengths):
        x[row, length:] = 0
    check(Net(layer, lengths, start=True).double(), x, "bookkeeping")


@pytest.mark.parametrize(("kind", "option"), CASES)
def test_outputs_and_input_gradients_are_those_of_the_layer(kind: str, option: str) -> None:
    torch.manual_seed(0)
    model = Net(KINDS[kind](D, H, **{"batch_first": True, **OPTIONS[option]}), start=True).double()
    x = torch.randn(B, T, D, dtype=torch.float64, requires_grad=True)
    plain = model(x)
    (expected,) = torch.autograd.grad(plain.sum(), [x])
    parameters = list(model.parameters())
    backend = make_backend("bookkeeping", model, parameters, [0] * len(parameters))
    for _ in range(2):
        with backend.capture(B):
            watched = model(x)
            assert torch.allclose(watched, plain, rtol=1e-12, atol=1e-12)
            (found,) = torch.autograd.grad(watched.mean() * B, [x])
        assert torch.allclose(found, expected, rtol=1e-11, atol=1e-12)
    backend.close()
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_dropout_between_layers_is_drawn_in_training_only() -> None:
    model = Net(nn.GRU(D, H, num_layers=2, dropout=0.9, batch_first=True)).double()
    x, parameters = torch.randn(B, T, D, dtype=torch.float64), list(model.parameters())
    backend = make_backend("bookkeeping", model, parameters, [0] * len(parameters))

    def outputs() -> Tensor:
        with backend.capture(B):
            found = model(x)
            found.mean().backward()
        return found.detach()

    assert not torch.allclose(outputs(), outputs())
    model.eval()
    assert torch.equal(outputs(), outputs())


def test_one_spoilt_sample_leaves_the_others() -> None:
    torch.manual_seed(0)
    model = Net(nn.LSTM(D, H, batch_first=True))
    x, parameters = torch.randn(B, T, D), list(model.parameters())
    x[1, 2] = torch.nan
    backend = make_backend("bookkeeping", model, parameters, [0] * len(parameters))
    with backend.capture(B) as view:
        model(x).mean().backward()
    assert view.squared_norms()[0].isfinite().tolist() == [True, False, True, True]


def test_inputs_without_a_batch_are_refused() -> None:
    layer = nn.LSTM(D, H)
    backend = make_backend("bookkeeping", layer, list(layer.parameters()), [0] * 4)
    with pytest.raises(BatchDimensionError, match="needs a batch dimension"), backend.capture(B):
        layer(torch.randn(T, D))
