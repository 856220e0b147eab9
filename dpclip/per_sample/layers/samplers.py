"""Grad samplers for layers that Opacus does not register, or registers with a gap."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

GradSampler = Callable[[nn.Module, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]


def conv1d(
    layer: Conv1D, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Write out GPT-2's projection y = x W + b; Opacus falls back to functorch here.

    Args:
        layer: with W of shape [in, out].
        activations: the input, [B, ..., in].
        backprops: gradients by the output, [B, ..., out].

    Returns:
        {parameter: gradients [B, *shape]} for what is trained.
    """
    inputs = activations[0].to(backprops.dtype)
    found: dict[nn.Parameter, Tensor] = {}
    if layer.weight.requires_grad:
        found[layer.weight] = torch.einsum("n...i,n...o->nio", inputs, backprops)
    if layer.bias.requires_grad:
        found[layer.bias] = torch.einsum("n...o->no", backprops)
    return found


def embedding(
    layer: nn.Embedding, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Scatter the output gradients to their rows.

    The padding row gets none, as in autograd (Opacus gives it some).

    Args:
        layer: a table [V, d].
        activations: the ids, [B, ...].
        backprops: gradients by the output, [B, ..., d].

    Returns:
        {weight: gradients [B, V, d]}.
    """
    ids = activations[0]
    rows, dim = len(ids), layer.embedding_dim
    gradients = backprops.reshape(rows, -1, dim)
    flat = ids.reshape(rows, -1)
    if layer.padding_idx is not None:
        gradients = gradients.masked_fill((flat == layer.padding_idx).unsqueeze(-1), 0.0)
    found = gradients.new_zeros(rows, layer.num_embeddings, dim)
    found.scatter_add_(1, flat.unsqueeze(-1).expand(-1, -1, dim), gradients)
    return {cast(nn.Parameter, layer.weight): found}


_OWN: dict[type[nn.Module], Callable[..., dict[nn.Parameter, Tensor]]] = {
    Conv1D: conv1d,
    nn.Embedding: embedding,
}


def sampler_for(layer: nn.Module) -> GradSampler | None:
    """Find the sampler registered for exactly this type, ours before Opacus'.

    Args:
        layer: the module.

    Returns:
        the sampler; None leaves the layer to functorch.

    Raises:
        ValueError: an Embedding that couples the rows of a batch.
    """
    kind = type(layer)
    if kind is nn.LayerNorm and (layer.bias is None or layer.weight is None):
        return None  # Opacus' sampler reads `layer.bias.requires_grad`
    if kind is nn.EmbeddingBag:
        return None  # Opacus' sampler knows offsets only, and one mode
    if isinstance(layer, _ConvNd) and layer.padding_mode != "zeros":
        return None  # Opacus' sampler pads with zeros whatever the mode
    if kind is nn.Embedding and (layer.max_norm is not None or layer.scale_grad_by_freq):
        raise ValueError(
            "an Embedding with max_norm or scale_grad_by_freq couples the rows of a batch: switch "
            "them off"
        )
    return _OWN.get(kind) or GradSampleHooks.GRAD_SAMPLERS.get(kind)
