"""AdaGC: each tensor is clipped to a little more than the running mean of its own clipped norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import Auto, check_auto, check_between, one_of
from dpclip.errors import InputError
from dpclip.postprocess.by_norm import SCOPES, NormClipper
from dpclip.postprocess.clipper import CLIPPERS

_QUIET = 2.5  # standard deviations of a noise norm that are let through


@CLIPPERS.register
@dataclass(eq=False)
class AdaGC(NormClipper):
    """g_i min(1, lambda_rel gamma_i/||g_i||), gamma_i a running mean of tensor i's clipped norms.

    Args:
        lambda_rel: how far a norm may exceed gamma, at least 1. In a private run no less than
            1 + 2.5/sqrt(2 d) for d elements, which is how far noise alone goes: otherwise small
            tensors are clipped most of the time.
        beta: decay of gamma, in [0, 1). It can grow by (lambda_rel - 1)(1 - beta) a step at most.
        warmup_steps: steps with the global norm clipped to `lambda_abs`, in which gamma is the
            smallest norm so far.
        lambda_abs: "auto": 1, and none in a private run, where noise alone may have a norm of 12
            and gamma would need 6,000 steps to heal.
        scope: "tensor", or "global" for one gamma of the global norm.

    Differs from the published code: a norm of 0 does not count for gamma, which would freeze the
    tensor for ever (the A of a LoRA adapter at its first step). `match_published=True` counts it.
    The first version of the paper has lambda_rel=1.05, beta=0.98.

    Reference: Wang et al., "AdaGC: Improving training stability for large language model
    pretraining", 2025.
    """

    lambda_rel: float = 1.04
    beta: float = 0.99
    warmup_steps: int = 100
    lambda_abs: Auto = "auto"
    scope: str = "tensor"  # type: ignore[misc]
    name: ClassVar[str] = "adagc"

    def check(self) -> None:
        check_between("beta", self.beta, 0.0, 1.0)
        check_auto("lambda_abs", self.lambda_abs)
        one_of("scope", self.scope, SCOPES)
        if self.lambda_rel < 1 or self.warmup_steps < 0:
            raise InputError(
                f"lambda_rel = {self.lambda_rel}, warmup_steps = {self.warmup_steps}: at least 1 "
                "and 0 are needed"
            )

    def reset(self, sizes: list[int]) -> None:
        """Forget every gamma.

        Args:
            sizes: elements of each parameter.
        """
        self._gamma = torch.full((self.rows,), float("nan"))  # not known yet
        whole = torch.tensor(sizes if self.scope == "tensor" else [sum(sizes)], dtype=torch.float64)
        self._sizes = whole.clamp(min=1)

    def factors(self, norms: Tensor, places: list[int]) -> Tensor:
        """Clip to lambda_rel gamma, or during the warm-up to `lambda_abs`, and update gamma.

        Args:
            norms: measured, float64, [n] (global: [1]).
            places: the gammas they belong to, [n].

        Returns:
            float64, [n], in [0, 1].
        """
        gamma = self._gamma[places].double()
        known = ~gamma.isnan()
        if self._steps <= self.warmup_steps:
            factor = self._global_factor(norms)
            passed = norms * factor
            fresh = torch.where(known, torch.minimum(gamma, passed), passed)
            factors = torch.full_like(norms, factor)
        else:
            gamma = torch.where(known, gamma, norms)
            threshold = self._ratio(places) * gamma
            factors = self.clip_factors(threshold, norms)
            passed = torch.where(norms > threshold, threshold, norms)
            fresh = self.beta * gamma + (1 - self.beta) * passed
        counts = torch.ones_like(known) if self.match_published else norms > 0
        self._gamma[places] = torch.where(counts, fresh, self._gamma[places].double()).float()
        return factors

    def _global_factor(self, norms: Tensor) -> float:
        whole, limit = float(norms.square().sum().sqrt()), self.limit(self.lambda_abs)
        if whole <= limit and not self.match_published:
            return 1.0
        return min(1.0, limit / (whole + 1e-6 if self.match_published else whole))

    def _ratio(self, places: list[int]) -> Tensor:
        least = torch.tensor(self.lambda_rel, dtype=torch.float64)
        if not self.private:
            return least
        return torch.maximum(least, 1 + _QUIET / (2 * self._sizes[places]).sqrt())

    def state(self) -> dict[str, Any]:
        return {
            "gamma": self.by_name(self._gamma)
            if self.scope == "tensor"
            else {"global": self._gamma[0].clone()}
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`.

        Args:
            state: "gamma" by parameter name, or under "global".

        Raises:
            InputError: it names a parameter that is none of ours.
        """
        if self.scope == "tensor":
            self._gamma = self.from_names(state["gamma"], float("nan"), self._gamma)
        else:
            self._gamma = state["gamma"]["global"].clone().view(1)
