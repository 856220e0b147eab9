"""Stable-SPAM: Adam on gradients of steady size, whose moments are forgotten now and then."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from dpclip.checks import fraction, not_negative
from dpclip.optim.measured import MeasuredOptimizer, Share
from dpclip.optim.spam import adam_step, check_adam, moments, whole_number
from dpclip.postprocess.stable_spam import StableSPAM as Transform


class StableSPAM(MeasuredOptimizer):
    """Adam behind `dpclip.postprocess.StableSPAM`'s two transforms, with moment resets.

    Changes `.grad` in place.

    Args:
        params: parameters or groups.
        lr: as in AdamW.
        betas: as in AdamW.
        eps: as in AdamW.
        weight_decay: as in AdamW.
        gamma1: decays of each tensor's norm, its square and its largest element.
            The paper's settings for bfloat16 are 0.85, 0.99999, 0.999.
        gamma2: likewise.
        gamma3: likewise.
        reset_interval: steps between resets of Adam's moments; 0: never.
        total_steps: with it beta1 and gamma1 fall along half a cosine to `eta_min` times their
            values.
        eta_min: see there.
        nonfinite: "skip", "raise" or "pass".
        match_published: as the published code: the step of a reset is taken with the moments that
            are being forgotten and is not remembered; afterwards the means of norms are taken for
            young ones, so that hardly anything is clipped for hundreds of steps (5.2 in a maximum
            of 0.5 after the first); the cosine rises again after `total_steps`.

    Reference: Huang et al., "Stable-SPAM: How to train in 4-bit more stably than 16-bit Adam",
    2025.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        gamma1: float = 0.7,
        gamma2: float = 0.9,
        gamma3: float = 0.999,
        reset_interval: int = 1000,
        total_steps: int | None = None,
        eta_min: float = 0.5,
        nonfinite: str = "skip",
        match_published: bool = False,
    ) -> None:
        own = {
            "gamma1": gamma1,
            "gamma2": gamma2,
            "gamma3": gamma3,
            "total_steps": total_steps,
            "eta_min": eta_min,
        }
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "reset_interval": reset_interval,
                "nonfinite": nonfinite,
                "match_published": match_published,
                "total": 0,
                **own,
            },
        )

    def _check(self, group: dict[str, Any]) -> None:
        check_adam(group)
        for setting in ("gamma1", "gamma2", "gamma3", "eta_min"):
            fraction(setting, group[setting])
        whole_number("reset_interval", group["reset_interval"])
        not_negative("total_steps", group["total_steps"] or 0)

    def _factor(self, group: dict[str, Any], norm: float) -> float:
        return 1.0

    def _update(self, share: Share) -> None:
        group, parameters = share.group, share.parameters
        group["total"] += 1
        if not parameters:
            return
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        transform = self._transform(group, parameters)
        gradients = share.gradients
        transform.clip(gradients, list(range(len(parameters))))
        states = [moments(self.state[p], p) for p in parameters]
        for row, state in zip(transform.rows(), states, strict=True):
            state["usual"] = row.clone()
        stale = self._reset(group, states)
        scale = transform.cosine(group["total"])
        adam_step(
            parameters, gradients, states, group, group["lr"], late_eps=False, beta1_scale=scale
        )
        for state, fresh in zip(states, stale, strict=False):
            state |= fresh  # what the published code has done with the moments of this step

    def _transform(self, group: dict[str, Any], parameters: list[Any]) -> Transform:
        """Return the clipper of this step, with what is known of these parameters."""
        made = Transform(
            parameters,
            gamma1=group["gamma1"],
            gamma2=group["gamma2"],
            gamma3=group["gamma3"],
            eps=group["eps"],
            total_steps=group["total_steps"],
            eta_min=group["eta_min"],
            match_published=group["match_published"],
            nonfinite="pass",
        )
        blank = torch.zeros(4, dtype=torch.float64)
        made.set_rows(
            torch.stack([self.state[p].get("usual", blank).cpu() for p in parameters]),
            group["total"] - 1,
        )
        return made

    def _reset(self, group: dict[str, Any], states: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Forget the moments if it is time.

        Returns:
            what replaces them after the step (`match_published` only).
        """
        if not group["reset_interval"] or group["total"] % group["reset_interval"]:
            return []
        later = []
        for state in states:
            state["step"] = 0
            if group["match_published"]:
                blank = {name: torch.zeros_like(state[name]) for name in ("exp_avg", "exp_avg_sq")}
                later.append(blank)
                state["usual"][3] = 1.0
            else:
                state["exp_avg"].zero_()
                state["exp_avg_sq"].zero_()
        return later
