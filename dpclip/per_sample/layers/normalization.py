"""Layers that normalize a sample by itself and then scale it, elementwise."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from dpclip.per_sample.forms.factored import Dense, Factored
from dpclip.precision import accumulation_dtype

Found = dict[nn.Parameter, Factored]


def layer_norm(layer: nn.LayerNorm, activations: list[Tensor], backprops: Tensor) -> Found:
    """y = n(x) w + b over the trailing dimensions.

    Args:
        layer: w and b of shape `normalized_shape`, or None.
        activations: the input, [B, ..., *normalized_shape].
        backprops: gradients by the output, of the same shape.
    """
    inputs = activations[0].to(backprops.dtype)
    normed = F.layer_norm(inputs, list(layer.normalized_shape), eps=layer.eps)
    return _trailing(layer.weight, layer.bias, normed, backprops)


def rms_norm(layer: nn.RMSNorm, activations: list[Tensor], backprops: Tensor) -> Found:
    """y = x / rms(x) w over the trailing dimensions.

    Args:
        layer: w of shape `normalized_shape`, or None.
        activations: the input, [B, ..., *normalized_shape].
        backprops: gradients by the output, of the same shape.
    """
    inputs = activations[0].to(backprops.dtype)
    normed = F.rms_norm(inputs, list(layer.normalized_shape), eps=layer.eps)
    return _trailing(layer.weight, None, normed, backprops)


def group_norm(layer: nn.GroupNorm, activations: list[Tensor], backprops: Tensor) -> Found:
    """y = n(x) w + b with w and b one value a channel.

    Args:
        layer: w and b of shape [C], or None.
        activations: the input, [B, C, ...].
        backprops: gradients by the output, of the same shape.
    """
    inputs = activations[0].to(backprops.dtype)
    return _channels(layer, F.group_norm(inputs, layer.num_groups, eps=layer.eps), backprops)


def instance_norm(
    layer: nn.modules.instancenorm._InstanceNorm, activations: list[Tensor], backprops: Tensor
) -> Found:
    """y = n(x) w + b with statistics of each channel of each sample.

    Args:
        layer: w and b of shape [C], or None.
        activations: the input, [B, C, ...].
        backprops: gradients by the output, of the same shape.
    """
    return _channels(
        layer, F.instance_norm(activations[0].to(backprops.dtype), eps=layer.eps), backprops
    )


def scales_its_output(layer: nn.Module) -> bool:
    """Whether this is one of the many RMS norms of transformers.

    They have one vector, y = n(x) w or n(x) (1 + w).

    Args:
        layer: judged by its type's name and its parameters.
    """
    named = dict(layer.named_parameters())
    name = type(layer).__name__
    return (
        (name.endswith("RMSNorm") or name == "T5LayerNorm")
        and set(named) == {"weight"}
        and named["weight"].dim() == 1
    )


def scaled(layer: nn.Module, activations: list[Tensor], backprops: Tensor) -> Found:
    """y = n(x) (a + w), whatever n is.

    What w multiplies is the output at w = 1 less the output at w = 0.

    Args:
        layer: with one parameter, `weight`, [d].
        activations: the input, [B, ..., d].
        backprops: gradients by the output, of the same shape.
    """
    weight = cast(nn.Parameter, layer.weight)
    with torch.no_grad():
        at_one = functional_call(layer, {"weight": torch.ones_like(weight)}, (activations[0],))
        at_zero = functional_call(layer, {"weight": torch.zeros_like(weight)}, (activations[0],))
    return _trailing(weight, None, (at_one - at_zero).to(backprops.dtype), backprops)


def _trailing(
    weight: Tensor | None, bias: Tensor | None, normed: Tensor, backprops: Tensor
) -> Found:
    found: Found = {}
    for parameter, product in ((weight, lambda: normed * backprops), (bias, lambda: backprops)):
        if parameter is not None:
            samples = _summed_to(product(), parameter.shape)
            found[cast(nn.Parameter, parameter)] = Dense(samples)
    return found


def _summed_to(product: Tensor, shape: torch.Size) -> Tensor:
    """[B, ..., *shape] -> [B, *shape]."""
    return product.reshape(len(product), -1, *shape).sum(1, dtype=accumulation_dtype(product.dtype))


def _channels(layer: nn.Module, normed: Tensor, backprops: Tensor) -> Found:
    found: Found = {}
    for name, factor in (("weight", normed), ("bias", None)):
        parameter = getattr(layer, name)
        if parameter is not None:
            product = backprops if factor is None else backprops * factor
            found[parameter] = Dense(
                product.flatten(2).sum(2, dtype=accumulation_dtype(product.dtype))
            )
    return found
