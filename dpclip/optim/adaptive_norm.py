"""AdaGrad and Adam with one scalar step size, clipped, with and without delay."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch

from dpclip.optim.adaptive import AdaGradSettings, AdamSettings, Adaptive, eta_of
from dpclip.optim.measured import TINY, Share


class _NormAdaptive(Adaptive):
    """The scalar b is a float.

    It is kept in the group where groups are clipped together, else in each tensor's state.
    """

    @abstractmethod
    def _next(self, group: dict[str, Any], b: float, length: float) -> float:
        """Return b after a clipped gradient of that length."""

    def _update(self, share: Share) -> None:
        before, after = self._advance(share)
        if not share.parameters:
            return
        lr, beta1 = float(share.group["lr"]), self._beta1(share.group)
        divisors = before if share.group["delayed"] else after
        rates = [-lr / max(b, TINY) for b in divisors]
        if beta1 == 0:  # the clip factor goes into the rate: no tensor is made
            direction, rates = (
                share.gradients,
                [r * f for r, f in zip(rates, share.factors, strict=True)],
            )
        else:
            direction = self._averaged(share, share.clipped(), beta1)
        if share.per_tensor:
            torch._foreach_add_(share.parameters, torch._foreach_mul(direction, rates))
        else:
            torch._foreach_add_(share.parameters, direction, alpha=rates[0])

    def _advance(self, share: Share) -> tuple[list[float], list[float]]:
        """Return b before and after this step, one for each parameter."""
        group, count = share.group, len(share.parameters)
        if not share.per_tensor:
            before = float(group.get("b", group["b0"]))
            group["b"] = self._next(group, before, share.together)
            return [before] * count, [group["b"]] * count
        befores = [float(self.state[p].get("b", group["b0"])) for p in share.parameters]
        lengths = [f * n for f, n in zip(share.factors, share.norms, strict=True)]
        afters = [self._next(group, b, length) for b, length in zip(befores, lengths, strict=True)]
        for p, b in zip(share.parameters, afters, strict=True):
            self.state[p]["b"] = b
        return befores, afters


class ClipAdaGradNorm(AdaGradSettings, _NormAdaptive):
    """Clip-M-AdaGrad-Norm: x <- x - lr m_t / b_t, b_t^2 = b_{t-1}^2 + eta ||c_t||^2.

    c_t is the clipped gradient.

    Args:
        params: parameters or groups of them; every setting may differ between groups.
        lr: gamma in the paper.
        max_norm: lambda in the paper, in the gradient's units; None or infinity: unclipped.
        b0: b before the first step, positive, in the gradient's units times sqrt(eta). The default
            is ours.
        eta: weight of a gradient in b; "reweighted": lr^2, after which lr acts through b0 / lr
            only.
        momentum: beta1 of m_t = beta1 m_{t-1} + (1 - beta1) c_t; 0: m_t = c_t.
        delayed: divide by b_{t-1}, which does not know the gradient that is stepped with
            (AdaGradD).
        clip: "global": one norm and one b for all parameters; "tensor": one of each for every
            tensor, as in the paper's fine-tuning experiments.
        nonfinite: what a gradient that is not finite does: "skip" the whole step, "raise", or
            "pass" into it.

    Raises:
        InputError: a setting out of range, or a sparse or complex gradient.
        FloatingPointError: in `step`, with `nonfinite="raise"`.

    The published code of the delayed version steps with the previous gradient; this steps with the
    current one, as the paper's algorithm does.

    Reference: Chezhegov et al., "Clipping improves Adam-Norm and AdaGrad-Norm when the noise is
    heavy-tailed", 2025 (arXiv 2406.04443).
    """

    def _next(self, group: dict[str, Any], b: float, length: float) -> float:
        return math.hypot(b, math.sqrt(eta_of(group)) * length)


class ClipAdamNorm(AdamSettings, _NormAdaptive):
    """Clip-Adam-Norm: x <- x - lr m_t / b_t, b_t^2 = beta2 b_{t-1}^2 + (1 - beta2) ||c_t||^2.

    c_t is the clipped gradient.

    Args:
        params: parameters or groups of them; every setting may differ between groups.
        lr: gamma in the paper.
        betas: beta1 of m_t = beta1 m_{t-1} + (1 - beta1) c_t, and beta2; the theory takes beta2 = 1
            - 1/T.
        max_norm: lambda in the paper, in the gradient's units; None or infinity: unclipped.
        b0: b before the first step, positive, in the gradient's units; by default the square root
            of 1e-5, which the paper's experiments begin b^2 with.
        delayed: divide by b_{t-1} (AdamD).
        clip: as in `ClipAdaGradNorm`.
        nonfinite: as in `ClipAdaGradNorm`.

    Raises:
        InputError: a setting out of range, or a sparse or complex gradient.
        FloatingPointError: in `step`, with `nonfinite="raise"`.

    Neither moment is corrected for its beginning, as in the paper.

    Edge cases: b shrinks while gradients are 0; after that a delayed step is long.

    Reference: as `ClipAdaGradNorm`.
    """

    def _next(self, group: dict[str, Any], b: float, length: float) -> float:
        beta2 = group["betas"][1]
        return math.hypot(math.sqrt(beta2) * b, math.sqrt(1 - beta2) * length)
