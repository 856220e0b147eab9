"""AdaGrad and Adam with a step size a coordinate, clipped by norm, with and without delay."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from dpclip.optim.adaptive import AdaGradSettings, AdamSettings, Adaptive, eta_of
from dpclip.optim.measured import Share


class _CoordinateAdaptive(Adaptive):
    """b^2 is a tensor like the parameter, in float32 for parameters of 16 bits."""

    @abstractmethod
    def _accumulate_(
        self, group: dict[str, Any], b_squared: list[Tensor], clipped: list[Tensor]
    ) -> None:
        """Feed the clipped gradients to b^2, in place."""

    def _update(self, share: Share) -> None:
        if not share.parameters:
            return
        group, beta1 = share.group, self._beta1(share.group)
        clipped, b_squared = share.clipped(), self._b_squared(share)
        if group["delayed"]:
            divisors = torch._foreach_sqrt(b_squared)
            self._accumulate_(group, b_squared, clipped)
        else:
            self._accumulate_(group, b_squared, clipped)
            divisors = torch._foreach_sqrt(b_squared)
        # Where b^2 has decayed to 0, the least square that is a normal number stands in for it.
        torch._foreach_clamp_min_(divisors, [torch.finfo(d.dtype).tiny ** 0.5 for d in divisors])
        direction = self._averaged(share, clipped, beta1) if beta1 else clipped
        torch._foreach_add_(
            share.parameters, torch._foreach_div(direction, divisors), alpha=-float(group["lr"])
        )

    def _b_squared(self, share: Share) -> list[Tensor]:
        for p, g in zip(share.parameters, share.gradients, strict=True):
            if "b_squared" not in self.state[p]:
                self.state[p]["b_squared"] = torch.full_like(g, float(share.group["b0"]) ** 2)
        return [self.state[p]["b_squared"] for p in share.parameters]


class ClipAdaGrad(AdaGradSettings, _CoordinateAdaptive):
    """`ClipAdaGradNorm` by coordinates: b_t^2 = b_{t-1}^2 + eta c_t^2, x <- x - lr m_t / b_t.

    Args:
        params: parameters or groups of them; every setting may differ between groups.
        lr: gamma in the paper.
        max_norm: L2 norm beyond which the gradient is clipped, before it is squared; None or
            infinity: unclipped.
        b0: b of every coordinate before the first step, positive. The default is ours.
        eta: weight of a squared gradient in b^2, or "reweighted": lr^2.
        momentum: beta1 of m_t = beta1 m_{t-1} + (1 - beta1) c_t; 0: m_t = c_t.
        delayed: divide by b_{t-1}, which does not know the gradient that is stepped with.
        clip: "global": by the norm over all parameters; "tensor": every tensor by its own.
        nonfinite: what a gradient that is not finite does: "skip" the whole step, "raise", or
            "pass" into it.

    Raises:
        InputError: a setting out of range, or a sparse or complex gradient.
        FloatingPointError: in `step`, with `nonfinite="raise"`.

    Reference: Chezhegov et al. 2025 (arXiv 2406.04443).
    """

    def _accumulate_(
        self, group: dict[str, Any], b_squared: list[Tensor], clipped: list[Tensor]
    ) -> None:
        torch._foreach_addcmul_(b_squared, clipped, clipped, value=eta_of(group))


class ClipAdam(AdamSettings, _CoordinateAdaptive):
    """`ClipAdamNorm` by coordinates: b_t^2 = beta2 b_{t-1}^2 + (1 - beta2) c_t^2.

    x <- x - lr m_t / b_t.

    Args:
        params: parameters or groups of them; every setting may differ between groups.
        lr: gamma in the paper.
        betas: beta1 of m_t = beta1 m_{t-1} + (1 - beta1) c_t, and beta2.
        max_norm: L2 norm beyond which the gradient is clipped, before it is squared; None or
            infinity: unclipped.
        b0: b of every coordinate before the first step, positive; by default the square root of
            1e-5.
        delayed: divide by b_{t-1}.
        clip: as in `ClipAdaGrad`.
        nonfinite: as in `ClipAdaGrad`.

    Raises:
        InputError: a setting out of range, or a sparse or complex gradient.
        FloatingPointError: in `step`, with `nonfinite="raise"`.

    Unlike `torch.optim.Adam` neither moment is corrected for its beginning and nothing is added to
    b.

    Edge cases: b of a coordinate shrinks while its gradient is 0; after that a delayed step is
    long.

    Reference: as `ClipAdaGrad`.
    """

    def _accumulate_(
        self, group: dict[str, Any], b_squared: list[Tensor], clipped: list[Tensor]
    ) -> None:
        beta2 = group["betas"][1]
        torch._foreach_mul_(b_squared, beta2)
        torch._foreach_addcmul_(b_squared, clipped, clipped, value=1 - beta2)
