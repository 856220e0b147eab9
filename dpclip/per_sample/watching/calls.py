"""One call of a watched layer: its inputs, and how they are kept until its gradient arrives."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Call:
    """One call of a watched layer in one forward pass.

    Attributes:
        layer: the module.
        kind: the layer type whose arithmetic it was: the module's own, or the one that it refines
            (`operations.py`).
        args: what it was called with; tensors have one row a sample.
        kwargs: what it was called with; tensors have one row a sample.
    """

    layer: nn.Module
    kind: type[nn.Module]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors in the order of the layer's signature, which is what samplers expect."""
        bound = inspect.signature(self.kind.forward).bind(self.layer, *self.args, **self.kwargs)
        return [value for value in bound.arguments.values() if isinstance(value, Tensor)]


def uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Leave a hook out of what torch.compile traces.

    Compiled code breaks at watched layers, and stays right.

    Args:
        hook: takes positional arguments.
    """

    def plain(*args: Any) -> Any:  # torch marks functions, not bound methods
        return hook(*args)

    wrapped: Callable[..., Any] = torch._disable_dynamo(plain)
    return wrapped


def keep(
    anchor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Callable[[Tensor], Tensor]], Any]:
    """Keep a call's inputs as autograd keeps its own.

    Args:
        anchor: a zero that requires a gradient.
        args: what the layer was called with.
        kwargs: what the layer was called with.

    Returns:
        a function that gives (args, kwargs) back, each tensor after the given change.
    """
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    token = _Keep.apply(anchor, *(tensor.detach() for tensor in tensors))
    places = [isinstance(leaf, Tensor) for leaf in leaves]
    constants = [None if place else leaf for place, leaf in zip(places, leaves, strict=True)]

    def back(change: Callable[[Tensor], Tensor]) -> Any:
        # before torch 2.13, a node forgets them when its output is gone
        saved = iter(token.grad_fn.saved_tensors)
        again = [
            change(next(saved)) if place else c for place, c in zip(places, constants, strict=True)
        ]
        return pytree.tree_unflatten(again, spec)

    return back


class _Keep(torch.autograd.Function):
    """Keeps tensors as autograd does.

    They are version-checked, offloaded or recomputed where checkpointing says so.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # the token leads nowhere
        return (None,) * (1 + len(ctx.saved_tensors))


def batch_inputs(module: nn.Module, tensors: list[Tensor]) -> list[Tensor]:
    """Pick the input whose first dimension is the batch.

    Args:
        module: the layer.
        tensors: its inputs, in order.

    Returns:
        the first; for bags of flat ids their offsets; none without tensors.
    """
    bags = isinstance(module, nn.EmbeddingBag) and len(tensors) > 1 and tensors[0].dim() == 1
    return tensors[1:2] if bags else tensors[:1]


def tensors_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """List the tensors among a call's arguments, nested or not.

    Args:
        args: what a module was called with.
        kwargs: what a module was called with.
    """
    return [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
