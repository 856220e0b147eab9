"""Repeats a call by torch.func, where a layer's arithmetic is not known or there is no batch.

A module is repeated, a row at a time under vmap, for the parameters that are its own (a class
token, a learned scale) and for those of layers below it that were called without one row a sample
(a table of relative positions): the nearest module around them that does have rows stands for them.
Its outputs are passed on as they are; the random numbers of the forward pass are drawn again, so
dropout is the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import Cache

from dpclip.errors import BatchDimensionError
from dpclip.per_sample.forms.factored import Dense
from dpclip.per_sample.watching import functorch
from dpclip.per_sample.watching.calls import uncompiled
from dpclip.per_sample.watching.recording import Recording
from dpclip.precision import exact_products


class Recomputation:
    """Hooks on the modules that may have to be repeated.

    Args:
        recording: the pass that is being watched.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._random: list[Tensor] = []

    def attach(self, module: nn.Module, own: list[nn.Parameter]) -> list[RemovableHandle]:
        """Hook a module for its own parameters, and for what layers below it leave to it.

        Args:
            module: to be repeated.
            own: its trainable parameters.

        Returns:
            what removes the hooks again.
        """

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._recording.active:
                return None
            self._random.append(torch.get_rng_state())
            return self._recording.expand(module, args, kwargs) if own else None

        def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if not self._recording.active:
                return None
            state = self._random.pop()
            below = [
                m
                for m in self._recording.postponed
                if m is not module and any(m is child for child in module.modules())
            ]
            wanted = own + [p for m in below for p in self._recording.postponed[m]]
            if not wanted:
                return None
            first = _first(args, kwargs)
            judged = [*_floats(output), *first] if first else []
            if not self._recording.per_row(
                module,
                [t for t in judged if self._recording.rows == 1 or t.dim() == 0 or len(t) != 1],
            ):
                self._recording.postpone(module, own)
                return None
            for m in below:
                del self._recording.postponed[m]
            return self._join(module, wanted, own, args, kwargs, output, state)

        return [
            module.register_forward_pre_hook(uncompiled(enter), with_kwargs=True),
            module.register_forward_hook(uncompiled(leave), with_kwargs=True),
        ]

    def check_taken(self) -> None:
        """Check, at the end of a pass, that nothing is left that no module has taken up.

        Raises:
            BatchDimensionError: names the layer.
        """
        for module in self._recording.postponed:
            raise BatchDimensionError(
                f"{self._recording.name(module)} sees no tensor with one row a sample in a batch "
                f"of {self._recording.rows} rows, and neither does a module around it: freeze it, "
                "or give it inputs with a batch dimension (position ids of shape [batch, length], "
                "say)"
            )

    def clear(self) -> None:
        """Forget a pass."""
        self._random.clear()

    def _join(
        self,
        module: nn.Module,
        wanted: list[nn.Parameter],
        own: list[nn.Parameter],
        args: Any,
        kwargs: Any,
        output: Any,
        state: Tensor,
    ) -> Any:
        """Pass the outputs on through a node that sees all their gradients at once."""
        recording, rows = self._recording, self._recording.rows
        args, kwargs = _without_caches(args, kwargs)
        leaves, spec = pytree.tree_flatten(output)
        places = [
            i
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
        ]
        if not places:
            raise BatchDimensionError(
                f"{recording.name(module)} returns {type(output).__name__} without a tensor, and "
                "owns parameters of its own: freeze them or move them into a layer that returns a "
                "tensor"
            )
        outs = [
            leaves[i].expand(rows, *leaves[i].shape[1:]) if len(leaves[i]) == 1 else leaves[i]
            for i in places
        ]

        recording.announce(wanted)
        for out in outs:
            recording.note_dtype(out)

        def has_rows(place: int, leaf: Tensor) -> bool:
            return recording.input_per_row(module, place, leaf)

        def arrived(grads: tuple[Tensor, ...], kept: tuple[Tensor, ...]) -> None:
            left = [p for p in wanted if p not in own] if module in recording.lifted else wanted
            if not recording.listening or not left:
                return
            again = map(recording.rows_first, kept)
            inputs, named = pytree.tree_map_only(Tensor, lambda _: next(again), (args, kwargs))
            by_row = [recording.rows_first(grad) for grad in grads]
            with torch.random.fork_rng(devices=[]), recording.unwatched(), exact_products():
                torch.set_rng_state(state)
                try:
                    found = functorch.per_sample_gradients(
                        module, inputs, named, by_row, left, has_rows
                    )
                except RuntimeError as error:
                    reason = str(error).splitlines()[0][:200]
                    raise BatchDimensionError(
                        f"{recording.name(module)} cannot be repeated by torch.func ({reason}): "
                        "freeze its parameters, or register a grad sampler for it"
                    ) from error
            for parameter, samples in found.items():
                recording.take_in(module, parameter, Dense(samples))

        tensors = [t.detach() for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        joined = _Join.apply(recording.anchor, arrived, len(outs), *outs, *tensors)
        for place, out in zip(places, joined, strict=True):
            leaves[place] = out
        return pytree.tree_unflatten(leaves, spec)


class _Join(torch.autograd.Function):
    """The identity on several outputs; keeps the inputs of the call that made them."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, arrived: Any, count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.arrived, ctx.total = arrived, len(tensors)
        ctx.save_for_backward(*tensors[count:])
        return tuple(out.clone() for out in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.arrived(grads, ctx.saved_tensors)
        return (None, None, None, *grads, *(None,) * (ctx.total - len(grads)))


def _without_caches(args: Any, kwargs: Any) -> Any:
    """Key-value caches already hold this call's keys; a whole text needs none."""
    return pytree.tree_map(
        lambda leaf: None if isinstance(leaf, Cache) else leaf,
        (args, kwargs),
        is_leaf=lambda x: isinstance(x, Cache),
    )


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)][:1]


def _floats(output: Any) -> list[Tensor]:
    return [
        leaf
        for leaf in pytree.tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
