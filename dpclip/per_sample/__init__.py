"""Per-sample gradient backends and their registry. A new backend is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import nn

from dpclip.errors import BadInput
from dpclip.per_sample.bookkeeping import BookkeepingBackend
from dpclip.per_sample.errors import BatchDimensionError
from dpclip.per_sample.ghost import GhostBackend
from dpclip.per_sample.hooks import HooksBackend
from dpclip.per_sample.layers import register_factoring
from dpclip.per_sample.view import Backend, ClipPart, FactoredView, PerSampleView

__all__ = [
    "Backend",
    "BatchDimensionError",
    "BookkeepingBackend",
    "ClipPart",
    "FactoredView",
    "GhostBackend",
    "HooksBackend",
    "PerSampleView",
    "backend_names",
    "make_backend",
    "register_factoring",
]

_BACKENDS: dict[str, Callable[..., Backend]] = {
    "ghost": GhostBackend,
    "bookkeeping": BookkeepingBackend,
    "hooks": HooksBackend,
    "functorch": partial(HooksBackend, force_functorch=True),
}
_AUTO = "bookkeeping"


def backend_names() -> list[str]:
    """The values of `--grad-sample-mode`."""
    return ["auto", *sorted(_BACKENDS)]


def make_backend(
    mode: str,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    groups: Sequence[int],
    loss_reduction: str = "mean",
    written_out: bool = False,
) -> Backend:
    """Attach a gradient backend to a model.

    Args:
        mode: "auto" or a name of `backend_names`.
        model: hooked, not wrapped.
        parameters: the trainable parameters, in order.
        groups: the group of each parameter.
        loss_reduction: how the loss is reduced over the units of a micro-batch, "mean" or "sum".
        written_out: the rule will ask for the gradients themselves.

    Raises:
        BadInput: unknown mode; the known ones are listed.
    """
    chosen = _AUTO if mode == "auto" else mode
    if chosen not in _BACKENDS:
        raise BadInput(f"gradient mode {mode!r} is unknown: choose one of {', '.join(backend_names())}")
    return _BACKENDS[chosen](model, parameters, groups, loss_reduction=loss_reduction, written_out=written_out)
