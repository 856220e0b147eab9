"""torch's recurrent layers (RNN, GRU, LSTM), step by step, to see the gradients of their gates.

A gate's gradient d_t gives the weights' gradients as outer products, sum_t d_t (x) x_t and sum_t
d_t (x) h_{t-1}, so a per-sample norm needs no gradient of a weight's size for each sample. All
input projections are one product, and what does not depend on the recursion is computed for all
steps at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from dpclip.errors import BatchDimensionError
from dpclip.per_sample.forms.factored import Dense, Factored
from dpclip.per_sample.forms.outer_products import OuterProducts
from dpclip.per_sample.layers import recurrent_cells as cells
from dpclip.precision import accumulation_dtype

Record = Callable[[nn.Parameter, Factored], None]


@dataclass(frozen=True)
class _Direction:
    """The parameters of one layer in one direction, and how to walk over its steps."""

    ih: nn.Parameter
    hh: nn.Parameter
    bias_ih: nn.Parameter | None
    bias_hh: nn.Parameter | None
    projection: nn.Parameter | None
    cell: cells.RecurrentCell
    sizes: list[int]
    reverse: bool
    order: Tensor | None

    @property
    def steps(self) -> list[tuple[int, int]]:
        """(step, samples that are that long) in the order of the forward pass."""
        steps = list(enumerate(self.sizes))
        return steps[::-1] if self.reverse else steps


class _Scan(torch.autograd.Function):
    """One layer in one direction.

    x [B, T, I], states [B, .] -> outputs [B, T, P] and last states.
    """

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, x: Tensor, h: Tensor, c: Tensor, d: _Direction, record: Record
    ) -> Any:
        rows, length = x.shape[:2]
        gates = F.linear(x, d.ih, d.bias_ih)
        before, outputs = (
            h.new_zeros(rows, length, h.shape[1]),
            h.new_zeros(rows, length, h.shape[1]),
        )
        h, c = h.clone(), c.clone()
        memory = d.cell.memory(gates, c)
        for t, n in d.steps:
            before[:n, t] = h[:n]
            hidden = d.cell.forward(memory, t, n, h[:n], c, d.hh, d.bias_hh)
            h[:n] = hidden if d.projection is None else hidden @ d.projection.t()
            outputs[:n, t] = h[:n]
        ctx.direction, ctx.record, ctx.memory = d, record, memory
        ctx.save_for_backward(x, before, outputs)
        return outputs, h, c

    @staticmethod
    def backward(ctx: Any, d_outputs: Tensor, d_h: Tensor, d_c: Tensor) -> Any:
        d, memory = ctx.direction, ctx.memory
        x, before, outputs = ctx.saved_tensors
        d_h, d_c = d_h.clone(), d_c.clone()
        into = d.cell.gradients(memory)
        projected = torch.zeros_like(outputs) if d.projection is not None else None
        for t, n in reversed(d.steps):
            d_h[:n] += d_outputs[:n, t]
            d_hidden = d_h[:n]
            if projected is not None:
                projected[:n, t] = d_hidden
                d_hidden = d_hidden @ d.projection
            d_h[:n] = d.cell.backward(memory, into, t, n, d_hidden, d_c, d.hh)
        _record(ctx.record, d, into, x, before, projected, memory)
        return None, into.input @ d.ih, d_h, d_c, None, None


def _record(
    record: Record,
    d: _Direction,
    into: cells.GateGradients,
    x: Tensor,
    before: Tensor,
    projected: Tensor | None,
    memory: Any,
) -> None:
    """Record all parameters' gradients, in the order of the original batch."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor if d.order is None else tensor[d.order]

    def products(parameter: nn.Parameter, left: Tensor, right: Tensor) -> None:
        use = OuterProducts(rows(left), rows(right))
        record(parameter, use if use.prefers_gram else use.materialized())

    products(d.ih, into.input, x)
    products(d.hh, into.hidden, before)
    for bias, left in ((d.bias_ih, into.input), (d.bias_hh, into.hidden)):
        if bias is not None:
            record(bias, Dense(rows(left).sum(1, dtype=accumulation_dtype(left.dtype))))
    if d.projection is not None and projected is not None:
        products(d.projection, projected, memory.unprojected())


def recurrent(layer: nn.RNNBase, recorder: Any) -> Callable[..., Any]:
    """Make the substitute forward of nn.RNN, nn.GRU and nn.LSTM.

    Args:
        layer: the module; its parameters are read at each call.
        recorder: where the gradients go (`substitutes.Recorder`).

    Returns:
        a function with the arguments and results of the layer's own forward.
    """

    def forward(inputs: Tensor | PackedSequence, states: Any = None) -> Any:
        packed = inputs if isinstance(inputs, PackedSequence) else None
        x, sizes = _padded(layer, inputs, recorder.rows)
        h, c = _states(layer, states, x, packed)
        order = packed.unsorted_indices if packed is not None else None
        last_h: list[Tensor] = []
        last_c: list[Tensor] = []
        for level in range(layer.num_layers):
            outs = []
            for reverse in range(2 if layer.bidirectional else 1):
                at = len(last_h)
                direction = _direction(layer, level, bool(reverse), sizes, order)
                out, one_h, one_c = _Scan.apply(
                    recorder.anchor, x, h[at], c[at], direction, recorder
                )
                outs.append(out)
                last_h.append(one_h)
                last_c.append(one_c)
            x = torch.cat(outs, 2) if len(outs) > 1 else outs[0]
            if layer.dropout and layer.training and level < layer.num_layers - 1:
                x = F.dropout(x, layer.dropout)
        return _results(layer, x, torch.stack(last_h), torch.stack(last_c), packed)

    return forward


def _padded(
    layer: nn.RNNBase, inputs: Tensor | PackedSequence, rows: int
) -> tuple[Tensor, list[int]]:
    """Return inputs [B, T, I], and how many samples are long enough for each step."""
    if isinstance(inputs, PackedSequence):
        sorted_only = PackedSequence(inputs.data, inputs.batch_sizes)
        x = pad_packed_sequence(sorted_only, batch_first=True)[0]
        sizes = inputs.batch_sizes.tolist()
    else:
        if inputs.dim() != 3:
            raise BatchDimensionError(
                f"{type(layer).__name__} was given a tensor of shape {tuple(inputs.shape)}: it "
                "needs a batch dimension"
            )
        x = inputs if layer.batch_first else inputs.transpose(0, 1)
        sizes = [len(x)] * x.shape[1]
    if len(x) != rows:
        raise BatchDimensionError(
            f"{type(layer).__name__} sees {len(x)} sequences in a batch of {rows} rows"
        )
    return x.to(next(layer.parameters()).dtype), sizes


def _states(
    layer: nn.RNNBase, states: Any, x: Tensor, packed: PackedSequence | None
) -> tuple[Tensor, Tensor]:
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    width = layer.proj_size or layer.hidden_size
    given = states if isinstance(states, tuple) else (states, None)
    found = []
    for state, size in zip(given, (width, layer.hidden_size), strict=True):
        if state is None:
            state = x.new_zeros(count, len(x), size)
        elif packed is not None and packed.sorted_indices is not None:
            state = state[:, packed.sorted_indices]
        found.append(state.to(x.dtype))
    return found[0], found[1]


def _direction(
    layer: nn.RNNBase, level: int, reverse: bool, sizes: list[int], order: Tensor | None
) -> _Direction:
    suffix = f"l{level}{'_reverse' if reverse else ''}"

    def named(name: str) -> nn.Parameter | None:
        return getattr(layer, f"{name}_{suffix}", None)

    ih, hh = named("weight_ih"), named("weight_hh")
    assert ih is not None
    assert hh is not None
    biases = (named("bias_ih"), named("bias_hh")) if layer.bias else (None, None)
    cell = cells.CELLS[layer.mode]()
    return _Direction(ih, hh, *biases, named("weight_hr"), cell, sizes, reverse, order)


def _results(
    layer: nn.RNNBase, x: Tensor, h: Tensor, c: Tensor, packed: PackedSequence | None
) -> Any:
    if packed is None:
        out: Any = x if layer.batch_first else x.transpose(0, 1)
    else:
        lengths = (packed.batch_sizes.unsqueeze(1) > torch.arange(len(x))).sum(0)
        data = pack_padded_sequence(x, lengths, batch_first=True).data
        out = PackedSequence(
            data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices
        )
        if packed.unsorted_indices is not None:
            h, c = h[:, packed.unsorted_indices], c[:, packed.unsorted_indices]
    return out, ((h, c) if layer.mode == "LSTM" else h)
