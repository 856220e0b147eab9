"""Per-sample gradient backends. A new backend is one file and one line here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dpclip.per_sample.backends.bookkeeping import BookkeepingBackend as BookkeepingBackend
from dpclip.per_sample.backends.ghost import GhostBackend as GhostBackend
from dpclip.per_sample.backends.hooks import HooksBackend as HooksBackend
from dpclip.per_sample.layers import register_factoring as register_factoring
from dpclip.per_sample.view import BACKENDS as BACKENDS
from dpclip.per_sample.view import Backend as Backend
from dpclip.per_sample.view import ClipPart as ClipPart
from dpclip.per_sample.view import FactoredView as FactoredView
from dpclip.per_sample.view import PerSampleView as PerSampleView


def make_backend(
    mode: str,
    model: nn.Module,
    parameters: Sequence[nn.Parameter],
    groups: Sequence[int],
    loss_reduction: str = "mean",
    materialized: bool = False,
) -> Backend:
    """Attach a gradient backend to a model.

    Args:
        mode: a name of `BACKENDS`.
        model: hooked, not wrapped.
        parameters: the trainable parameters, in order.
        groups: the group of each parameter.
        loss_reduction: how the loss is reduced over the units of a micro-batch, "mean" or "sum".
        materialized: the rule will ask for the gradients themselves.

    Raises:
        InputError: unknown mode; the known ones are listed.
    """
    return BACKENDS.get(mode)(
        model, parameters, groups, loss_reduction=loss_reduction, materialized=materialized
    )
