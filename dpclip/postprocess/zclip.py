"""ZClip: clips a gradient whose norm stands out from the recent ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import Auto, check_auto, check_between, one_of
from dpclip.errors import InputError
from dpclip.postprocess.by_norm import NormClipper
from dpclip.postprocess.clipper import CLIPPERS

MODES = ("zscore", "percentile")
OPTIONS = ("adaptive_scaling", "mean")


@CLIPPERS.register
@dataclass(eq=False)
class ZClip(NormClipper):
    """Clips where z = (||g|| - mean)/std exceeds a threshold.

    Mean and variance are running ones of what was let through.

    Args:
        alpha: decay of mean and variance, in [0, 1).
        z_thresh: z from which a norm is a spike, positive.
        warmup_steps: norms whose plain mean and variance are begun with; clipped by `max_grad_norm`
            only.
        max_grad_norm: a fixed threshold besides, which the statistics do not see; "auto": 1, and
            none in a private run.
        eps: added to the standard deviation, times the mean.
        mode: "zscore", or "percentile": everything above mean + z_thresh std is clipped to that.
        clip_option: what a spike is clipped to, "adaptive_scaling": mean + z_thresh^2 std / z, or
            "mean".
        clip_factor: times the whole of mean + z_thresh^2 std / z; the other goals are not
            multiplied.
        skip_update_on_spike: whether spikes leave the statistics alone.
        patience: spikes in a row after which the statistics begin anew: without it (0, as
            published) a norm that rises tenfold for good is held down for good.
        std_floor: the standard deviation is at least this times the mean; 0 as published.

    Differs from the published code: norms in float32 or wider, `eps` relative, state that can be
    saved, gradients that are not finite are skipped. `match_published=True` has an absolute `eps`.

    Reference: Kumar et al., "ZClip: Adaptive spike mitigation for LLM pre-training", 2025.
    """

    alpha: float = 0.97
    z_thresh: float = 2.5
    warmup_steps: int = 25
    max_grad_norm: Auto = "auto"
    eps: float = 1e-6
    mode: str = "zscore"
    clip_option: str = "adaptive_scaling"
    clip_factor: float = 1.0
    skip_update_on_spike: bool = False
    patience: int = 0
    std_floor: float = 0.0
    name: ClassVar[str] = "zclip"

    def check(self) -> None:
        check_between("alpha", self.alpha, 0.0, 1.0)
        check_auto("max_grad_norm", self.max_grad_norm)
        one_of("mode", self.mode, MODES)
        one_of("clip_option", self.clip_option, OPTIONS)
        for setting in ("z_thresh", "clip_factor"):
            if not getattr(self, setting) > 0:
                raise InputError(
                    f"{setting} = {getattr(self, setting)}: a positive number is needed"
                )
        if self.warmup_steps < 1 or self.patience < 0:
            raise InputError(
                f"warmup_steps = {self.warmup_steps}, patience = {self.patience}: at least 1, and 0"
            )

    def reset(self, sizes: list[int]) -> None:
        """Forget the statistics and begin the warm-up.

        Args:
            sizes: unused.
        """
        self._mean, self._variance, self._spikes = 0.0, 0.0, 0
        self._first: list[float] | None = []  # norms of the warm-up; None afterwards

    def factors(self, norms: Tensor, places: list[int]) -> Tensor:
        """Clip a spike to its goal, and any norm to `max_grad_norm`.

        Args:
            norms: the global norm as measured, float64, [1].
            places: unused.

        Returns:
            float64, [1], in [0, 1].
        """
        norm = float(norms)
        goal = None
        if self._first is None:
            goal = self._goal(norm)
        else:
            self._warm_up(norm)
        most = norm if goal is None else goal
        allowed = min(most, self.limit(self.max_grad_norm))
        return self.clip_factors(torch.tensor([allowed], dtype=torch.float64), norms)

    def _warm_up(self, norm: float) -> None:
        assert self._first is not None
        self._first.append(norm)
        if len(self._first) >= self.warmup_steps:
            count = len(self._first)
            self._mean = math.fsum(self._first) / count
            self._variance = math.fsum((x - self._mean) ** 2 for x in self._first) / count
            self._first = None

    def _goal(self, norm: float) -> float | None:
        """What this norm is clipped to; None if it is no spike. Learns from what is let through."""
        goal = self._clipped(norm)
        self._spikes = 0 if goal is None else self._spikes + 1
        if self.patience and self._spikes >= self.patience:
            self.reset([])
            self._warm_up(norm)
            return None
        if goal is None or not self.skip_update_on_spike:
            let_through = norm if goal is None else goal
            self._mean = self.alpha * self._mean + (1 - self.alpha) * let_through
            self._variance = (
                self.alpha * self._variance + (1 - self.alpha) * (let_through - self._mean) ** 2
            )
        return goal

    def _clipped(self, norm: float) -> float | None:
        std = max(math.sqrt(self._variance), self.std_floor * self._mean)
        if self.mode == "percentile":
            threshold = self._mean + self.z_thresh * std
            return threshold if norm > threshold else None
        spread = std + (self.eps if self.match_published else self.eps * self._mean)
        z = (norm - self._mean) / spread if spread > 0 else 0.0
        if not z > self.z_thresh:
            return None
        if self.clip_option == "mean":
            return self._mean
        return (self._mean + self.z_thresh * std / (z / self.z_thresh)) * self.clip_factor

    def metrics(self) -> dict[str, float]:
        return {
            **super().metrics(),
            "zclip_mean": self._mean,
            "zclip_std": math.sqrt(self._variance),
        }

    def state(self) -> dict[str, Any]:
        first = None if self._first is None else list(self._first)
        return {
            "mean": self._mean,
            "variance": self._variance,
            "spikes": self._spikes,
            "first": first,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`.

        Args:
            state: mean, variance, spikes in a row and the norms of the warm-up.
        """
        self._mean, self._variance, self._spikes = state["mean"], state["variance"], state["spikes"]
        self._first = None if state["first"] is None else list(state["first"])
