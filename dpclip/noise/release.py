"""The privacy boundary: one whitened Gaussian release a logical step.

No other module makes `Released` values.

Group g has per-sample bound C_g and noise standard deviation s_g on the sum; side statistic j has
sensitivity D_j and standard deviation t_j. The whole release is as private as one Gaussian of unit
sensitivity with

    1 / sigma_eff^2 = sum_g (C_g / s_g)^2 + sum_j (D_j / t_j)^2.

What comes out is the sum with ideal noise of that size, rounded to a grid that follows from the
size alone (`dpclip.noise.gaussian`): the Gaussian mechanism and post-processing, not an
approximation of it in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dpclip.errors import PrivacyError
from dpclip.gradient_sum import GradientSum
from dpclip.noise.gaussian import released
from dpclip.noise.keystream import SecretKey
from dpclip.noise.mechanism import MECHANISMS, NoiseMechanism
from dpclip.noise.scale import NoiseScale, scale_noise
from dpclip.released import Receipt, Released, SideQuery, StepRelease, Sum

SIDES = 1 << 23  # number of the first side statistic in the noise stream; parameters count from 0


@MECHANISMS.register
class WhiteGaussian(NoiseMechanism):
    """Gaussian noise that is independent from step to step and from coordinate to coordinate."""

    name: ClassVar[str] = "white-gaussian"

    def scale(
        self,
        noise_multiplier: float,
        bounds: Sequence[float],
        shares: Sequence[float],
        sides: Sequence[SideQuery] = (),
    ) -> NoiseScale:
        """Divide the step's budget by `scale_noise`."""
        return scale_noise(noise_multiplier, bounds, shares, sides)

    def release(
        self,
        total: Sum,
        side_sums: Mapping[str, Tensor],
        scale: NoiseScale,
        receipt: Receipt,
        key: SecretKey,
        divisor: float = 1.0,
    ) -> Released[StepRelease]:
        """Round the sum with ideal noise to a public grid; see `NoiseMechanism.release`.

        Raises:
            PrivacyError: more parameters than have noise of their own, or less noise than was
                charged.
        """
        if len(total.groups) > SIDES:
            raise PrivacyError(
                f"{len(total.groups)} parameters are more than have noise of their own: {SIDES}"
            )
        if scale.noise_multiplier < receipt.noise_multiplier:
            raise PrivacyError(
                f"step {receipt.step} was charged at noise multiplier "
                f"{receipt.noise_multiplier:g} but would be released at "
                f"{scale.noise_multiplier:g}; nothing was released"
            )
        stream = key.noise(receipt.step, receipt.generation)
        gradient = []
        for slot, group in enumerate(total.groups):
            gradient.append(
                released(
                    total.parts(slot), scale.stds[group], stream, slot, divisor, total.dtypes[slot]
                )
            )
            if isinstance(total, GradientSum):
                total.tensors[slot] = gradient[-1]  # a wider accumulator is freed at once
        sides = {
            name: released(
                [(value, 1.0)], scale.side_stds[name], stream, SIDES + index, 1.0, torch.float64
            )
            for index, (name, value) in enumerate(side_sums.items())
        }
        each = tuple(scale.stds[group] / divisor for group in total.groups)
        return Released(
            StepRelease(gradient, sides, divisor, scale.stds, scale.side_stds, each), receipt
        )
