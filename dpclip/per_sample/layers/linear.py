"""Linear layers and embeddings."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dpclip.per_sample.forms.factored import Dense, Factored
from dpclip.per_sample.forms.lookups import Lookups
from dpclip.per_sample.forms.outer_products import OuterProducts
from dpclip.precision import accumulation_dtype


def linear(
    layer: nn.Linear, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Factored]:
    """y = x W^T + b: the weight's gradient is the sum over positions of backprop (x) input.

    Args:
        layer: with W [out, in].
        activations: the input, [B, ..., in].
        backprops: gradients by the output, [B, ..., out].
    """
    grads = _positions(backprops)
    found: dict[nn.Parameter, Factored] = {
        cast(nn.Parameter, layer.weight): OuterProducts(grads, _positions(activations[0]))
    }
    if layer.bias is not None:
        found[layer.bias] = _bias(grads)
    return found


def conv1d(
    layer: Conv1D, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Factored]:
    """GPT-2's projection y = x W + b: the weight's gradient sums input (x) backprop.

    Args:
        layer: with W [in, out].
        activations: the input, [B, ..., in].
        backprops: gradients by the output, [B, ..., out].
    """
    grads = _positions(backprops)
    return {
        layer.weight: OuterProducts(_positions(activations[0]), grads),
        layer.bias: _bias(grads),
    }


def embedding(
    layer: nn.Embedding, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Factored]:
    """Rows of the table; the padding row gets no gradient, as in autograd.

    Args:
        layer: a table [V, d].
        activations: the ids, [B, ...].
        backprops: gradients by the output, [B, ..., d].
    """
    values = _positions(backprops)
    ids = activations[0].reshape(len(backprops), -1)
    if layer.padding_idx is not None:
        values = values.masked_fill((ids == layer.padding_idx).unsqueeze(-1), 0.0)
    return {cast(nn.Parameter, layer.weight): Lookups(ids, values, layer.num_embeddings)}


def embedding_bag(
    layer: nn.EmbeddingBag, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Factored]:
    """Sums or means of rows of the table.

    Args:
        layer: a table [V, d], `mode` "sum" or "mean".
        activations: ids [B, T] and their weights [B, T], if any; or flat ids with the offset of
            each bag.
        backprops: gradients by the output, [B, d].
    """
    ids, rest = activations[0], activations[1:]
    held = torch.ones_like(ids, dtype=backprops.dtype)
    if ids.dim() == 1:
        ids, held = _bags(ids, rest[0][: len(backprops)])
        held = held.to(backprops)
    elif rest:
        held = rest[0].to(backprops)  # per-sample weights
    if layer.padding_idx is not None:
        held = held.masked_fill(ids == layer.padding_idx, 0.0)
    if layer.mode == "mean":
        held = held / held.sum(1, keepdim=True).clamp(min=1)
    values = backprops.unsqueeze(1) * held.unsqueeze(-1)
    return {cast(nn.Parameter, layer.weight): Lookups(ids, values, layer.num_embeddings)}


def _bags(ids: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Return flat ids as [B, longest], and a mask of what is not padding."""
    ends = torch.cat([offsets[1:], offsets.new_tensor([len(ids)])])
    column = torch.arange(int((ends - offsets).max()), device=ids.device)
    place = offsets.unsqueeze(1) + column
    return ids[place.clamp(max=len(ids) - 1)], place < ends.unsqueeze(1)


def sums_bags(layer: nn.Module) -> bool:
    """Whether this is an EmbeddingBag that `embedding_bag` knows.

    Args:
        layer: any module; bags of maxima are left to torch.func.
    """
    return isinstance(layer, nn.EmbeddingBag) and layer.mode in ("sum", "mean")


def _positions(tensor: Tensor) -> Tensor:
    """View [B, ..., d] as [B, T, d]."""
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def _bias(grads: Tensor) -> Dense:
    return Dense(
        grads[:, 0] if grads.shape[1] == 1 else grads.sum(1, dtype=accumulation_dtype(grads.dtype))
    )
