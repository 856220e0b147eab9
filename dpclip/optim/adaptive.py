"""What the clipped AdaGrads and Adams share: momentum of clipped gradients, and their settings."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dpclip.checks import fraction, positive, threshold
from dpclip.errors import InputError
from dpclip.optim.measured import MeasuredOptimizer, Share, clip_factor

ADAM_B0 = 1e-5**0.5


class Adaptive(MeasuredOptimizer):
    """Clips, averages, and divides by a b that gradients feed."""

    @abstractmethod
    def _beta1(self, group: dict[str, Any]) -> float:
        """Decay of the average of clipped gradients; 0: no average."""

    def _check(self, group: dict[str, Any]) -> None:
        threshold("max_norm", group["max_norm"])
        positive("b0", group["b0"])

    def _factor(self, group: dict[str, Any], norm: float) -> float:
        return clip_factor(norm, group["max_norm"])

    def _averaged(self, share: Share, clipped: list[Tensor], beta1: float) -> list[Tensor]:
        """m <- beta1 m + (1 - beta1) c, from 0; in float32 for parameters of 16 bits."""
        for p, c in zip(share.parameters, clipped, strict=True):
            if "exp_avg" not in self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(c)
        averages: list[Tensor] = [self.state[p]["exp_avg"] for p in share.parameters]
        torch._foreach_mul_(averages, beta1)
        torch._foreach_add_(averages, clipped, alpha=1 - beta1)
        return averages


class AdaGradSettings(Adaptive):
    """The settings of both AdaGrads; `ClipAdaGradNorm` says what they mean."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        max_norm: float | None = 1.0,
        b0: float = 1.0,
        eta: float | str = 1.0,
        momentum: float = 0.0,
        delayed: bool = False,
        *,
        clip: str = "global",
        nonfinite: str = "skip",
    ) -> None:
        settings = {
            "max_norm": max_norm,
            "b0": b0,
            "eta": eta,
            "momentum": momentum,
            "delayed": delayed,
            "clip": clip,
        }
        super().__init__(params, {"lr": lr, **settings, "nonfinite": nonfinite})

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        eta_of(group)
        fraction("momentum", group["momentum"])

    def _beta1(self, group: dict[str, Any]) -> float:
        return float(group["momentum"])


class AdamSettings(Adaptive):
    """The settings of both Adams; `ClipAdamNorm` says what they mean."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        max_norm: float | None = 1.0,
        b0: float = ADAM_B0,
        delayed: bool = False,
        *,
        clip: str = "global",
        nonfinite: str = "skip",
    ) -> None:
        settings = {
            "betas": betas,
            "max_norm": max_norm,
            "b0": b0,
            "delayed": delayed,
            "clip": clip,
        }
        super().__init__(params, {"lr": lr, **settings, "nonfinite": nonfinite})

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_betas(group)

    def _beta1(self, group: dict[str, Any]) -> float:
        return float(group["betas"][0])


def eta_of(group: dict[str, Any]) -> float:
    """Return eta as a number; "reweighted" is the learning rate squared.

    Args:
        group: with "eta" and "lr".

    Raises:
        InputError: neither a positive number nor "reweighted".
    """
    eta = group["eta"]
    if eta == "reweighted":
        return float(group["lr"]) ** 2
    if isinstance(eta, str):
        raise InputError(f"eta is {eta!r}, which is unknown; give a number or 'reweighted'")
    positive("eta", eta)
    return float(eta)


def check_betas(group: dict[str, Any]) -> None:
    """Refuse decays that cannot be used.

    Args:
        group: with "betas", a pair.

    Raises:
        InputError: one is not in [0, 1).
    """
    for index, beta in enumerate(group["betas"], start=1):
        fraction(f"beta{index}", beta)
