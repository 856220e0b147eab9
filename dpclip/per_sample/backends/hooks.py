"""Per-sample gradients written out layer by layer during the backward pass.

By Opacus' grad samplers or torch.func.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dpclip.per_sample.forms.factored import Dense
from dpclip.per_sample.layers.samplers import sampler_for
from dpclip.per_sample.view import BACKENDS, FactoredView
from dpclip.per_sample.watching.calls import Call
from dpclip.per_sample.watching.watcher import Watcher


@BACKENDS.named("hooks")
class HooksBackend(Watcher):
    """Materialises every per-sample gradient; autograd computes the batch's own besides."""

    def record(self, view: FactoredView, call: Call, grad: Tensor) -> None:
        """Write a call's gradients out.

        Args:
            view: that is open.
            call: of a layer with a sampler.
            grad: gradient of the user's loss by the call's output, [rows, ...].
        """
        sampler = sampler_for(call.layer)
        assert sampler is not None
        for parameter, samples in sampler(call.layer, call.tensors, grad).items():
            self.recording.take(view, call, parameter, Dense(samples))


@BACKENDS.named("functorch")
def functorch_backend(*args: Any, **settings: Any) -> HooksBackend:
    """Compute every layer by torch.func, none by a registered sampler."""
    return HooksBackend(*args, **settings, force_functorch=True)
