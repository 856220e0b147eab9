"""Gradient descent whose step length depends on the gradient's norm: clipped and normalized."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dpclip.checks import fraction, not_negative, threshold
from dpclip.optim.measured import TINY, MeasuredOptimizer, Share, clip_factor


class _Descent(MeasuredOptimizer):
    """x <- x - lr buf, buf <- momentum buf + factor g + weight_decay x."""

    @abstractmethod
    def _factor(self, group: dict[str, Any], norm: float) -> float: ...

    def _check(self, group: dict[str, Any]) -> None:
        fraction("momentum", group["momentum"])
        not_negative("weight_decay", group["weight_decay"])

    def _update(self, share: Share) -> None:
        if not share.parameters:
            return
        lr, decay, momentum = (
            float(share.group[key]) for key in ("lr", "weight_decay", "momentum")
        )
        if decay == 0 and momentum == 0 and not share.per_tensor:
            torch._foreach_add_(share.parameters, share.gradients, alpha=-lr * share.factors[0])
            return
        direction = share.clipped()
        if decay:
            direction = list(torch._foreach_add(direction, share.parameters, alpha=decay))
        if momentum:
            direction = self._averaged(share.parameters, direction, momentum)
        torch._foreach_add_(share.parameters, direction, alpha=-lr)

    def _averaged(
        self, parameters: list[Tensor], direction: list[Tensor], momentum: float
    ) -> list[Tensor]:
        """Return the buffers after this step.

        The first direction of a parameter is its first buffer, as in torch.
        """
        key = "momentum_buffer"
        begun = [i for i, p in enumerate(parameters) if key in self.state[p]]
        if begun:
            buffers = [self.state[parameters[i]][key] for i in begun]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, [direction[i] for i in begun])
        for i in set(range(len(parameters))).difference(begun):
            self.state[parameters[i]][key] = direction[i].clone()
        return [self.state[p][key] for p in parameters]


class ClippedSGD(_Descent):
    """x <- x - h g with h = min(lr, lr max_norm / ||g||), g the gradient over all parameters.

    Args:
        params: parameters or groups of them; every setting may differ between groups.
        lr: step size of a gradient that is not clipped.
        max_norm: norm of the gradient beyond which it is clipped, in the gradient's units; None or
            infinity: never.
        momentum: of the clipped gradients, as in `torch.optim.SGD`; 0 is the paper's.
        weight_decay: added to the clipped gradient, as after `clip_grad_norm_`.
        nonfinite: what a gradient that is not finite does: "skip" the whole step, "raise", or
            "pass" into it.

    Raises:
        InputError: a setting out of range, or a sparse or complex gradient.
        FloatingPointError: in `step`, with `nonfinite="raise"`.

    In the paper's notation lr is eta_c and max_norm is gamma: h = min(eta_c, gamma eta_c / ||g||).
    Unclipped it is `torch.optim.SGD`, bit for bit in float32 and float64.

    Reference: Zhang, He, Sra, Jadbabaie, "Why gradient clipping accelerates training", 2020 (arXiv
    1905.11881).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        max_norm: float | None = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nonfinite: str = "skip",
    ) -> None:
        settings = {"max_norm": max_norm, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **settings, "nonfinite": nonfinite})

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        threshold("max_norm", group["max_norm"])

    def _factor(self, group: dict[str, Any], norm: float) -> float:
        return clip_factor(norm, group["max_norm"])


class NormalizedSGD(_Descent):
    """x <- x - h g with h = lr / (||g|| + beta), g the gradient over all parameters.

    Args:
        params: parameters or groups of them; every setting may differ between groups.
        lr: length of a step where the gradient is much longer than beta.
        beta: in the gradient's units; gradients much shorter than this are scaled by lr / beta.
        momentum: of the normalized gradients; 0 is the paper's.
        weight_decay: added to the normalized gradient.
        nonfinite: as in `ClippedSGD`.

    Raises:
        InputError: a setting out of range, or a sparse or complex gradient.
        FloatingPointError: in `step`, with `nonfinite="raise"`.

    Edge cases: with beta = 0 a zero gradient has no direction and moves nothing; one shorter than
    1e-30 is scaled less than to length 1, so that no product overflows.

    h is within a factor 2 of `ClippedSGD(lr=lr / beta, max_norm=beta)`'s.

    Reference: as `ClippedSGD`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        beta: float = 0.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nonfinite: str = "skip",
    ) -> None:
        settings = {"beta": beta, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {"lr": lr, **settings, "nonfinite": nonfinite})

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        not_negative("beta", group["beta"])

    def _factor(self, group: dict[str, Any], norm: float) -> float:
        return 1.0 / max(norm + group["beta"], TINY)
