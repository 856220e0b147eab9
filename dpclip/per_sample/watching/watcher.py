"""Watches every layer with trainable parameters through one pass, without wrapping the model.

Built on Opacus' hooks. Differences, each of which decides whether a model runs, or runs rightly:
inputs are bound by signature, so keyword and non-tensor inputs are welcome; an input of batch 1
(GPT-2's and BERT's position ids) is expanded ahead of the layer, so that its gradient stays
per-sample; the batch size is given, not guessed, and every layer is held to it; gradients are
caught on the output tensor, so layers called several times and tied weights match each call with
its own inputs; inputs are kept as autograd keeps them, so activation checkpointing still frees
them; layers that are given [batch * length, features] (OPT) get their batch dimension back.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.layers.dp_rnn import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dpclip.per_sample.layers.samplers import sampler_for
from dpclip.per_sample.row_evidence import RowEvidence
from dpclip.per_sample.view import ClipPart, FactoredView
from dpclip.per_sample.watching.calls import Call, uncompiled
from dpclip.per_sample.watching.operations import Operations
from dpclip.per_sample.watching.recompute import Recomputation
from dpclip.per_sample.watching.recording import Recording
from dpclip.per_sample.watching.substitutions import Substitutions
from dpclip.per_sample.watching.sum_check import SumCheck, unseen


class Watcher(GradSampleHooks):
    """Calls `record` with every watched call and the gradient of the loss by its output.

    Args:
        model: not wrapped and not changed, apart from hooks that `close` removes.
        parameters: the trainable parameters, in order.
        groups: the group of each parameter.
        loss_reduction: how the loss was reduced over the units of a micro-batch, "mean" or "sum".
        force_functorch: recompute every layer under torch.func instead of using registered
            samplers.
        materialized: the gradients themselves will be asked for, so nothing may be forgotten but
            for the norms.
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
        materialized: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.groups, self.materialized = list(groups), materialized
        self._checked = False
        self.evidence = RowEvidence.of(model)
        names = {module: name for name, module in model.named_modules()}
        self.recording = Recording(self.parameters, groups, self.evidence, names, self.record)
        self.slots = self.recording.slots
        self._operations = Operations(self.recording)
        self._recomputation = Recomputation(self.recording)
        self.substitutions = Substitutions(self.recording)
        self.prepare(model)
        super().__init__(
            model, loss_reduction=loss_reduction, strict=False, force_functorch=force_functorch
        )

    def prepare(self, model: nn.Module) -> None:
        """Look at the model before the hooks are attached.

        Args:
            model: about to be hooked.
        """
        return None

    @abstractmethod
    def record(self, view: FactoredView, call: Call, grad: Tensor) -> None:
        """Take in one call.

        Args:
            view: that is open.
            call: of a layer that `knows` or `refines`.
            grad: gradient of the user's loss by the call's output, [rows, ...].
        """

    def new_view(
        self, units: int, rows_each: int, scale: float, present: Tensor | None
    ) -> FactoredView:
        """Make an empty view of a micro-batch.

        Args:
            units: B, privacy units.
            rows_each: consecutive rows of each.
            scale: what recorded gradients are to be multiplied by.
            present: which units count, bool, [B]; None: all.
        """
        return FactoredView(self.groups, units, rows_each, scale, self.evidence, present)

    def complete(self, view: FactoredView) -> None:
        """Finish the view when the user's backward pass is over.

        Args:
            view: of the pass.
        """
        return None

    @contextmanager
    def capture(
        self,
        units: int,
        rows_each: int = 1,
        present: Tensor | None = None,
        clip_part: ClipPart | None = None,
    ) -> Iterator[FactoredView]:
        """Watch one forward and backward pass; the view is complete on exit.

        Args:
            units: B, privacy units in the micro-batch.
            rows_each: consecutive rows that belong to each unit.
            present: which units count, bool, [B]; the others are dummies. None: all.
            clip_part: may be given each group as soon as it is complete, but not in the first pass,
                whose sums are checked.

        Raises:
            BatchDimensionError: a trained parameter's gradients are not, or not all, per-sample.
        """
        scale = units if self.loss_reduction == "mean" else 1
        view = self.new_view(units, rows_each, scale, present)
        check = None if self._checked else SumCheck(self.parameters)
        self.recording.begin(view, units, clip_part if self.clips_parts and check is None else None)
        self.substitutions.put_in()
        try:
            with self._gradients_of_parameters(check is not None):
                yield view
                self._recomputation.check_taken()
                self.complete(view)
                self.recording.end()
                self._check_unseen(view)
                if check is not None:
                    self._checked = True
                    check.compare(view, self.parameter_name)
                view.settle()
        finally:
            self.recording.close()
            self._operations.clear()
            self._recomputation.clear()
            self.substitutions.take_out()
            if check is not None:
                check.close()

    @contextmanager
    def _gradients_of_parameters(self, wanted: bool) -> Iterator[None]:
        """Keep autograd from computing what nobody needs, and leave no batch gradient behind."""
        trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = None
            parameter.requires_grad_(wanted or not self.freezes)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.grad = None
                parameter.requires_grad_(True)

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Welcome gradients within the block, after `refuse_plain_backward`.

        For loops that hand one loss a row over.
        """
        before, self.recording.expects = self.recording.expects, True
        try:
            yield
        finally:
            self.recording.expects = before

    def refuse_plain_backward(self) -> None:
        """Take gradients in within `expected` only, from now on."""
        self.recording.expects = False

    def knows(self, module: nn.Module) -> bool:
        """Whether `record` has arithmetic for this type, so that torch.func need not repeat it.

        Args:
            module: any module.
        """
        return sampler_for(module) is not None and not self.force_functorch

    def refines(self, module: nn.Module) -> type[nn.Module] | None:
        """Return the layer type that a module's type refines.

        Args:
            module: any module.

        Returns:
            the type, if the operation inside is to be watched instead of the call; else None.
        """
        return None

    @property
    def unproven(self) -> bool:
        """Whether nothing is known of the model's layers, or something is in doubt.

        See `row_evidence.py`.
        """
        evidence = self.evidence
        return not self._checked or evidence.empty or evidence.seen_once or bool(evidence.doubts())

    def close(self) -> None:
        """Remove the hooks and every attribute they left on the model."""
        self.cleanup()

    def parameter_name(self, parameter: nn.Parameter) -> str:
        """Return the parameter's name, for messages.

        Args:
            parameter: of the model, or "?" is said.
        """
        names = [name for name, p in self._module.named_parameters() if p is parameter]
        return f"parameter {names[0] if names else '?'!r}"

    # --- Opacus' extension points -----------------------------------------------------------------

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
        # refined: never calls its output projection as a module
        if isinstance(module, nn.MultiheadAttention):
            whole = [p for p in module.parameters() if p in self.slots]
            handles += self._recomputation.attach(module, whole)
            return
        if own and refined is not None:
            handles += self._operations.attach(module, refined)
        elif own and self.knows(module):
            handles.append(
                module.register_forward_pre_hook(
                    uncompiled(self.recording.expand), with_kwargs=True
                )
            )
            handles.append(
                module.register_forward_hook(uncompiled(self.recording.watch), with_kwargs=True)
            )
        elif type(module) not in (DPRNN, DPLSTM, DPGRU):  # their RNNLinear children carry the hooks
            handles += self._recomputation.attach(module, own)
        for child in module.children():
            self._attach(child, handles)

    @classmethod
    def validate(cls, module: nn.Module, *, strict: bool = False) -> list[NotImplementedError]:
        """Nothing is refused by name here: the neighbour-invariance pre-flight decides."""
        return []

    def _check_unseen(self, view: FactoredView) -> None:
        for slot, parameter in enumerate(self.parameters):
            if parameter.grad is not None and not view.saw(slot):
                raise unseen(self.parameter_name(parameter))
