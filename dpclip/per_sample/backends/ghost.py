"""Ghost clipping (Li et al. 2022, arXiv 2110.05679): norms first, then the clipped sum.

There are two backward passes. The model's output is cut from the loss: the loss's gradient by it is
kept, sent through the model once while layers are watched, and a second time with each row scaled
by its factor. It costs a backward pass more than book-keeping and keeps no layer's factors; it is
there as an independent way to the same sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpclip.errors import BatchDimensionError, InputError
from dpclip.gradient_sum import GradientSum
from dpclip.per_sample.backends.bookkeeping import BookkeepingBackend
from dpclip.per_sample.view import BACKENDS, FactoredView, Sums
from dpclip.precision import accumulation_dtype

# each group of a weighted sum is a backward pass; with more groups the factors are kept
_MOST_PASSES = 4


@BACKENDS.named("ghost")
class GhostBackend(BookkeepingBackend):
    """Two backward passes through the model."""

    freezes = clips_parts = False

    def prepare(self, model: nn.Module) -> None:
        """Refuse parameters that are too narrow for a sum.

        Args:
            model: about to be hooked.

        Raises:
            InputError: a parameter is narrower than float32.
        """
        super().prepare(model)
        narrow = {str(p.dtype) for p in self.parameters if p.dtype != accumulation_dtype(p.dtype)}
        if narrow:
            raise InputError(
                "gradient mode ghost sums in the parameters' dtype, and "
                f"{', '.join(sorted(narrow))} is too narrow for a sum: choose bookkeeping, or keep "
                "the parameters in float32"
            )
        self._cuts: list[tuple[Tensor, Tensor]] = []

    def add_hooks(self, **kwargs: Any) -> None:
        super().add_hooks(**kwargs)
        self.autograd_grad_sample_hooks.append(self._module.register_forward_hook(self._cut))

    def new_view(
        self, units: int, rows_each: int, scale: float, present: Tensor | None
    ) -> FactoredView:
        self._cuts = []
        hidden = {
            self.slots[p]
            for m in self.substitutions.modules
            for p in m.parameters()
            if p in self.slots
        }
        view = GhostView(self.groups, units, rows_each, scale, self.evidence, present)
        view.attach(
            self.parameters,
            hidden,
            self.recording.muted,
            keep=self.materialized or len(set(self.groups)) > _MOST_PASSES,
        )
        return view

    def _cut(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Let the loss's gradient stop at the model's output."""
        if not self.recording.active:
            return None

        def leaf(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            if tensor.dim() == 0 or len(tensor) != self.recording.rows:
                raise BatchDimensionError(
                    f"the model returns a tensor of shape {tuple(tensor.shape)} for "
                    f"{self.recording.rows} rows; gradient mode ghost needs one row a sample: "
                    "compute the loss outside the model, or choose bookkeeping"
                )
            self._cuts.append((tensor, tensor.detach().requires_grad_()))
            return self._cuts[-1][1]

        return pytree.tree_map_only(Tensor, leaf, output)

    def complete(self, view: FactoredView) -> None:
        """Go through the model for the first time: norms.

        Args:
            view: made by `new_view`.

        Raises:
            BatchDimensionError: the loss does not depend on an output of the model.
        """
        assert isinstance(view, GhostView)
        view.cuts = [(out, end.grad) for out, end in self._cuts if end.grad is not None]
        if not view.cuts:
            raise BatchDimensionError(
                "gradient mode ghost saw no output of the model that the loss depends on: call the "
                "model itself, not a part of it, and let it return tensors"
            )
        torch.autograd.backward(
            [out for out, _ in view.cuts], [g for _, g in view.cuts], retain_graph=True
        )


class GhostView(FactoredView):
    """Norms from the first pass; each weighted sum is a backward pass."""

    def attach(
        self,
        parameters: Sequence[nn.Parameter],
        hidden: set[int],
        muted: Callable[..., AbstractContextManager[None]],
        *,
        keep: bool,
    ) -> None:
        """Take what the second pass needs.

        Args:
            parameters: in order.
            hidden: slots that autograd does not see: their layers' forward is replaced.
            muted: keeps recomputed layers watched, and records nothing.
            keep: sums are to be made from the layers' factors, as in book-keeping.
        """
        self.cuts: list[tuple[Tensor, Tensor]] = []
        self._parameters, self._hidden, self._muted, self._keep = (
            list(parameters),
            hidden,
            muted,
            keep,
        )

    def settle(self) -> None:
        """Forget the layers' factors, unless a sample is not finite.

        A backward pass could not leave it unread.
        """
        if not self._keep and bool(self.squared_norms().isfinite().all()):
            self.forget(self._hidden)

    def weighted_sum(self, factors: Tensor, into: Sums) -> None:
        """Add sum_i factors[k, i] g_i[k] by a backward pass a group, or from factors if kept.

        Args:
            factors: [K, B].
            into: one sum a parameter, on the sum scale; in floating point for a backward pass.

        Raises:
            TypeError: a backward pass is needed, and the sum is one of integers.
        """
        if not self.forgotten:
            return super().weighted_sum(factors, into)
        if not isinstance(into, GradientSum):
            raise TypeError(
                "a backward pass adds rows up by itself: ghost needs a sum in floating point"
            )
        self.add_slots([slot for slot in self._hidden if self.saw(slot)], factors, into)
        for group in sorted(set(self.groups)):
            slots = [i for i, k in enumerate(self.groups) if k == group and i not in self._hidden]
            if not slots:
                continue
            rows = factors[group].repeat_interleave(self.rows_each)
            ends = [grad * self._like(rows * self.scale, grad) for _, grad in self.cuts]
            with self._muted(self):  # not autograd.grad: re-entrant checkpointing refuses it
                torch.autograd.backward([out for out, _ in self.cuts], ends, retain_graph=True)
            for slot in slots:
                gradient = self._parameters[slot].grad
                if gradient is not None:
                    into.tensors[slot] += gradient.to(into.tensors[slot].dtype)
            for parameter in self._parameters:
                parameter.grad = None

    @staticmethod
    def _like(rows: Tensor, grad: Tensor) -> Tensor:
        return rows.to(grad).view(-1, *[1] * (grad.dim() - 1))
