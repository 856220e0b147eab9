"""The arithmetic of one step of torch's recurrent layers, forward and backward.

Formulas of torch's documentation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class GateGradients:
    """Gradients by the pre-activations, each [B, T, gates].

    Attributes:
        input: by what W multiplies x_t into.
        hidden: by what U multiplies h_{t-1} into.
    """

    input: Tensor
    hidden: Tensor


class RecurrentCell(ABC):
    """One kind of recurrent cell. `memory` is what the backward pass needs, for all steps.

    Shapes: H hidden units, P what the layer gives out (H without a projection), G gates.
    """

    @abstractmethod
    def memory(self, gates: Tensor, c: Tensor) -> Any:
        """Make the memory of a pass.

        Args:
            gates: the input projections, [B, T, G H]; overwritten during the pass.
            c: the first cell state, [B, H].
        """

    @abstractmethod
    def forward(
        self, m: Any, t: int, n: int, h: Tensor, c: Tensor, hh: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Take one step with the first n samples.

        Args:
            m: the memory; step t is filled in.
            t: the step.
            n: samples that are long enough for it.
            h: h_{t-1}, [n, P].
            c: cell states, [B, H]; the first n are updated in place, where there are any.
            hh: U, [G H, P].
            bias: of U's product, [G H], or None.

        Returns:
            the next hidden state, before a projection, [n, H].
        """

    @abstractmethod
    def gradients(self, m: Any) -> GateGradients:
        """Make buffers for the gradients, and compute whatever can be for all steps at once.

        Args:
            m: the memory after the forward pass.

        Returns:
            gradients still at 0, [B, T, G H] each; one buffer for both where they are equal.
        """

    @abstractmethod
    def backward(
        self, m: Any, into: GateGradients, t: int, n: int, d_h: Tensor, d_c: Tensor, hh: Tensor
    ) -> Tensor:
        """Fill step t of `into`.

        Args:
            m: the memory, as `gradients` left it.
            into: the buffers.
            t: the step.
            n: samples that are long enough for it.
            d_h: gradient by the hidden state before a projection, [n, H].
            d_c: gradient by the cell states, [B, H]; the first n are updated in place.
            hh: U, [G H, P].

        Returns:
            the gradient by h_{t-1}, [n, P].
        """


@dataclass
class _LSTMMemory:
    gates: Tensor  # i, f, g, o after their nonlinearities, [B, T, 4, H]
    before: Tensor  # c_{t-1}, [B, T, H]
    tanh: Tensor  # tanh c_t, [B, T, H]
    by_cell: Tensor | None = None
    by_output: Tensor | None = None
    leak: Tensor | None = None

    def unprojected(self) -> Tensor:
        """Hidden states before a projection, [B, T, H]."""
        return self.gates[:, :, 3] * self.tanh


class LSTM(RecurrentCell):
    """c_t = f c_{t-1} + i g, h_t = o tanh c_t."""

    def memory(self, gates: Tensor, c: Tensor) -> _LSTMMemory:
        rows, length = gates.shape[:2]
        space = gates.new_zeros(2, rows, length, c.shape[1])
        return _LSTMMemory(gates.view(rows, length, 4, -1), space[0], space[1])

    def forward(
        self, m: _LSTMMemory, t: int, n: int, h: Tensor, c: Tensor, hh: Tensor, bias: Tensor | None
    ) -> Tensor:
        gates = m.gates[:n, t]
        gates += F.linear(h, hh, bias).view_as(gates)
        gates[:, :2].sigmoid_()
        gates[:, 2].tanh_()
        gates[:, 3].sigmoid_()
        m.before[:n, t] = c[:n]
        c[:n].mul_(gates[:, 1]).addcmul_(gates[:, 0], gates[:, 2])
        torch.tanh(c[:n], out=m.tanh[:n, t])
        return gates[:, 3] * m.tanh[:n, t]

    def gradients(self, m: _LSTMMemory) -> GateGradients:
        i, f, g, o = m.gates.unbind(2)
        m.by_cell = torch.stack([g * i * (1 - i), m.before * f * (1 - f), i * (1 - g * g)], 2)
        m.by_output = m.tanh * o * (1 - o)
        m.leak = o * (1 - m.tanh * m.tanh)
        both = m.gates.new_zeros(*m.gates.shape[:2], m.gates.shape[2] * m.gates.shape[3])
        return GateGradients(both, both)

    def backward(
        self,
        m: _LSTMMemory,
        into: GateGradients,
        t: int,
        n: int,
        d_h: Tensor,
        d_c: Tensor,
        hh: Tensor,
    ) -> Tensor:
        assert m.by_cell is not None
        assert m.by_output is not None
        assert m.leak is not None
        cell, row = d_c[:n], into.input[:n, t]
        cell.addcmul_(d_h, m.leak[:n, t])
        parts = row.view(n, 4, -1)
        torch.mul(cell.unsqueeze(1), m.by_cell[:n, t], out=parts[:, :3])
        torch.mul(d_h, m.by_output[:n, t], out=parts[:, 3])
        cell.mul_(m.gates[:n, t, 1])
        return row @ hh


@dataclass
class _GRUMemory:
    gates: Tensor  # r, z, n after their nonlinearities, [B, T, 3, H]
    hidden: Tensor  # the hidden part of n's pre-activation, [B, T, H]
    before: Tensor  # h_{t-1}


class GRU(RecurrentCell):
    """n = tanh(W x + r (U h_{t-1} + b)), h_t = (1 - z) n + z h_{t-1}."""

    def memory(self, gates: Tensor, c: Tensor) -> _GRUMemory:
        rows, length = gates.shape[:2]
        space = gates.new_zeros(2, rows, length, c.shape[1])
        return _GRUMemory(gates.view(rows, length, 3, -1), space[0], space[1])

    def forward(
        self, m: _GRUMemory, t: int, n: int, h: Tensor, c: Tensor, hh: Tensor, bias: Tensor | None
    ) -> Tensor:
        gates, hidden = m.gates[:n, t], F.linear(h, hh, bias).view(n, 3, -1)
        m.hidden[:n, t], m.before[:n, t] = hidden[:, 2], h
        gates[:, :2] += hidden[:, :2]
        gates[:, :2].sigmoid_()
        gates[:, 2].addcmul_(gates[:, 0], hidden[:, 2]).tanh_()
        return torch.lerp(gates[:, 2], h, gates[:, 1])

    def gradients(self, m: _GRUMemory) -> GateGradients:
        shape = (*m.gates.shape[:2], m.gates.shape[2] * m.gates.shape[3])
        return GateGradients(m.gates.new_zeros(shape), m.gates.new_zeros(shape))

    def backward(
        self,
        m: _GRUMemory,
        into: GateGradients,
        t: int,
        n: int,
        d_h: Tensor,
        d_c: Tensor,
        hh: Tensor,
    ) -> Tensor:
        r, z, new = m.gates[:n, t].unbind(1)
        row, hidden = into.input[:n, t].view(n, 3, -1), into.hidden[:n, t].view(n, 3, -1)
        d_new = d_h * (1 - z) * (1 - new * new)
        row[:, 0] = d_new * m.hidden[:n, t] * r * (1 - r)
        row[:, 1] = d_h * (m.before[:n, t] - new) * z * (1 - z)
        row[:, 2] = d_new
        hidden[:, :2] = row[:, :2]
        hidden[:, 2] = d_new * r
        return torch.addmm(d_h * z, into.hidden[:n, t], hh)


class RNN(RecurrentCell):
    """h_t = act(W x + U h_{t-1} + b)."""

    def __init__(self, relu: bool = False) -> None:
        self.relu = relu

    def memory(self, gates: Tensor, c: Tensor) -> Tensor:
        return gates

    def forward(
        self, m: Tensor, t: int, n: int, h: Tensor, c: Tensor, hh: Tensor, bias: Tensor | None
    ) -> Tensor:
        gates = m[:n, t]
        gates += F.linear(h, hh, bias)
        return (gates.relu_() if self.relu else gates.tanh_()).clone()

    def gradients(self, m: Tensor) -> GateGradients:
        both = torch.zeros_like(m)
        return GateGradients(both, both)

    def backward(
        self, m: Tensor, into: GateGradients, t: int, n: int, d_h: Tensor, d_c: Tensor, hh: Tensor
    ) -> Tensor:
        active = m[:n, t]
        slope = (active > 0).to(active.dtype) if self.relu else 1 - active * active
        into.input[:n, t] = d_h * slope
        return into.input[:n, t] @ hh


CELLS: dict[str, Any] = {
    "LSTM": LSTM,
    "GRU": GRU,
    "RNN_TANH": RNN,
    "RNN_RELU": lambda: RNN(relu=True),
}
