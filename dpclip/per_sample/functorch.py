"""Per-sample gradients of any layer by torch.func, for layers without a registered sampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils import _pytree as pytree


def per_sample_gradients(
    layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """Recompute the layer a row at a time under vmap.

    Opacus' own fallback takes one positional tensor and no buffers; this one takes what the layer was called with.

    Args:
        layer: any module with one tensor as output.
        args: positional inputs of the call; tensors whose first dimension is B are mapped over.
        kwargs: keyword inputs, likewise.
        backprops: gradient of the summed loss by the layer's output, shape [B, ...].

    Returns:
        {parameter: per-sample gradient [B, *shape]} for every trainable parameter below the layer.
    """
    parameters = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    rows = len(backprops)
    dims = [0 if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == rows else None for leaf in leaves]
    mapped = [leaf for leaf, dim in zip(leaves, dims, strict=True) if dim == 0]

    def loss(values: dict[str, Tensor], rows_in: list[Tensor], backprop: Tensor) -> Tensor:
        source = iter(rows_in)
        inputs = [next(source).unsqueeze(0) if dim == 0 else leaf for leaf, dim in zip(leaves, dims, strict=True)]
        one_args, one_kwargs = pytree.tree_unflatten(inputs, spec)
        output = functional_call(layer, values, one_args, one_kwargs)
        return (output * backprop.unsqueeze(0)).sum()

    values = {name: p.detach() for name, p in parameters.items()}
    with torch.autocast(backprops.device.type, enabled=False):
        cast = [t.to(backprops.dtype) if t.is_floating_point() and t.dtype != backprops.dtype else t for t in mapped]
        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(values, cast, backprops)
    return {parameters[name]: gradient for name, gradient in gradients.items()}
