"""Watches every layer with trainable parameters through one forward and backward pass, without wrapping the model.

Built on Opacus' hooks. Differences, each of which decides whether a model runs, or runs rightly: inputs are bound by
signature, so keyword and non-tensor inputs are welcome; an input of batch 1 (GPT-2's and BERT's position ids) is
expanded ahead of the layer, so that its gradient stays per-sample; the batch size is given, not guessed, and every
layer is held to it; gradients are caught on the output tensor, so layers called several times and tied weights match
each call with its own inputs; inputs are kept as autograd keeps them, so activation checkpointing still frees them;
layers that are given [batch * length, features] (OPT) get their batch dimension back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.layers.dp_rnn import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from dpclip.errors import PrivacyError
from dpclip.gradient_sum import exact_products, wide
from dpclip.per_sample.calls import Call, keep, leading, tensors_of, uncompiled
from dpclip.per_sample.completeness import SumCheck, unseen
from dpclip.per_sample.completion import Completion
from dpclip.per_sample.errors import BatchDimensionError, MisjudgedRows
from dpclip.per_sample.factored import Factored
from dpclip.per_sample.layers.samplers import sampler_for
from dpclip.per_sample.operations import Operations
from dpclip.per_sample.recompute import Recomputation
from dpclip.per_sample.rows import RowEvidence
from dpclip.per_sample.substitutions import Substitutions
from dpclip.per_sample.view import ClipPart, FactoredView


class Watcher(GradSampleHooks):
    """Calls `record` with every watched call and the gradient of the loss by its output.

    Args:
        model: not wrapped and not changed, apart from hooks that `close` removes.
        parameters: the trainable parameters, in order.
        groups: the group of each parameter.
        loss_reduction: how the loss was reduced over the units of a micro-batch, "mean" or "sum".
        force_functorch: recompute every layer under torch.func instead of using registered samplers.
        written_out: the gradients themselves will be asked for, so nothing may be forgotten but for the norms.
    """

    freezes = False  # whether autograd is kept from computing the parameters' own gradients
    clips_parts = True  # whether a group's recorded gradients are all that its weighted sum needs

    def __init__(
        self,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        groups: Sequence[int],
        *,
        loss_reduction: str = "mean",
        force_functorch: bool = False,
        written_out: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.slots = {p: i for i, p in enumerate(self.parameters)}
        self.groups = list(groups)
        self.rows, self.written_out = 0, written_out
        self._view: FactoredView | None = None
        self._names = {module: name for name, module in model.named_modules()}
        self._checked = self._muted = False
        self.expects, self.frozen = True, set[int]()
        self._completion = Completion(groups)
        self._clip_part: ClipPart | None = None
        self.evidence = RowEvidence.of(model)
        self._operations, self._recomputation = Operations(self), Recomputation(self)
        self.substitutions = Substitutions(self)
        self.prepare(model)
        super().__init__(model, loss_reduction=loss_reduction, strict=False, force_functorch=force_functorch)

    def prepare(self, model: nn.Module) -> None:
        """Called before the hooks are attached."""
        return None

    @abstractmethod
    def record(self, view: FactoredView, call: Call, grad: Tensor) -> None:
        """Take in one call: `grad` is the gradient of the user's loss by the call's output, one row a sample."""

    def take(self, view: FactoredView, call: Call, parameter: nn.Parameter, use: Factored) -> None:
        """Add one use of a parameter to the view, held to the batch size; parameters that are not trained are left."""
        slot = self.slots.get(parameter)
        if slot is None or slot in self.frozen:
            return
        if use.rows != self.rows or use.shape != parameter.shape:
            raise BatchDimensionError(
                f"{self.name(call.layer)} gave {use.rows} per-sample gradients of shape {tuple(use.shape)} for "
                f"{self.rows} rows and a parameter of shape {tuple(parameter.shape)}"
            )
        complete = self._completion.arrived(slot, self.name(call.layer))
        view.add(slot, use)
        if complete is not None and self._clip_part is not None:
            view.spend(complete, self._clip_part)
            self._completion.clipped(complete)

    def announce(self, parameters: Iterable[nn.Parameter]) -> None:
        """A call of the forward pass used these parameters."""
        self._completion.announce(self.slots[p] for p in parameters if p in self.slots)

    def take_in(self, module: nn.Module, parameter: nn.Parameter, use: Factored) -> None:
        """`take`, for parameters of modules that are repeated or replaced."""
        if self._view is not None and not self._muted:
            self._check_expected()
            self.take(self._view, Call(module, type(module), (), {}), parameter, use)

    @contextmanager
    def muted(self, view: FactoredView) -> Iterator[None]:
        """For a further backward pass: recomputed layers are watched as before, and nothing is recorded."""
        self._view, self._muted = view, True
        try:
            yield
        finally:
            self._view, self._muted = None, False

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """While a layer is computed again, nothing is watched."""
        self.disable_hooks()
        try:
            yield
        finally:
            self.enable_hooks()

    def new_view(self, units: int, rows_each: int, scale: float, present: Tensor | None) -> FactoredView:
        """An empty view of a micro-batch."""
        return FactoredView(self.groups, units, rows_each, scale, self.evidence, present)

    def complete(self, view: FactoredView) -> None:
        """Called when the user's backward pass is over."""
        return None

    @contextmanager
    def capture(
        self,
        units: int,
        rows_each: int = 1,
        present: Tensor | None = None,
        clip_part: ClipPart | None = None,
    ) -> Iterator[FactoredView]:
        """Watch one forward and backward pass of `units` privacy units; the view is complete on exit."""
        view = self.new_view(units, rows_each, units if self.loss_reduction == "mean" else 1, present)
        check = None if self._checked else SumCheck(self.parameters)
        self._view = view
        self.rows = units * rows_each
        self.anchor = torch.zeros((), requires_grad=True)
        self.evidence.begin(units)
        self._completion.begin()
        self._clip_part = clip_part if self.clips_parts and check is None else None
        self.lifted: set[nn.Module] = set()
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        self.frozen = {slot for slot, parameter in enumerate(self.parameters) if not parameter.requires_grad}
        for parameter in trained:
            parameter.grad = None
            parameter.requires_grad_(not (self.freezes and check is None))
        self.substitutions.put_in()
        try:
            yield view
            self._recomputation.check_taken()
            self.complete(view)
            self._completion.end()
            self._check_unseen(view)
            if check is not None:
                self._checked = True
                check.compare(view, self.parameter_name)
            view.settle()
        finally:
            self._view = None
            self._operations.clear()
            self._recomputation.clear()
            self.substitutions.take_out()
            if check is not None:
                check.close()
            for parameter in trained:
                parameter.grad = None
                parameter.requires_grad_(True)

    @contextmanager
    def expected(self) -> Iterator[None]:
        """While gradients are welcome, for loops that hand one loss a row over (`open_door` is then False)."""
        before, self.expects = self.expects, True
        try:
            yield
        finally:
            self.expects = before

    def refuse_plain_backward(self) -> None:
        """Gradients from now on are taken in within `expected` only."""
        self.expects = False

    def _check_expected(self) -> None:
        if not self.expects:
            raise PrivacyError(
                "a backward pass was started by something other than private.backward(losses), so what it is the "
                "gradient of is not known; nothing was released: hand over one loss a row, shape [rows], in place of a "
                "mean over the batch (dpclip.losses has the usual ones), and take no gradients inside a loss"
            )

    def knows(self, module: nn.Module) -> bool:
        """Whether `record` has arithmetic for this type, so that it need not be repeated by torch.func."""
        return sampler_for(module) is not None and not self.force_functorch

    def refines(self, module: nn.Module) -> type[nn.Module] | None:
        """The layer type that a module's type refines, if the operation inside is to be watched instead of the call."""
        return None

    @property
    def unproven(self) -> bool:
        """Whether nothing is known of the model's layers, or something is in doubt (`rows.py`)."""
        evidence = self.evidence
        return not self._checked or evidence.empty or evidence.seen_once or bool(evidence.doubts())

    def close(self) -> None:
        """Remove the hooks and every attribute they left on the model."""
        self.cleanup()

    def name(self, module: nn.Module) -> str:
        """The layer's name and type, for messages."""
        return f"layer {self._names.get(module, '?')!r} ({type(module).__name__})"

    def parameter_name(self, parameter: nn.Parameter) -> str:
        """The parameter's name, for messages."""
        names = [name for name, p in self._module.named_parameters() if p is parameter]
        return f"parameter {names[0] if names else '?'!r}"

    # --- Opacus' extension points -------------------------------------------------------------------------------

    def add_hooks(self, **_: Any) -> None:
        handles: list[RemovableHandle] = []
        self._attach(self._module, handles)
        self._module.autograd_grad_sample_hooks = self.autograd_grad_sample_hooks = handles
        self.enable_hooks()

    def _attach(self, module: nn.Module, handles: list[RemovableHandle]) -> None:
        """Hook a module in the way that suits it, then the modules below it."""
        own = [p for p in module.parameters(recurse=False) if p in self.slots]
        refined = self.refines(module)
        if not any(p in self.slots for p in module.parameters()):
            return
        if self.substitutions.cover(module):
            return
        if isinstance(module, nn.MultiheadAttention):  # refined: never calls its output projection as a module
            whole = [p for p in module.parameters() if p in self.slots]
            handles += self._recomputation.attach(module, whole)
            return
        if own and refined is not None:
            handles += self._operations.attach(module, refined)
        elif own and self.knows(module):
            handles.append(module.register_forward_pre_hook(uncompiled(self.expand), with_kwargs=True))
            handles.append(module.register_forward_hook(uncompiled(self.watch), with_kwargs=True))
        elif type(module) not in (DPRNN, DPLSTM, DPGRU):  # their RNNLinear children carry the hooks
            handles += self._recomputation.attach(module, own)
        for child in module.children():
            self._attach(child, handles)

    @classmethod
    def validate(cls, module: nn.Module, *, strict: bool = False) -> list[NotImplementedError]:
        """Nothing is refused by name here: the neighbour-invariance pre-flight decides."""
        return []

    # --- forward ------------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether calls are being watched now."""
        return self._view is not None and self.hooks_enabled and torch.is_grad_enabled()

    @property
    def recording(self) -> bool:
        """Whether gradients that arrive are to be recorded."""
        return self._view is not None and not self._muted

    def expand(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Forward pre-hook: an input shared by all rows becomes one copy a row: its gradient stays per-sample."""
        if not self.active or self.rows == 1:
            return None
        if not self.evidence.broadcasts(self.name(module), self.rows, tensors_of(args, kwargs)):
            return None
        return pytree.tree_map_only(Tensor, lambda t: t.expand(self.rows, *t.shape[1:]).contiguous(), (args, kwargs))

    def watch(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook: keep what the layer was called with, and record the call when its gradient arrives."""
        return self.watch_as(type(module), module, args, kwargs, output) if self.active else None

    def watch_as(
        self, kind: type[nn.Module], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """`watch`, for a call that is the arithmetic of another layer type."""
        out = output
        if not self.per_row(module, [*leading(module, tensors_of(args, kwargs)), out]):
            self._recomputation.postpone(module, [p for p in module.parameters(recurse=False) if p in self.slots])
            return None
        if not out.requires_grad:  # no trainable layer below and no gradient for this layer's own weights
            out = out + self.anchor.to(out)
        self.note_dtype(out)
        self.announce(module.parameters(recurse=False))
        kept = [keep(self.anchor, args, kwargs)]

        def caught(grad: Tensor) -> None:
            if self.recording and module not in self.lifted:
                if not kept:
                    raise RuntimeError("two backward passes went through one forward pass: a step takes one")
                inputs, named = kept.pop()(self.rows_first)  # nothing is held longer than its gradient needs it
                self._record(Call(module, kind, inputs, named), self.rows_first(grad.detach()))

        out.register_hook(caught)
        return out

    def note_dtype(self, out: Tensor) -> None:
        """Remember whether the pass is one in mixed precision."""
        if self._view is not None and wide(out.dtype) != out.dtype:
            self._view.narrow = True

    def _record(self, call: Call, grad: Tensor) -> None:
        assert self._view is not None
        self._check_expected()
        self._view.shapes.append(tuple(grad.shape))
        with self.unwatched(), exact_products():
            self.record(self._view, call, grad)

    def rows_first(self, tensor: Tensor) -> Tensor:
        """[rows * n, ...] activations as [rows, n, ...]; anything else as it is."""
        if self.evidence.merged(tensor, self.rows):
            return tensor.reshape(self.rows, -1, *tensor.shape[1:])
        return tensor

    # --- checks -------------------------------------------------------------------------------------------------

    def per_row(self, module: nn.Module, tensors: list[Tensor]) -> bool:
        """Whether this call of a layer has one row a sample.

        Raises:
            MisjudgedRows: it was wrongly taken to have, in a batch whose sum may be in use.
        """
        return self._judged(self.name(module), tensors)

    def input_per_row(self, module: nn.Module, place: int, tensor: Tensor) -> bool:
        """`per_row` for one input of a module that is repeated: a mask of shape [L, L] is shared, whatever L is."""
        return self._judged(f"input {place} of {self.name(module)}", [tensor])

    def _judged(self, name: str, tensors: list[Tensor]) -> bool:
        judged = self.evidence.per_row(name, self.rows, tensors)
        if self.evidence.misjudged(name):
            raise MisjudgedRows(
                f"{name} was taken to have one row a sample in a batch of another size, and has not: begin again; the "
                "model is now known, and nothing that was computed with it has been released"
            )
        return judged

    def _check_unseen(self, view: FactoredView) -> None:
        for slot, parameter in enumerate(self.parameters):
            if parameter.grad is not None and not view.saw(slot):
                raise unseen(self.parameter_name(parameter))
