"""How far an update moved the weights.

They are made of released gradients alone, so this is post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dpclip.clipping.control.coordinates import every_nth, sampling_stride


class Movement:
    """Remembers weights and tells what became of them.

    Args:
        parameters: as they are before the update.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._stride = sampling_stride([p.numel() for p in parameters])
        self._before = [self._looked_at(p).clone() for p in parameters]

    def _looked_at(self, parameter: Tensor) -> Tensor:
        return every_nth(parameter.detach().reshape(-1), self._stride)

    def lengths(self) -> list[float]:
        """Of each parameter's change since the construction: its root mean square times
        sqrt(smaller dimension).

        For a change that is alike in all directions, as noise is, that is by how much a layer
        changes what it makes of inputs of size 1, whatever its width.
        """
        changes = [
            self._looked_at(p) - before
            for p, before in zip(self._parameters, self._before, strict=True)
        ]
        squares = torch.stack([change.square().mean() for change in changes]).tolist()
        return [math.sqrt(s * _width(p)) for s, p in zip(squares, self._parameters, strict=True)]


def _width(parameter: Tensor) -> int:
    """The smaller dimension of a matrix; kernels are matrices of as many rows as they have
    outputs.
    """
    return min(len(parameter), parameter.numel() // len(parameter)) if parameter.dim() > 1 else 1
