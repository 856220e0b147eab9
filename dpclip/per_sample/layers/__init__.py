"""Layers whose per-sample gradients have a factored form: one function a layer type, one line here.

A factoring has the signature of an Opacus grad sampler, (layer, activations, backprops), and
returns {parameter: Factored}. Layers without one go through their registered grad sampler, then
through torch.func.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from transformers.pytorch_utils import Conv1D

from dpclip.per_sample.forms.factored import Factored
from dpclip.per_sample.layers import convolution, linear, normalization

Factoring = Callable[..., dict[nn.Parameter, Factored]]

_FACTORINGS: dict[type[nn.Module], Factoring] = {
    nn.Linear: linear.linear,
    Conv1D: linear.conv1d,
    nn.Embedding: linear.embedding,
    nn.LayerNorm: normalization.layer_norm,
    nn.RMSNorm: normalization.rms_norm,
    nn.GroupNorm: normalization.group_norm,
    nn.InstanceNorm1d: normalization.instance_norm,
    nn.InstanceNorm2d: normalization.instance_norm,
    nn.InstanceNorm3d: normalization.instance_norm,
    nn.Conv1d: convolution.convolution,
    nn.Conv2d: convolution.convolution,
    nn.Conv3d: convolution.convolution,
}


def register_factoring(layer: type[nn.Module], factoring: Factoring) -> None:
    """Teach the book-keeping backend a layer type.

    Args:
        layer: matched exactly, not its subclasses.
        factoring: (layer, activations: list[Tensor], backprops [B, ...]) -> {parameter: Factored}.
    """
    _FACTORINGS[layer] = factoring


def factoring_for(kind: type[nn.Module], layer: nn.Module) -> Factoring | None:
    """Find the factoring of exactly this type, or of the RMS norms that models bring along.

    Args:
        kind: the layer type whose arithmetic is meant.
        layer: the module.

    Returns:
        the factoring, or None if there is none.
    """
    known = _FACTORINGS.get(kind)
    if known is None and normalization.scales_its_output(layer):
        return normalization.scaled
    if known is None and kind is nn.EmbeddingBag and linear.sums_bags(layer):
        return linear.embedding_bag
    return known


__all__ = ["Factored", "Factoring", "factoring_for", "register_factoring"]
