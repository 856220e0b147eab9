"""What a substitute forward pass (`layers/substitutes.py`) tells its watcher through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from dpclip.per_sample.factored import Factored

if TYPE_CHECKING:
    from dpclip.per_sample.watch import Watcher


class Recording:
    """The recorder of one module."""

    def __init__(self, watcher: Watcher, module: nn.Module) -> None:
        self._watcher, self._module = watcher, module

    @property
    def rows(self) -> int:
        return self._watcher.rows

    @property
    def anchor(self) -> Tensor:
        return self._watcher.anchor

    def __call__(self, parameter: nn.Parameter, use: Factored) -> None:
        self._watcher.take_in(self._module, parameter, use)
