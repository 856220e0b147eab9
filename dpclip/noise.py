"""The privacy boundary: one whitened Gaussian release a logical step, and the only maker of `Released` values.

Group g has per-sample bound C_g and noise standard deviation s_g on the sum; side statistic j has sensitivity D_j
and standard deviation t_j. The whole release is as private as one Gaussian of unit sensitivity with

    1 / sigma_eff^2 = sum_g (C_g / s_g)^2 + sum_j (D_j / t_j)^2.

What comes out is the sum with ideal noise of that size, rounded to a grid that follows from the size alone
(`dpclip.gaussian`): the Gaussian mechanism and post-processing, not an approximation of it in floating point.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dpclip.clipping.rule import SideQuery, StepRelease, Sum
from dpclip.errors import PrivacyError
from dpclip.gaussian import released
from dpclip.gradient_sum import GradientSum
from dpclip.randomness import SecretKey
from dpclip.released import Receipt, Released

# What rounding in float64 may add where sums are not integers, and in float32 where nothing else was asked for: every
# bound is enlarged by this much before the noise is scaled to it, so sigma_eff holds for the enlarged bounds.
FLOAT_SLACK = 2.0**-10
SIDES = 1 << 23  # number of the first side statistic in the noise stream; parameters count from 0


@dataclass(frozen=True)
class NoiseScale:
    """The noise of one release, all standard deviations on the SUM scale.

    Attributes:
        stds: s_g for each group, shape [K].
        side_stds: t_j for each side statistic, by name.
        noise_multiplier: sigma_eff, computed from the parts.
    """

    stds: tuple[float, ...]
    side_stds: Mapping[str, float]
    noise_multiplier: float


def sigma_eff(
    bounds: Sequence[float],
    stds: Sequence[float],
    sides: Sequence[SideQuery] = (),
    side_stds: Mapping[str, float] | None = None,
) -> float:
    """Noise multiplier of the joint release; 0 when any part is released without noise."""
    parts = list(zip(bounds, stds, strict=True))
    parts += [(side.sensitivity, (side_stds or {})[side.name]) for side in sides]
    if any(std <= 0 or not math.isfinite(bound) for bound, std in parts):
        return 0.0
    return 1.0 / math.sqrt(math.fsum((bound / std) ** 2 for bound, std in parts))


def scale_noise(
    noise_multiplier: float,
    bounds: Sequence[float],
    shares: Sequence[float],
    sides: Sequence[SideQuery] = (),
) -> NoiseScale:
    """Divide one step's budget 1/sigma^2 between the groups, after the side statistics have taken theirs.

    Args:
        noise_multiplier: the planned sigma_eff; 0 for training without privacy.
        bounds: C_g, shape [K].
        shares: each group's part of what is left, positive, summing to 1.
        sides: side statistics with the noise they ask for, relative to their sensitivity.

    Raises:
        PrivacyError: bounds that bound nothing, shares that are not shares, sides that cost more than the step has.
    """
    if noise_multiplier == 0:
        silent = {side.name: 0.0 for side in sides}
        return NoiseScale((0.0,) * len(bounds), silent, 0.0)
    if not all(0 < bound < math.inf for bound in bounds):
        raise PrivacyError(f"bounds {list(bounds)} must be positive and finite before noise can be scaled to them")
    if min(shares) <= 0 or not math.isclose(math.fsum(shares), 1.0, rel_tol=1e-9):
        raise PrivacyError(f"shares {list(shares)} must be positive and sum to 1")
    relative = [side.noise_for(noise_multiplier) for side in sides]
    left = noise_multiplier**-2 - math.fsum(noise**-2 if noise > 0 else math.inf for noise in relative)
    if left <= 0:
        raise PrivacyError(
            f"the side statistics need more than one step's budget at noise multiplier {noise_multiplier:g}: "
            "give them more noise"
        )
    inflated = [bound * (1 + FLOAT_SLACK) for bound in bounds]
    stds = tuple(bound / math.sqrt(left * share) for bound, share in zip(inflated, shares, strict=True))
    exact = [replace(side, sensitivity=side.sensitivity * (1 + FLOAT_SLACK)) for side in sides]
    side_stds = {side.name: side.sensitivity * noise for side, noise in zip(exact, relative, strict=True)}
    effective = sigma_eff(inflated, stds, exact, side_stds)
    if not math.isclose(effective, noise_multiplier, rel_tol=1e-9):
        raise PrivacyError(f"sigma_eff of the parts is {effective:g}, not the planned {noise_multiplier:g}")
    return NoiseScale(stds, side_stds, noise_multiplier)


def release(
    total: Sum,
    side_sums: Mapping[str, Tensor],
    scale: NoiseScale,
    receipt: Receipt,
    key: SecretKey,
    divisor: float = 1.0,
) -> Released[StepRelease]:
    """Draw the step's noise once, add it to every part, and let the result out.

    Args:
        total: the combined sum; its tensors mean nothing any more after the release, whose gradient has the dtypes
            `total.dtypes`.
        side_sums: summed side statistics by name; released in float64.
        scale: from `scale_noise`.
        receipt: what was charged for this step.
        key: the run's secret.
        divisor: the public expected batch size, by which the noisy gradient (not the side statistics) is divided.

    Raises:
        PrivacyError: the release would be less private than what was charged.
    """
    if len(total.groups) > SIDES:
        raise PrivacyError(f"{len(total.groups)} parameters are more than have noise of their own: {SIDES}")
    if scale.noise_multiplier < receipt.noise_multiplier:
        raise PrivacyError(
            f"step {receipt.step} was charged at noise multiplier {receipt.noise_multiplier:g} but would be released "
            f"at {scale.noise_multiplier:g}; nothing was released"
        )
    stream = key.noise(receipt.step, receipt.generation)
    gradient = []
    for slot, group in enumerate(total.groups):
        gradient.append(released(total.parts(slot), scale.stds[group], stream, slot, divisor, total.dtypes[slot]))
        if isinstance(total, GradientSum):
            total.tensors[slot] = gradient[-1]  # a wider accumulator is freed at once
    sides = {
        name: released([(value, 1.0)], scale.side_stds[name], stream, SIDES + index, 1.0, torch.float64)
        for index, (name, value) in enumerate(side_sums.items())
    }
    each = tuple(scale.stds[group] / divisor for group in total.groups)
    return Released(StepRelease(gradient, sides, divisor, scale.stds, scale.side_stds, each), receipt)
