"""One backward pass without autograd's weight gradients; each weighted sum is one product.

Book-keeping after Bu et al. 2023 (arXiv 2210.00038): the inputs and output gradients of every layer
are kept in factored form; norms are computed in the cheaper way for each layer; the clipped sum
goes straight into the accumulated one.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from dpclip.errors import BatchDimensionError
from dpclip.per_sample.forms.factored import Dense, Factored
from dpclip.per_sample.forms.outer_products import OuterProducts
from dpclip.per_sample.layers import factoring_for
from dpclip.per_sample.layers.samplers import sampler_for
from dpclip.per_sample.view import BACKENDS, FactoredView
from dpclip.per_sample.watching.calls import Call
from dpclip.per_sample.watching.operations import OPERATIONS
from dpclip.per_sample.watching.watcher import Watcher


@BACKENDS.named("auto")
@BACKENDS.named("bookkeeping")
class BookkeepingBackend(Watcher):
    """The default: per-sample gradients in factored form, weights left out of the backward pass."""

    freezes = True

    def prepare(self, model: nn.Module) -> None:
        tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
        self._tables = {id(table) for table in tables}

    def knows(self, module: nn.Module) -> bool:
        """Whether the layer has a factoring or a registered sampler.

        Args:
            module: any module.
        """
        return factoring_for(type(module), module) is not None or super().knows(module)

    def refines(self, module: nn.Module) -> type[nn.Module] | None:
        """Return the known layer type that this type is derived from, if it can be watched.

        Args:
            module: any module.

        Returns:
            a key of `OPERATIONS`; None for layers with a factoring or a sampler of their own.
        """
        if factoring_for(type(module), module) or type(module) in self.GRAD_SAMPLERS:
            return None
        return next((kind for kind in OPERATIONS if isinstance(module, kind)), None)

    def record(self, view: FactoredView, call: Call, grad: Tensor) -> None:
        """Take in a call's gradients in factored form, or written out where that is smaller.

        Args:
            view: that is open.
            call: of a layer that is known.
            grad: gradient of the user's loss by the call's output, [rows, ...].

        Raises:
            BatchDimensionError: a grad sampler left a trained parameter out.
        """
        found = factored(call, grad, self.slots)
        for parameter in call.layer.parameters(recurse=False):
            if parameter in self.slots and parameter not in found:
                raise BatchDimensionError(
                    f"{self.recording.name(call.layer)} has a grad sampler that gives no gradient "
                    f"for its {self.parameter_name(parameter)}: mend the sampler or freeze the "
                    "parameter"
                )
        for parameter, use in found.items():
            if (
                isinstance(use, OuterProducts)
                and not use.prefers_gram
                and id(parameter) not in self._tables
            ):
                use = use.materialized()  # smaller than its factors, which can go
            self.recording.take(view, call, parameter, use)


def factored(
    call: Call, grad: Tensor, trained: Container[nn.Parameter]
) -> dict[nn.Parameter, Factored]:
    """Compute the gradients of one call in the cheapest form known.

    Args:
        call: of a layer with a factoring or a registered grad sampler.
        grad: gradient by its output, [rows, ...].
        trained: the parameters that a sampler is to give gradients for.

    Returns:
        {parameter: gradients of `rows` samples}.
    """
    factoring = factoring_for(call.kind, call.layer)
    if factoring is not None:
        return factoring(call.layer, call.tensors, grad)
    # samplers leave out what is frozen
    with _trainable([p for p in call.layer.parameters() if p in trained]):
        sampler = sampler_for(call.layer)
        assert sampler is not None
        found = sampler(call.layer, call.tensors, grad)
    return {parameter: Dense(samples) for parameter, samples in found.items()}


@contextmanager
def _trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
