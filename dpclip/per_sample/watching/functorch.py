"""Per-sample gradients of any module by torch.func, where no arithmetic of its own is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from dpclip.precision import accumulation_dtype


def per_sample_gradients(
    layer: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    backprops: Tensor | Sequence[Tensor],
    wanted: Sequence[nn.Parameter],
    by_row: Callable[[int, Tensor], bool] | None = None,
) -> dict[nn.Parameter, Tensor]:
    """Recompute the module a row at a time under vmap.

    Opacus' own fallback takes one positional tensor, one output and no buffers; this one takes any.

    Args:
        layer: any module.
        args: positional inputs of the call; tensors with one row a sample are mapped over, the
            others are shared.
        kwargs: keyword inputs, likewise.
        backprops: gradients of the summed loss by the module's floating-point outputs, each [B,
            ...]; one tensor stands for the first output alone.
        wanted: parameters of the module or of modules below it.
        by_row: whether an input has one row a sample, by its place and the tensor; by default,
            whether its first dimension is B, which an [L, L] mask may be by chance.

    Returns:
        {parameter: per-sample gradient [B, *shape]} for each parameter that is wanted.
    """
    names = {p: name for name, p in layer.named_parameters()}
    parameters = {names[p]: p for p in wanted if p in names}
    given = [backprops] if isinstance(backprops, Tensor) else list(backprops)
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    rows = len(given[0])
    # under autocast too
    dtype = accumulation_dtype(
        torch.promote_types(given[0].dtype, next(iter(parameters.values())).dtype)
    )
    mapped_over = by_row or (lambda _, leaf: leaf.dim() > 0 and len(leaf) == rows)
    dims = [
        0 if isinstance(leaf, Tensor) and mapped_over(i, leaf) else None
        for i, leaf in enumerate(leaves)
    ]
    mapped = [leaf for leaf, dim in zip(leaves, dims, strict=True) if dim == 0]

    def loss(values: dict[str, Tensor], rows_in: list[Tensor], grads: list[Tensor]) -> Tensor:
        source = iter(rows_in)
        inputs = [
            next(source).unsqueeze(0) if dim == 0 else leaf
            for leaf, dim in zip(leaves, dims, strict=True)
        ]
        one_args, one_kwargs = pytree.tree_unflatten(inputs, spec)
        output = functional_call(layer, {**fixed, **values}, one_args, one_kwargs)
        outs = [
            t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()
        ]
        return torch.stack(
            [(out * g.unsqueeze(0)).sum() for out, g in zip(outs, grads, strict=False)]
        ).sum()

    values = {name: p.detach().to(dtype) for name, p in parameters.items()}
    held = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    fixed = {
        name: t.detach().to(dtype)
        for name, t in held.items()
        if name not in values and t.is_floating_point()
    }
    # vmap knows attention as the products it is made of, not as one kernel.
    with torch.autocast(given[0].device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        cast = [t.to(dtype) if t.is_floating_point() else t for t in mapped]
        exact = [g.to(dtype) for g in given]
        gradients = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")(
            values, cast, exact
        )
    return {parameters[name]: gradient for name, gradient in gradients.items()}
