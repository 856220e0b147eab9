"""The privacy boundary: one whitened Gaussian release a logical step, and the only maker of `Released` values.

Group g has per-sample bound C_g and noise standard deviation s_g on the sum; side statistic j has sensitivity D_j
and standard deviation t_j. The whole release is as private as one Gaussian of unit sensitivity with

    1 / sigma_eff^2 = sum_g (C_g / s_g)^2 + sum_j (D_j / t_j)^2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpclip.clipping.rule import SideQuery, StepRelease
from dpclip.gradient_sum import GradientSum
from dpclip.randomness import Keystream, SecretKey
from dpclip.released import Receipt, Released

# Rounding in float32 norms, factors and sums can lift a sample's true contribution above its bound; every bound
# is enlarged by this much before the noise is scaled to it, so sigma_eff holds for the enlarged bounds.
FLOAT_SLACK = 2.0**-10
_CHUNK = 1 << 16


class PrivacyError(RuntimeError):
    """A release that would break its promise; nothing is released."""


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
    left = noise_multiplier**-2 - math.fsum(side.relative_noise**-2 for side in sides)
    if left <= 0:
        raise PrivacyError(
            f"the side statistics need more than one step's budget at noise multiplier {noise_multiplier:g}: "
            "give them more noise"
        )
    inflated = [bound * (1 + FLOAT_SLACK) for bound in bounds]
    stds = tuple(bound / math.sqrt(left * share) for bound, share in zip(inflated, shares, strict=True))
    side_stds = {s.name: s.sensitivity * (1 + FLOAT_SLACK) * s.relative_noise for s in sides}
    effective = sigma_eff(inflated, stds, _inflated(sides), side_stds)
    if not math.isclose(effective, noise_multiplier, rel_tol=1e-9):
        raise PrivacyError(f"sigma_eff of the parts is {effective:g}, not the planned {noise_multiplier:g}")
    return NoiseScale(stds, side_stds, noise_multiplier)


def _inflated(sides: Sequence[SideQuery]) -> list[SideQuery]:
    return [SideQuery(s.name, s.sensitivity * (1 + FLOAT_SLACK), s.relative_noise, s.per_sample, s.size) for s in sides]


def gaussian(stream: Keystream, count: int) -> Tensor:
    """Standard normal values by Box-Muller in float64, shape [count].

    The radius comes from 53 random bits, so tails reach 8.5 sigma; the angle from another 64-bit word.
    """
    out = torch.empty(2 * math.ceil(count / 2), dtype=torch.float64)
    for start in range(0, len(out), _CHUNK):
        piece = out[start : start + _CHUNK]
        half = len(piece) // 2
        words = stream.words(2 * half) >> np.uint64(11)
        uniform = torch.from_numpy(words.astype(np.float64)).mul_(2.0**-53)
        radius = (uniform[:half] + 2.0**-54).log_().mul_(-2.0).sqrt_()
        angle = uniform[half:].mul_(2 * math.pi)
        torch.mul(radius, angle.cos(), out=piece[:half])
        torch.mul(radius, angle.sin_(), out=piece[half:])
    return out[:count]


def add_noise(tensor: Tensor, std: float, stream: Keystream) -> Tensor:
    """tensor + N(0, std^2), drawn and added in float64, returned in the tensor's dtype."""
    if std == 0:
        return tensor
    noise = gaussian(stream, tensor.numel()).view(tensor.shape).mul_(std)
    return noise.add_(tensor.to("cpu", torch.float64)).to(tensor.device, tensor.dtype)


def release(
    total: GradientSum,
    side_sums: Mapping[str, Tensor],
    scale: NoiseScale,
    receipt: Receipt,
    key: SecretKey,
) -> Released[StepRelease]:
    """Draw the step's noise once, add it to every part, and let the result out.

    Args:
        total: the combined sum, in float32 or wider.
        side_sums: summed side statistics by name.
        scale: from `scale_noise`.
        receipt: what was charged for this step.
        key: the run's secret.

    Raises:
        PrivacyError: the release would be less private than what was charged.
    """
    if scale.noise_multiplier < receipt.noise_multiplier:
        raise PrivacyError(
            f"step {receipt.step} was charged at noise multiplier {receipt.noise_multiplier:g} but would be released "
            f"at {scale.noise_multiplier:g}; nothing was released"
        )
    stream = key.stream("noise", receipt.step, receipt.generation)
    noisy = [
        add_noise(tensor, scale.stds[group], stream) for tensor, group in zip(total.tensors, total.groups, strict=True)
    ]
    sides = {name: add_noise(value, scale.side_stds[name], stream) for name, value in side_sums.items()}
    return Released(StepRelease(noisy, sides), receipt)
