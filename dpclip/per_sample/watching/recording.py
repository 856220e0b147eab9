"""The pass that is being watched: what is known of it, and what is taken in as gradients arrive.

The watcher attaches hooks and opens passes; the hooks, and what knows unusual layers, work on the
recording alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dpclip.errors import BatchDimensionError, PrivacyError
from dpclip.per_sample.errors import MisjudgedRows
from dpclip.per_sample.forms.factored import Factored
from dpclip.per_sample.row_evidence import RowEvidence
from dpclip.per_sample.view import ClipPart, FactoredView
from dpclip.per_sample.watching.calls import Call, batch_inputs, keep, tensors_of
from dpclip.per_sample.watching.group_completion import Completion
from dpclip.precision import accumulation_dtype, exact_products

Record = Callable[[FactoredView, Call, Tensor], None]


class Recording:
    """One forward and backward pass after the other; `view` is the one that is open.

    Args:
        parameters: the trainable parameters, in order.
        groups: the group of each parameter.
        evidence: what is known of the model's layers.
        names: of its modules, for messages.
        record: takes in one call: its view, the call, and the gradient of the user's loss by the
            call's output, one row a sample.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        groups: Sequence[int],
        evidence: RowEvidence,
        names: Mapping[nn.Module, str],
        record: Record,
    ) -> None:
        self.slots = {p: i for i, p in enumerate(parameters)}
        self.evidence, self._names, self._record = evidence, names, record
        self._completion = Completion(groups)
        self.rows = 0
        self.view: FactoredView | None = None
        self.anchor = torch.zeros((), requires_grad=True)
        self.expects = True  # whether gradients are welcome
        self.frozen, self.lifted = set[int](), set[nn.Module]()
        self.postponed: dict[nn.Module, list[nn.Parameter]] = {}
        self.observer: Callable[[Call, nn.Parameter, Factored], None] | None = None
        self._muted = self._paused = False
        self._clip_part: ClipPart | None = None

    # --- a pass -----------------------------------------------------------------------------------

    def begin(self, view: FactoredView, units: int, clip_part: ClipPart | None) -> None:
        """Open a pass.

        Args:
            view: what is recorded in it.
            units: privacy units in the micro-batch.
            clip_part: may be given each group as soon as it is complete.
        """
        self.view, self.rows = view, units * view.rows_each
        self.anchor = torch.zeros((), requires_grad=True)
        self.evidence.begin(units)
        self._completion.begin()
        self._clip_part = clip_part
        self.lifted = set()
        self.frozen = {slot for p, slot in self.slots.items() if not p.requires_grad}

    def end(self) -> None:
        """Note that every gradient of the pass is in."""
        self._completion.end()

    def close(self) -> None:
        """Forget the pass."""
        self.view = None
        self.postponed.clear()

    @property
    def active(self) -> bool:
        """Whether calls are being watched now."""
        return self.view is not None and not self._paused and torch.is_grad_enabled()

    @property
    def listening(self) -> bool:
        """Whether gradients that arrive are to be recorded."""
        return self.view is not None and not self._muted

    @contextmanager
    def muted(self, view: FactoredView) -> Iterator[None]:
        """Watch recomputed layers as before, but record nothing, for a further backward pass.

        Args:
            view: of the pass; open within the block.
        """
        self.view, self._muted = view, True
        try:
            yield
        finally:
            self.view, self._muted = None, False

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Watch nothing within the block, while a layer is computed again."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def check_expected(self) -> None:
        """Refuse gradients of a backward pass that nobody handed losses over for.

        Raises:
            PrivacyError: what it is the gradient of is not known.
        """
        if not self.expects:
            raise PrivacyError(
                "a backward pass was started by something other than private.backward(losses), so "
                "what it is the gradient of is not known; nothing was released: hand over one loss "
                "a row, shape [rows], in place of a mean over the batch (dpclip.losses has the "
                "usual ones), and take no gradients inside a loss"
            )

    # --- forward ----------------------------------------------------------------------------------

    def expand(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        """Make one copy a row of an input that all rows share: its gradient stays per-sample.

        A forward pre-hook.

        Args:
            module: the layer.
            args: what it is called with.
            kwargs: what it is called with.

        Returns:
            the arguments with tensors [1, ...] repeated to [rows, ...]; None leaves them.
        """
        if not self.active or self.rows == 1:
            return None
        if not self.evidence.broadcasts(self.name(module), self.rows, tensors_of(args, kwargs)):
            return None
        return pytree.tree_map_only(
            Tensor, lambda t: t.expand(self.rows, *t.shape[1:]).contiguous(), (args, kwargs)
        )

    def watch(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Keep what the layer was called with, and record the call when its gradient arrives.

        A forward hook.

        Args:
            module: the layer.
            args: what it was called with.
            kwargs: what it was called with.
            output: its output, a tensor with one row a sample.

        Returns:
            the output to pass on; None leaves it.
        """
        return self.watch_as(type(module), module, args, kwargs, output) if self.active else None

    def watch_as(
        self,
        kind: type[nn.Module],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
    ) -> Tensor | None:
        """`watch` a call that is the arithmetic of another layer type.

        Args:
            kind: that type.
            module: as in `watch`.
            args: as in `watch`.
            kwargs: as in `watch`.
            output: as in `watch`.

        Returns:
            the output to pass on, reached by the backward pass; None for a call without one row a
            sample, whose parameters are left to a module around it.
        """
        out = output
        if not self.per_row(module, [*batch_inputs(module, tensors_of(args, kwargs)), out]):
            self.postpone(module, [p for p in module.parameters(recurse=False) if p in self.slots])
            return None
        # no trainable layer below and no gradient for this layer's own weights
        if not out.requires_grad:
            out = out + self.anchor.to(out)
        self.note_dtype(out)
        self.announce(module.parameters(recurse=False))
        kept = [keep(self.anchor, args, kwargs)]

        def caught(grad: Tensor) -> None:
            if self.listening and module not in self.lifted:
                if not kept:
                    raise RuntimeError(
                        "two backward passes went through one forward pass: a step takes one"
                    )
                # nothing is held longer than its gradient needs it
                inputs, named = kept.pop()(self.rows_first)
                self._recorded(Call(module, kind, inputs, named), self.rows_first(grad.detach()))

        out.register_hook(caught)
        return out

    def note_dtype(self, out: Tensor) -> None:
        """Remember whether the pass is one in mixed precision.

        Args:
            out: a layer's output.
        """
        if self.view is not None and accumulation_dtype(out.dtype) != out.dtype:
            self.view.narrow = True

    def announce(self, parameters: Iterable[nn.Parameter]) -> None:
        """Count a use of these parameters by a call of the forward pass.

        Args:
            parameters: trained or not.
        """
        self._completion.announce(self.slots[p] for p in parameters if p in self.slots)

    def postpone(self, module: nn.Module, parameters: list[nn.Parameter]) -> None:
        """Leave the parameters of a layer to a module around it: all its calls, earlier ones too.

        Args:
            module: the layer.
            parameters: its trainable ones; nothing happens without any.
        """
        if parameters:
            self.lifted.add(module)
            self.postponed.setdefault(module, []).extend(parameters)

    # --- backward ---------------------------------------------------------------------------------

    def _recorded(self, call: Call, grad: Tensor) -> None:
        assert self.view is not None
        self.check_expected()
        self.view.shapes.append(tuple(grad.shape))
        with self.unwatched(), exact_products():
            self._record(self.view, call, grad)

    def take(self, view: FactoredView, call: Call, parameter: nn.Parameter, use: Factored) -> None:
        """Add one use of a parameter to the view; parameters that are not trained are left.

        Args:
            view: that is open.
            call: that used the parameter.
            parameter: any.
            use: its gradients, `rows` of them.

        Raises:
            BatchDimensionError: it has not one gradient of the parameter's shape for each row.
            LateGradient: the parameter's group has been clipped already.
        """
        slot = self.slots.get(parameter)
        if slot is None or slot in self.frozen:
            return
        if use.rows != self.rows or use.shape != parameter.shape:
            raise BatchDimensionError(
                f"{self.name(call.layer)} gave {use.rows} per-sample gradients of shape "
                f"{tuple(use.shape)} for {self.rows} rows and a parameter of shape "
                f"{tuple(parameter.shape)}"
            )
        if self.observer is not None:
            self.observer(call, parameter, use)
        complete = self._completion.arrived(slot, self.name(call.layer))
        view.add(slot, use)
        if complete is not None and self._clip_part is not None:
            view.spend(complete, self._clip_part)
            self._completion.clipped(complete)

    def take_in(self, module: nn.Module, parameter: nn.Parameter, use: Factored) -> None:
        """`take`, for parameters of modules that are repeated or replaced.

        Args:
            module: that used the parameter.
            parameter: any.
            use: its gradients, `rows` of them.

        Raises:
            PrivacyError: the backward pass is one that nobody handed losses over for.
        """
        if self.view is not None and not self._muted:
            self.check_expected()
            self.take(self.view, Call(module, type(module), (), {}), parameter, use)

    def rows_first(self, tensor: Tensor) -> Tensor:
        """View [rows * n, ...] activations as [rows, n, ...]; anything else as it is.

        Args:
            tensor: an input, an output or its gradient.
        """
        if self.evidence.merged(tensor, self.rows):
            return tensor.reshape(self.rows, -1, *tensor.shape[1:])
        return tensor

    # --- checks -----------------------------------------------------------------------------------

    def per_row(self, module: nn.Module, tensors: list[Tensor]) -> bool:
        """Whether this call of a layer has one row a sample.

        Args:
            module: the layer.
            tensors: its first input and its output; each must have `rows` rows.

        Raises:
            MisjudgedRows: it was wrongly taken to have, in a batch whose sum may be in use.
        """
        return self._judged(self.name(module), tensors)

    def input_per_row(self, module: nn.Module, place: int, tensor: Tensor) -> bool:
        """`per_row` for one input of a module that is repeated.

        A mask of shape [L, L] is shared, whatever L is.

        Args:
            module: the module.
            place: of the input among its arguments.
            tensor: the input.
        """
        return self._judged(f"input {place} of {self.name(module)}", [tensor])

    def _judged(self, name: str, tensors: list[Tensor]) -> bool:
        judged = self.evidence.per_row(name, self.rows, tensors)
        if self.evidence.misjudged(name):
            raise MisjudgedRows(
                f"{name} was taken to have one row a sample in a batch of another size, and has "
                "not: begin again; the model is now known, and nothing that was computed with it "
                "has been released"
            )
        return judged

    def name(self, module: nn.Module) -> str:
        """Return the layer's name and type, for messages.

        Args:
            module: any module.
        """
        return f"layer {self._names.get(module, '?')!r} ({type(module).__name__})"
