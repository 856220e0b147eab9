"""Per-sample gradients by hooks on the layers, without wrapping the model: Opacus' samplers, told the batch size.

Differences from Opacus' own hooks, each of which decides whether a model runs, or runs rightly: inputs are bound by
signature, so keyword and non-tensor inputs are welcome; an input of batch 1 (GPT-2's and BERT's position ids) is
expanded ahead of the layer, so that its gradient stays per-sample; the batch size is given, not guessed, and every
layer is held to it; gradients are caught on the output tensor, so layers called several times, tied weights and
activation checkpointing match each call with its own inputs; layers that are given [batch * length, features] (OPT)
get their batch dimension back.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.layers.dp_rnn import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpclip.gradient_sum import wide
from dpclip.per_sample import functorch
from dpclip.per_sample.layers import sampler_for
from dpclip.per_sample.view import MaterialisedView


class BatchDimensionError(RuntimeError):
    """A layer whose input or output does not have one row a sample, so that no per-sample gradient exists."""


class HooksBackend(GradSampleHooks):
    """Materialises per-sample gradients layer by layer during the backward pass.

    Args:
        model: not wrapped and not changed, apart from hooks that `close` removes.
        parameters: the trainable parameters, in order.
        groups: the group of each parameter.
        loss_reduction: how the loss was reduced over the units of a micro-batch, "mean" or "sum".
        force_functorch: recompute every layer under torch.func instead of using registered samplers.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        groups: Sequence[int],
        *,
        loss_reduction: str = "mean",
        force_functorch: bool = False,
    ) -> None:
        self._parameters = list(parameters)
        self._slots = {p: i for i, p in enumerate(self._parameters)}
        self._groups = list(groups)
        self._view: MaterialisedView | None = None
        self._owners: Tensor | None = None
        self._rows = 0
        self._names = {module: name for name, module in model.named_modules()}
        self._checked = False
        super().__init__(model, loss_reduction=loss_reduction, strict=False, force_functorch=force_functorch)

    @contextmanager
    def capture(self, units: int, owners: Tensor | None = None) -> Iterator[MaterialisedView]:
        """Watch one forward and backward pass of `units` privacy units; the view is complete on exit."""
        view = MaterialisedView(self._groups, units)
        for parameter in self._parameters:
            parameter.grad = None
        self._view, self._owners = view, owners
        self._rows = units if owners is None else len(owners)
        try:
            yield view
            self._check_complete(view)
        finally:
            self._view, self._owners = None, None
            for parameter in self._parameters:
                parameter.grad = None

    def close(self) -> None:
        """Remove the hooks and every attribute they left on the model."""
        self.cleanup()

    # --- Opacus' extension points -------------------------------------------------------------------------------

    def add_hooks(self, **_: Any) -> None:
        handles = []
        for module in self.iterate_submodules(self._module):
            if type(module) not in (DPRNN, DPLSTM, DPGRU):  # their RNNLinear children carry the hooks
                handles.append(module.register_forward_pre_hook(self._expand, with_kwargs=True))
                handles.append(module.register_forward_hook(self._watch, with_kwargs=True))
        self._module.autograd_grad_sample_hooks = self.autograd_grad_sample_hooks = handles
        self.enable_hooks()

    @classmethod
    def validate(cls, module: nn.Module, *, strict: bool = False) -> list[NotImplementedError]:
        """Nothing is refused by name here: the neighbour-invariance pre-flight decides."""
        return []

    # --- forward ------------------------------------------------------------------------------------------------

    def _active(self) -> bool:
        return self._view is not None and self.hooks_enabled and torch.is_grad_enabled()

    def _expand(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """An input shared by all rows becomes one copy a row, so that its gradient stays per-sample."""
        if not self._active() or self._rows == 1:
            return None
        tensors = _tensors(args, kwargs)
        if not tensors or any(t.dim() == 0 or len(t) != 1 for t in tensors):
            return None
        return pytree.tree_map_only(Tensor, lambda t: t.expand(self._rows, *t.shape[1:]).contiguous(), (args, kwargs))

    def _watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._active():
            return
        out = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(out, Tensor):
            raise BatchDimensionError(
                f"{self._name(module)} returns {type(output).__name__}, not a tensor, and owns parameters of its "
                "own: freeze them or move them into a layer that returns a tensor"
            )
        if not out.requires_grad:
            return
        self._check_rows(module, [*_tensors(args, kwargs)[:1], out])
        inputs, named = pytree.tree_map_only(Tensor, lambda t: self._rows_first(t.detach()), (args, kwargs))
        out.register_hook(lambda grad: self._record(module, inputs, named, self._rows_first(grad.detach())))

    def _rows_first(self, tensor: Tensor) -> Tensor:
        """[rows * n, ...] activations as [rows, n, ...]; anything else as it is."""
        if _is_flattened(tensor, self._rows):
            return tensor.reshape(self._rows, -1, *tensor.shape[1:])
        return tensor

    # --- backward -----------------------------------------------------------------------------------------------

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], grad: Tensor) -> None:
        if self._view is None:
            return
        if self.loss_reduction == "mean":
            grad = grad * self._view.units
        sampler = None if self.force_functorch else sampler_for(module)
        self.disable_hooks()  # recomputing the layer must not be watched
        try:
            if sampler is None:
                found = functorch.per_sample_gradients(module, args, kwargs, grad)
            else:
                found = sampler(module, _bound_tensors(module, args, kwargs), grad)
        finally:
            self.enable_hooks()
        for parameter, sample in found.items():
            self._accumulate(module, parameter, sample)

    def _accumulate(self, module: nn.Module, parameter: nn.Parameter, sample: Tensor) -> None:
        view, slot = self._view, self._slots.get(parameter)
        if view is None or slot is None:
            return
        if len(sample) != self._rows:
            raise BatchDimensionError(
                f"{self._name(module)} gave {len(sample)} per-sample gradients for {self._rows} rows"
            )
        if self._owners is not None:
            summed = sample.new_zeros(view.units, *sample.shape[1:], dtype=wide(sample.dtype))
            sample = summed.index_add_(0, self._owners.to(sample.device), sample.to(summed.dtype))
        held = view.samples[slot]
        view.samples[slot] = sample if held is None else held.to(wide(held.dtype)) + sample

    # --- checks -------------------------------------------------------------------------------------------------

    def _check_rows(self, module: nn.Module, tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if tensor.dim() == 0 or (len(tensor) != self._rows and not _is_flattened(tensor, self._rows)):
                raise BatchDimensionError(
                    f"{self._name(module)} sees a tensor of shape {tuple(tensor.shape)} in a batch of "
                    f"{self._rows} rows: every layer with trainable parameters needs one row a sample; "
                    "freeze this layer, or give it "
                    "inputs with a batch dimension (position ids of shape [batch, length], say)"
                )

    def _check_complete(self, view: MaterialisedView) -> None:
        """Autograd's own gradient must be the mean of the per-sample ones, or a use of a parameter went unseen."""
        for parameter, sample in zip(self._parameters, view.samples, strict=True):
            if sample is None and parameter.grad is not None:
                raise BatchDimensionError(
                    f"{self._parameter_name(parameter)} got a gradient outside every watched layer (used directly in a "
                    "forward function?): freeze it or wrap its use in a module"
                )
        if not self._checked:
            self._checked = True
            whole = float(view.squared_norms().nan_to_num().sum().sqrt())
            for parameter, sample in zip(self._parameters, view.samples, strict=True):
                self._check_sum(parameter, sample, view.units, whole)

    def _check_sum(self, parameter: nn.Parameter, sample: Tensor | None, units: int, whole: float) -> None:
        if sample is None or parameter.grad is None or not bool(parameter.grad.isfinite().all()):
            return
        expected = parameter.grad.to(wide(parameter.dtype))
        if self.loss_reduction == "mean":
            expected = expected * units
        gap = (sample.to(expected.dtype).sum(0) - expected).square().sum().sqrt()
        largest = sample.to(expected.dtype).square().sum().sqrt()
        tolerance = 1e-3 if parameter.dtype in (torch.float32, torch.float64) else 5e-2
        # Some gradients are zero but for rounding (a key's bias, say): they are held to the whole gradient's scale.
        if bool(gap > tolerance * largest + tolerance * 1e-2 * whole):
            raise BatchDimensionError(
                f"the per-sample gradients of {self._parameter_name(parameter)} do not add up to autograd's gradient: "
                "it is also used outside its layer, or a hook of another library interferes; freeze it or untie it"
            )

    def _name(self, module: nn.Module) -> str:
        return f"layer {self._names.get(module, '?')!r} ({type(module).__name__})"

    def _parameter_name(self, parameter: nn.Parameter) -> str:
        names = [name for name, p in self._module.named_parameters() if p is parameter]
        return f"parameter {names[0] if names else '?'!r}"


def _is_flattened(tensor: Tensor, rows: int) -> bool:
    """Whether batch and length may have been merged; index tensors never are (a table of positions is no batch)."""
    return tensor.dim() > 1 and tensor.is_floating_point() and len(tensor) != rows and len(tensor) % rows == 0


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]


def _bound_tensors(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The call's tensors in the order of the layer's signature, which is what samplers expect."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    return [value for value in bound.arguments.values() if isinstance(value, Tensor)]
