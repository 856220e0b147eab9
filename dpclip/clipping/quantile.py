"""Thresholds at a quantile of the gradient norms, from noisy counts in each step's release."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.clipping.per_group import Grouping, PerGroup, column, layer_of
from dpclip.clipping.rule import RULES
from dpclip.errors import InputError
from dpclip.released import Released, SideQuery, StepRelease

_LOWEST, _HIGHEST = 1e-8, 1e8  # a threshold never leaves this range


def single_group(name: str) -> str:
    """Put every parameter in one group, "model"."""
    return "model"


@RULES.register
@dataclass
class Quantile(PerGroup):
    """factor_i = min(1, C_t / ||g_i||); C_{t+1} = C_t exp(-eta (b - gamma)).

    b is the noisy share of samples within C_t. A step counts, for each group, the samples whose
    norm is at most C_t, centred: b_i - 1/2, so that one sample moves the count by 1/2 and not by 1.
    The K counts are one side statistic of sensitivity sqrt(K)/2, noised in the same release as the
    gradient and paid for in sigma_eff: with count noise sigma_b on a single group the gradient's
    own multiplier is (z^-2 - (2 sigma_b)^-2)^(-1/2). The share divides by the public expected batch
    size.

    Args:
        max_grad_norm: C_0, shared by the groups as in `PerGroup`.
        quantile: gamma, in (0, 1).
        rate: eta, of the geometric update; positive.
        budget_share: the counts' part of each step's 1/sigma^2, in (0, 1).
        count_noise: sigma_b itself, standard deviation of each noisy count (paper: batch / 20); 0
            goes by the share.
        first_rate: the rate of step t is first_rate / sqrt(t) while that is more than `rate`; 0:
            not (as in the paper).
        total: if positive, thresholds are rescaled after each update to this joint norm
            (post-processing).
        allocation: as in `PerGroup`.
        group_of: as in `PerGroup`.
        thresholds: as in `PerGroup`.

    Guarantee: one sample moves group k's sum by at most C_k and the counts by at most sqrt(K)/2 in
    all.

    Edge cases: on an empty batch the noisy share is about 0 and the threshold grows by at most
    exp(eta gamma). A share so far out that C would leave [1e-8, 1e8] leaves it at the end.

    Reference: Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive
    Clipping", 2021; by layer: He et al., "Exploring the Limits of Differentially Private Deep
    Learning with Group-wise Clipping", 2023.
    """

    max_grad_norm: float = 0.1
    quantile: float = 0.5
    rate: float = 0.2
    budget_share: float = 0.01
    count_noise: float = 0.0
    total: float = 0.0
    first_rate: float = 0.0
    group_of: Grouping = single_group
    name: ClassVar[str] = "quantile"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.quantile < 1:
            raise InputError(
                f"quantile = {self.quantile}: a number strictly between 0 and 1 is needed; 0.5 is "
                "the median"
            )
        check_threshold("rate", self.rate)
        if not 0 < self.budget_share < 1:
            raise InputError(
                f"budget_share = {self.budget_share}: a part of the step's budget, between 0 and 1"
            )
        if self.count_noise < 0 or self.total < 0:
            raise InputError(
                f"count_noise = {self.count_noise} and total = {self.total} cannot be negative"
            )
        self._current = super().bounds()
        self._share = math.nan
        self._updates = 0

    def partition(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Number the groups as `PerGroup` does and start their thresholds.

        Args:
            names: of the trainable parameters.
            sizes: their numbers of elements.

        Returns:
            the group k of each parameter, 0 to K - 1.

        Raises:
            InputError: `thresholds` names a group that the model does not have.
        """
        groups = super().partition(names, sizes)
        self._current = self._rescaled(super().bounds())
        return groups

    def bounds(self) -> list[float]:
        return list(self._current)

    def side_queries(self) -> Sequence[SideQuery]:
        counts = self.counts(self.budget_share)
        if self.count_noise > 0:
            return [
                replace(counts, relative_noise=self.count_noise / counts.sensitivity, share=0.0)
            ]
        return [counts]

    def counts(self, share: float) -> SideQuery:
        """Ask for the centred counts of units within the thresholds.

        Args:
            share: the counts' part of the step's budget 1/sigma^2, in (0, 1).

        Returns:
            the query "within": norms [K, B] -> 1/2 within the threshold and -1/2 beyond, [K, B].
        """
        groups, thresholds = len(self._current), list(self._current)

        def within(norms: Tensor) -> Tensor:
            return (norms <= column(thresholds, norms)).to(norms.dtype) - 0.5

        return SideQuery("within", math.sqrt(groups) / 2, None, within, groups, share=share)

    def observe(self, released: Released[StepRelease]) -> None:
        """Move each threshold towards its quantile.

        Args:
            released: the step; `sides["within"]` holds the noisy centred counts [K], on the sum
                scale.
        """
        step = released.value
        shares = (step.sides["within"] / step.divisor + 0.5).tolist()
        self._share = sum(shares) / len(shares)
        self._updates += 1
        rate = max(self.rate, self.first_rate / math.sqrt(self._updates))
        moved = [
            c * math.exp(-rate * max(-20.0, min(20.0, share - self.quantile)))
            for c, share in zip(self._current, shares, strict=True)
        ]
        self._current = self._rescaled(moved)

    def _rescaled(self, thresholds: Sequence[float]) -> list[float]:
        joint = math.sqrt(sum(c**2 for c in thresholds))
        scale = self.total / joint if self.total else 1.0
        return [max(_LOWEST, min(_HIGHEST, c * scale)) for c in thresholds]

    def metrics(self) -> dict[str, float]:
        joint = math.sqrt(sum(c**2 for c in self._current))
        return {"threshold": joint, "share_within": self._share}

    def public_state(self) -> dict[str, Any]:
        return {"thresholds": list(self._current), "updates": self._updates}

    def load_public_state(self, state: Mapping[str, Any]) -> None:
        self._current = [float(c) for c in state["thresholds"]]
        self._updates = state["updates"]

    def describe(self) -> dict[str, Any]:
        learned = {"quantile": self.quantile, "rate": self.rate, "initial": self.max_grad_norm}
        noise = (
            {"count_noise": self.count_noise}
            if self.count_noise
            else {"budget_share": self.budget_share}
        )
        return {**super().describe(), **learned, **noise}


@RULES.register
@dataclass
class PerLayerQuantile(Quantile):
    """`Quantile` with a threshold a layer."""

    group_of: Grouping = layer_of
    name: ClassVar[str] = "per-layer-quantile"
