"""Checks that the per-sample gradients of a pass add up to what autograd computes.

A parameter used outside its layer, or through a hook of another library, has a gradient that no
watched layer knows. Both sums are compared through a few random projections, so that they need not
be kept side by side; autograd's gradients are projected and freed one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dpclip.errors import BatchDimensionError
from dpclip.per_sample.view import FactoredView
from dpclip.precision import accumulation_dtype

_PROBES = 8
_WIDTH = 1024


class SumCheck:
    """Collects projections of autograd's gradients during one backward pass.

    Args:
        parameters: the trainable parameters, in order; their `.grad` is emptied.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._probes: list[Tensor | None] = [None] * len(self._parameters)
        self._handles = [
            parameter.register_post_accumulate_grad_hook(self._collector(slot))
            for slot, parameter in enumerate(self._parameters)
            if parameter.requires_grad
        ]

    def _collector(self, slot: int) -> Callable[[Tensor], None]:
        def collect(parameter: Tensor) -> None:
            if parameter.grad is None:
                return
            probes = _project(parameter.grad)
            known = self._probes[slot]
            self._probes[slot] = probes if known is None else known + probes
            parameter.grad = None

        return collect

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def compare(self, view: FactoredView, name: Callable[[nn.Parameter], str]) -> None:
        """Compare the view's sums with autograd's.

        Args:
            view: complete.
            name: a parameter -> its name, for messages.

        Raises:
            BatchDimensionError: names the parameter whose sum differs.
        """
        sizes = [view.size_of(slot) for slot in range(len(self._parameters))]
        whole = sum(size**2 for size in sizes) ** 0.5
        for slot, (parameter, probes, size) in enumerate(
            zip(self._parameters, self._probes, sizes, strict=True)
        ):
            if probes is None or not bool(probes.isfinite().all()):
                continue
            if not view.saw(slot):
                raise unseen(name(parameter))
            found = _project(view.sum_of(slot, parameter))
            gap = float((found - view.scale * probes).square().mean().sqrt())
            tolerance = 5e-2 if view.narrow else 1e-3
            # Some gradients are zero but for rounding (a key's bias, say): they are held to the
            # whole gradient's scale.
            if gap > tolerance * size + tolerance * 1e-2 * whole:
                raise BatchDimensionError(
                    f"the per-sample gradients of {name(parameter)} do not add up to autograd's "
                    "gradient: it is also used outside its layer, or a hook of another library "
                    "interferes; freeze it or untie it"
                )


def unseen(name: str) -> BatchDimensionError:
    """Make the error for a parameter with a gradient that no layer recorded.

    Args:
        name: of the parameter.
    """
    return BatchDimensionError(
        f"{name} got a gradient outside every watched layer (used directly in a forward "
        "function?): freeze it or wrap its use in a module"
    )


def _project(gradient: Tensor) -> Tensor:
    """Project on fixed random rank-one patterns, shape [probes], float64.

    The mean square of the products is about |g|^2.
    """
    flat = gradient.detach().to(accumulation_dtype(gradient.dtype)).reshape(-1)
    generator = torch.Generator().manual_seed(len(flat))
    columns = _uniform(_WIDTH, generator).to(flat)
    count = -(-len(flat) // _WIDTH)
    rows = _uniform(count, generator).to(flat)
    whole = len(flat) // _WIDTH
    found = (flat[: whole * _WIDTH].view(whole, _WIDTH) @ columns * rows[:whole]).sum(
        0, dtype=torch.float64
    )
    rest = flat[whole * _WIDTH :]
    if len(rest):
        found += (rest @ columns[: len(rest)] * rows[-1]).to(torch.float64)
    return found.cpu()


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    """Draw [count, probes] numbers of mean 0 and variance 1."""
    return (torch.rand(count, _PROBES, generator=generator) - 0.5) * 12**0.5
