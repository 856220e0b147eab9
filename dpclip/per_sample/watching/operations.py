"""Watches the one operation inside a layer that refines a known one.

Embeddings that scale or shift (Gemma, OPT), say. Whatever the layer does around the operation is
left to autograd, so no per-sample gradient needs to be written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from dpclip.per_sample.watching.recording import Recording

OPERATIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Embedding: F.embedding,
    nn.Linear: F.linear,
}


class Operations:
    """Opens a watch on entry to a layer and closes it on exit."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._open: list[_Watch] = []

    def attach(self, module: nn.Module, kind: type[nn.Module]) -> list[RemovableHandle]:
        """Hook a layer whose type refines a known one.

        Args:
            module: the layer.
            kind: the known type, a key of `OPERATIONS`.

        Returns:
            what removes the hooks again.
        """

        def enter(*_: Any) -> None:
            if self._recording.active:
                self._open.append(_Watch(self._recording, module, kind))
                self._open[-1].__enter__()

        def leave(*_: Any) -> None:
            if self._open and self._open[-1].module is module:
                self._open.pop().__exit__(None, None, None)

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def clear(self) -> None:
        """Close what a forward pass that failed has left open."""
        while self._open:
            self._open.pop().__exit__(None, None, None)


class _Watch(TorchFunctionMode):
    def __init__(self, recording: Recording, module: nn.Module, kind: type[nn.Module]) -> None:
        super().__init__()
        self.module = module
        self._recording, self._kind, self._operation = recording, kind, OPERATIONS[kind]

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not self._operation or len(args) < 2 or args[1] is not self.module.weight:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            (inputs,), _ = self._recording.expand(self.module, args[:1], {}) or (args[:1], {})
            out = func(inputs, *args[1:], **kwargs)
            return self._recording.watch_as(self._kind, self.module, (inputs,), {}, out)
