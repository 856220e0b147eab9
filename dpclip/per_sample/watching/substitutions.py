"""Replaces the forward pass of layers that hide their products, while a pass is watched."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dpclip.per_sample.forms.factored import Factored
from dpclip.per_sample.layers.substitutes import substitute_for
from dpclip.per_sample.watching.recording import Recording


class Substitutions:
    """The modules of a model that have a substitute (`layers/substitutes.py`)."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self.modules: list[nn.Module] = []

    def cover(self, module: nn.Module) -> bool:
        """Take charge of a module, if its type has a substitute.

        Args:
            module: any module.

        Returns:
            whether it has one.
        """
        if substitute_for(module) is None:
            return False
        self.modules.append(module)
        return True

    def put_in(self) -> None:
        """Replace the forward pass, on the module objects only.

        Outside of what is watched they compute as before.
        """
        for module in self.modules:
            self._replace(module)

    def take_out(self) -> None:
        """Give the modules their own forward pass back."""
        for module in self.modules:
            module.__dict__.pop("forward", None)

    def _replace(self, module: nn.Module) -> None:
        substitute, recording = substitute_for(module), self._recording
        assert substitute is not None
        plain, watched = module.forward, substitute(module, _Recorder(recording, module))

        def forward(*args: Any, **kwargs: Any) -> Any:
            return (watched if recording.active else plain)(*args, **kwargs)

        module.forward = forward


class _Recorder:
    """What a substitute hands its gradients to."""

    def __init__(self, recording: Recording, module: nn.Module) -> None:
        self._recording, self._module = recording, module

    @property
    def rows(self) -> int:
        return self._recording.rows

    @property
    def anchor(self) -> Tensor:
        return self._recording.anchor

    def __call__(self, parameter: nn.Parameter, use: Factored) -> None:
        self._recording.take_in(self._module, parameter, use)
