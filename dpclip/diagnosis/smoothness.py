"""How smooth a loss is along an optimizer's way, and whether that grows with the gradient.

Reference: Zhang, He, Sra, Jadbabaie, "Why gradient clipping accelerates training", 2020 (arXiv
1905.11881).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpclip.diagnosis.smoothness_fit import SmoothnessFit, SmoothnessRecord, draw, fit_line
from dpclip.errors import InputError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

__all__ = ["SmoothnessFit", "SmoothnessProbe", "SmoothnessRecord"]

INTERIOR = tuple(k / 6 for k in range(1, 6))


class SmoothnessProbe:
    """Estimates max over alpha of ||grad(x + alpha d) - grad(x)|| / ||alpha d||.

    d is the step that was taken.

    **Not private.** The numbers are exact functions of the batch that the probe is given. In a
    private run that batch must be public: what is measured on private records is not covered by the
    run's guarantee.

    Args:
        loss: returns the loss on a fixed public batch; gradients are taken with
            `torch.autograd.grad`, and no `.grad` changes.
        gradient_of: instead of `loss`, zeroes the gradients and runs backward on a fixed public
            batch. Gradients of the optimizer's parameters are put back afterwards; those of other
            parameters are the caller's business.
        every: optimizer steps from one measurement to the next; the first step is measured.
        alphas: points of the way, above 0 and at most 1; by default five evenly spaced inner ones.
        module: its buffers (running statistics) are put back after a measurement.

    Raises:
        InputError: both or none of `loss` and `gradient_of`, `every` below 1, an alpha outside (0,
            1].

    A measurement costs 1 + len(alphas) gradients and three copies of the parameters. Afterwards
    parameters, gradients, buffers and the random states of Python, NumPy, the CPU and the
    parameters' CUDA devices are what they were, bit for bit; all gradients of one measurement are
    computed from the same random state, so dropout drops the same units. Do not compute them
    through a model that per-sample gradients are being recorded of: its hooks would see the public
    batch too.

    ||alpha d|| is the distance really gone, after rounding in the parameters' precision. A step
    that moves nothing, or a gradient that is not finite, makes no record and adds to `left_out`.

    What is measured also depends on the optimizer: descent with step h often settles where the
    smoothness is 2 / h, and clipping makes 2 / h proportional to the gradient norm. A correlation
    alone does not show a property of the loss.

    Example:
        with probe.attached(optimizer):
            train()
        probe.figure("smoothness.svg")
    """

    def __init__(
        self,
        loss: Callable[[], Tensor] | None = None,
        *,
        gradient_of: Callable[[], None] | None = None,
        every: int = 10,
        alphas: Sequence[float] = INTERIOR,
        module: nn.Module | None = None,
    ) -> None:
        if (loss is None) == (gradient_of is None):
            raise InputError(
                f"the probe has {'no' if loss is None else 'two'} sources of gradients; give loss "
                "or gradient_of"
            )
        if every < 1:
            raise InputError(
                f"every is {every}, below 1; give the number of steps between measurements"
            )
        if not alphas or not all(0 < alpha <= 1 for alpha in alphas):
            raise InputError(
                f"alphas are {list(alphas)}, not all in (0, 1]; give points of the way, such as 0.5"
            )
        self.loss, self.gradient_of, self.every, self.module = loss, gradient_of, every, module
        self.alphas = tuple(alphas)
        self.records: list[SmoothnessRecord] = []
        self.steps = self.left_out = 0
        self._hooks: list[RemovableHandle] = []
        self._before: list[Tensor] = []

    # --- attaching --------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Measure this optimizer's steps from now on.

        Args:
            optimizer: hooked until `detach`.

        Raises:
            InputError: the probe is attached already.
        """
        if self._hooks:
            raise InputError("the probe is attached already; detach it first, or make another")
        self._hooks = [
            optimizer.register_step_pre_hook(lambda owner, *_: self._remember(owner)),
            optimizer.register_step_post_hook(lambda owner, *_: self._look_back(owner)),
        ]

    def detach(self) -> None:
        """Measure no more; the records stay."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before = [], []

    @contextmanager
    def attached(self, optimizer: Optimizer) -> Iterator[SmoothnessProbe]:
        """Measure this optimizer's steps within the block.

        Args:
            optimizer: hooked for as long.

        Raises:
            InputError: the probe is attached already.
        """
        self.attach(optimizer)
        try:
            yield self
        finally:
            self.detach()

    def _remember(self, optimizer: Optimizer) -> None:
        due = self.steps % self.every == 0
        self._before = [p.detach().clone() for p in _parameters(optimizer)] if due else []

    def _look_back(self, optimizer: Optimizer) -> None:
        step, before = self.steps, self._before
        self.steps, self._before = self.steps + 1, []
        if not before:
            return
        kept = _Snapshot.of(_parameters(optimizer), self.module)
        try:
            with torch.enable_grad():
                norm, smoothness = self._measure(kept, before)
        finally:
            kept.put_back()
        if math.isfinite(norm) and math.isfinite(smoothness):
            self.records.append(SmoothnessRecord(step, norm, smoothness))
        else:
            self.left_out += 1

    # --- measuring --------------------------------------------------------------------------------

    def _measure(self, kept: _Snapshot, before: list[Tensor]) -> tuple[float, float]:
        """Return the gradient norm at the beginning of the step and the largest quotient.

        NaN where nothing moved.
        """
        kept.move(before, 0.0)
        first = self._gradient(kept)
        quotients = []
        for alpha in self.alphas:
            kept.move(before, alpha)
            distance = _distance(kept.parameters, before)
            if distance > 0:
                quotients.append(_distance(self._gradient(kept), first) / distance)
        norm = _distance(first, [torch.zeros_like(g) for g in first])
        # NumPy's maximum does not lose a NaN
        return norm, float(np.max(quotients)) if quotients else math.nan

    def _gradient(self, kept: _Snapshot) -> list[Tensor]:
        kept.restore_random()
        if self.loss is not None:
            found = torch.autograd.grad(self.loss(), kept.parameters, allow_unused=True)
            return [
                torch.zeros_like(p) if g is None else g
                for p, g in zip(kept.parameters, found, strict=True)
            ]
        for p in kept.parameters:
            p.grad = None
        if self.gradient_of is not None:
            self.gradient_of()
        # Cloned, because gradient_of may keep its gradient tensors and fill them again.
        return [
            torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
            for p in kept.parameters
        ]

    # --- results ----------------------------------------------------------------------------------

    def fit(self) -> SmoothnessFit:
        """Least-squares L0 and L1, neither below 0, over all records.

        Raises:
            InputError: fewer than two records.
        """
        return fit_line(self.records)

    def to_json(self) -> str:
        """Return settings, records and, from two records on, the fit, as JSON text."""
        fit = (
            {k: None if math.isnan(v) else v for k, v in asdict(self.fit()).items()}
            if len(self.records) > 1
            else None
        )
        found: dict[str, Any] = {
            "every": self.every,
            "alphas": self.alphas,
            "left_out": self.left_out,
            "fit": fit,
        }
        return json.dumps({**found, "records": [asdict(r) for r in self.records]}, indent=1)

    def figure(self, path: str | Path) -> None:
        """Draw smoothness against gradient norm on log axes, coloured by step, with the line.

        Args:
            path: of the figure, `.svg` or `.png`.

        Raises:
            InputError: fewer than two records, or another suffix.
        """
        if Path(path).suffix not in (".svg", ".png"):
            raise InputError(f"{Path(path).name} is neither .svg nor .png; choose one of these")
        draw(self.records, self.fit(), Path(path))


# --- the state of a run ---------------------------------------------------------------------------


@dataclass
class _Snapshot:
    """What a measurement changes for a while."""

    parameters: list[Tensor]
    after: list[Tensor]
    gradients: list[Tensor | None]
    buffers: list[tuple[Tensor, Tensor]]
    restore_random: Callable[[], None]

    @classmethod
    def of(cls, parameters: list[Tensor], module: nn.Module | None) -> _Snapshot:
        buffers = [(b, b.detach().clone()) for b in module.buffers()] if module is not None else []
        after = [p.detach().clone() for p in parameters]
        return cls(
            parameters,
            after,
            [p.grad for p in parameters],
            buffers,
            _random_state({p.device for p in parameters}),
        )

    @torch.no_grad()
    def move(self, before: list[Tensor], alpha: float) -> None:
        """Go to the point alpha of the way."""
        torch._foreach_copy_(self.parameters, torch._foreach_lerp(before, self.after, alpha))

    @torch.no_grad()
    def put_back(self) -> None:
        self.restore_random()
        for p, value, gradient in zip(self.parameters, self.after, self.gradients, strict=True):
            p.copy_(value)
            p.grad = gradient
        for buffer, value in self.buffers:
            buffer.copy_(value)


def _random_state(devices: set[torch.device]) -> Callable[[], None]:
    """Return a function that sets all random states to what they are now."""
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = {device: torch.cuda.get_rng_state(device) for device in devices if device.type == "cuda"}

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        for device, state in cuda.items():
            torch.cuda.set_rng_state(state, device)

    return restore


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


@torch.no_grad()
def _distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """L2 distance over all tensors, in float64."""
    parts = [
        torch.linalg.vector_norm(a.double() - b.double()) for a, b in zip(ours, theirs, strict=True)
    ]
    return math.hypot(*(torch.stack([part.to(parts[0].device) for part in parts]).tolist()))
