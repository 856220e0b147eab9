"""Layers whose forward pass hides the products of gradients: recurrent nets, attention.

While a pass is watched their `forward` is replaced, on the module object only, by one that computes
the same output and hands a recorder each parameter's gradients in the backward pass. One function a
layer type, one line here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from dpclip.per_sample.forms.factored import Factored
from dpclip.per_sample.layers.attention import attention
from dpclip.per_sample.layers.recurrent import recurrent


class Recorder(Protocol):
    """What a substitute forward is given: the size of the batch, and somewhere to put gradients."""

    @property
    def rows(self) -> int:
        """Rows in the micro-batch; every recorded gradient has as many."""
        ...

    @property
    def anchor(self) -> Tensor:
        """A zero that requires a gradient: the backward pass reaches what is made with it."""
        ...

    def __call__(self, parameter: nn.Parameter, use: Factored) -> None:
        """Record one use of a parameter; ignored if the parameter is not trained."""
        ...


Substitute = Callable[[Any, Recorder], Callable[..., Any]]

_SUBSTITUTES: dict[type[nn.Module], Substitute] = {
    nn.RNN: recurrent,
    nn.GRU: recurrent,
    nn.LSTM: recurrent,
    nn.MultiheadAttention: attention,
}


def substitute_for(layer: nn.Module) -> Substitute | None:
    """Return the substitute of exactly this type, or None.

    Args:
        layer: the module.
    """
    return _SUBSTITUTES.get(type(layer))
