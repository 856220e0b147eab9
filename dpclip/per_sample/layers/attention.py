"""nn.MultiheadAttention, computed here so that its packed projections can be seen.

The layer never calls them as modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dpclip.errors import BatchDimensionError
from dpclip.per_sample.forms.factored import Dense, Factored
from dpclip.per_sample.forms.outer_products import OuterProducts
from dpclip.precision import accumulation_dtype

Record = Callable[[nn.Parameter, Factored], None]
Weights = Sequence[tuple[Tensor, Tensor | None]]
# inputs [B, T, I] and gradients [B, T, O] of linears
Arrived = Callable[[Sequence[Tensor], Sequence[Tensor]], None]


class _Linears(torch.autograd.Function):
    """x_j W_j^T + b_j for each input; hands `arrived` what the weights' gradients are made of."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, weights: Weights, arrived: Arrived, *inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.weights, ctx.arrived = weights, arrived
        ctx.save_for_backward(*inputs)
        return tuple(F.linear(x, w, b) for x, (w, b) in zip(inputs, weights, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs = ctx.saved_tensors
        ctx.arrived([x.to(d.dtype) for x, d in zip(inputs, grads, strict=True)], grads)
        needed = ctx.needs_input_grad[3:]
        back = [
            (d @ w.to(d.dtype)).to(x.dtype) if wanted else None
            for d, (w, _), x, wanted in zip(grads, ctx.weights, inputs, needed, strict=True)
        ]
        return (None, None, None, *back)


class _Repeated(torch.autograd.Function):
    """A parameter [1, 1, E] for each row, [B, 1, E]."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, parameter: nn.Parameter, rows: int, record: Record
    ) -> Tensor:
        ctx.parameter, ctx.record = parameter, record
        return parameter.detach().expand(rows, 1, -1).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.record(ctx.parameter, Dense(grad.reshape(len(grad), *ctx.parameter.shape)))
        return None, None, None, None


def attention(layer: nn.MultiheadAttention, recorder: Any) -> Callable[..., Any]:
    """Make the substitute forward of nn.MultiheadAttention.

    Args:
        layer: the module; its parameters are read at each call.
        recorder: where the gradients go (`substitutes.Recorder`).

    Returns:
        a function with the arguments and results of the layer's own forward.
    """

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "nn.MultiheadAttention needs attn_mask where is_causal is set, which is a hint only"
            )
        inputs = [_rows_first(layer, x, recorder.rows) for x in _distinct(query, key, value)]
        q, k, v = _projections(layer, recorder, inputs)
        k, v, extra = _extended(layer, recorder, k, v)
        mask = _mask(attn_mask, key_padding_mask, len(q), layer.num_heads, extra, q.dtype)
        heads = [x.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for x in (q, k, v)]
        dropout = layer.dropout if layer.training else 0.0
        mixed, weights = _mix(heads[0], heads[1], heads[2], mask, dropout, need_weights)
        joined = mixed.transpose(1, 2).flatten(2)
        out = _output(layer, recorder, joined)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        return (out if layer.batch_first else out.transpose(0, 1)), weights

    return forward


def _distinct(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """Return one tensor for self-attention, two where key and value are one, else three."""
    if query is key and key is value:
        return [query]
    return [query, key] if key is value else [query, key, value]


def _rows_first(layer: nn.MultiheadAttention, x: Tensor, rows: int) -> Tensor:
    if x.dim() != 3:
        raise BatchDimensionError(
            f"MultiheadAttention was given a tensor of shape {tuple(x.shape)}: it needs a batch "
            "dimension"
        )
    x = x if layer.batch_first else x.transpose(0, 1)
    if len(x) != rows:
        raise BatchDimensionError(
            f"MultiheadAttention sees {len(x)} sequences in a batch of {rows} rows"
        )
    return x


def _projections(
    layer: nn.MultiheadAttention, recorder: Any, inputs: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k and v, [B, T, E] each."""
    width = layer.embed_dim
    if layer.in_proj_weight is None:  # key and value have widths of their own
        sources = [inputs[0], inputs[min(1, len(inputs) - 1)], inputs[-1]]
        parameters = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
        biases = (
            [None] * 3
            if layer.in_proj_bias is None
            else list(layer.in_proj_bias.detach().split(width))
        )
        weights = [(w.detach(), b) for w, b in zip(parameters, biases, strict=True)]

        def separate(xs: Sequence[Tensor], ds: Sequence[Tensor]) -> None:
            for parameter, x, d in zip(parameters, xs, ds, strict=True):
                recorder(parameter, _products(d, x))
            _record_bias(layer.in_proj_bias, ds, recorder)

        q, k, v = _Linears.apply(recorder.anchor, weights, separate, *sources)
        return q, k, v
    sizes = {1: [3 * width], 2: [width, 2 * width], 3: [width] * 3}[len(inputs)]
    slices = layer.in_proj_weight.detach().split(sizes)
    biases = (
        [None] * len(sizes)
        if layer.in_proj_bias is None
        else list(layer.in_proj_bias.detach().split(sizes))
    )

    def packed(xs: Sequence[Tensor], ds: Sequence[Tensor]) -> None:
        # Blocks of one weight: each input meets its own block of columns, and zeros in the others.
        starts = [sum(sizes[:j]) for j in range(len(sizes))]
        left = [
            F.pad(d, (at, 3 * width - at - d.shape[2])) for at, d in zip(starts, ds, strict=True)
        ]
        recorder(layer.in_proj_weight, _products(torch.cat(left, 1), torch.cat(list(xs), 1)))
        _record_bias(layer.in_proj_bias, ds, recorder)

    outs = _Linears.apply(recorder.anchor, list(zip(slices, biases, strict=True)), packed, *inputs)
    q, k, v = torch.cat(outs, 2).split(width, 2) if len(outs) == 1 else _three(outs, width)
    return q, k, v


def _three(outs: Sequence[Tensor], width: int) -> list[Tensor]:
    return [part for out in outs for part in out.split(width, 2)]


def _products(left: Tensor, right: Tensor) -> Factored:
    use = OuterProducts(left, right)
    return use if use.prefers_gram else use.materialized()


def _record_bias(bias: nn.Parameter | None, ds: Sequence[Tensor], recorder: Any) -> None:
    if bias is not None:
        recorder(
            bias, Dense(torch.cat([d.sum(1, dtype=accumulation_dtype(d.dtype)) for d in ds], 1))
        )


def _extended(
    layer: nn.MultiheadAttention, recorder: Any, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Return keys and values with what the layer adds to them, and how many entries those are.

    The learned pair and the zeros.
    """
    extra = 0
    if layer.bias_k is not None and layer.bias_v is not None:
        shared = [
            _Repeated.apply(recorder.anchor, p, len(k), recorder)
            for p in (layer.bias_k, layer.bias_v)
        ]
        k, v, extra = (
            torch.cat([k, shared[0].to(k.dtype)], 1),
            torch.cat([v, shared[1].to(v.dtype)], 1),
            extra + 1,
        )
    if layer.add_zero_attn:
        k, v, extra = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), extra + 1
    return k, v, extra


def _mask(
    attention: Tensor | None,
    padding: Tensor | None,
    rows: int,
    heads: int,
    extra: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """Return what is added to the scores, broadcast to [B, H, Tq, Tk]; None for nothing."""
    parts = []
    if attention is not None:
        shaped = (
            attention.unflatten(0, (rows, heads)) if attention.dim() == 3 else attention[None, None]
        )
        parts.append(_additive(shaped, dtype))
    if padding is not None:
        parts.append(_additive(padding[:, None, None], dtype))
    if not parts:
        return None
    return F.pad(sum(parts[1:], start=parts[0]), (0, extra))


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, -math.inf)


def _mix(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention over heads, [B, H, T, E / H]."""
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout), None
    scores = q @ k.mT / math.sqrt(q.shape[3])
    weights = F.dropout(F.softmax(scores if mask is None else scores + mask, 3), dropout)
    return weights @ v, weights


def _output(layer: nn.MultiheadAttention, recorder: Any, joined: Tensor) -> Tensor:
    projection = layer.out_proj
    bias = projection.bias

    def arrived(xs: Sequence[Tensor], ds: Sequence[Tensor]) -> None:
        recorder(projection.weight, _products(ds[0], xs[0]))
        _record_bias(bias, ds, recorder)

    weights = [(projection.weight.detach(), None if bias is None else bias.detach())]
    (out,) = _Linears.apply(recorder.anchor, weights, arrived, joined)
    return out
