"""How one step's noise is divided between groups of parameters and side statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dpclip.errors import PrivacyError
from dpclip.released import SideQuery

# What rounding in float64 may add where sums are not integers, and in float32 where nothing else
# was asked for: every bound is enlarged by this much before the noise is scaled to it, so sigma_eff
# holds for the enlarged bounds.
FLOAT_SLACK = 2.0**-10


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
    """Compute the noise multiplier of the joint release.

    Args:
        bounds: C_g on the sum scale, [K].
        stds: s_g on the sum scale, [K].
        sides: side statistics with sensitivities D_j.
        side_stds: t_j by name.

    Returns:
        sigma_eff, over unit sensitivity; 0 when any part has no noise or an infinite bound.
    """
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
    """Divide one step's budget 1/sigma^2 between the groups, once the side statistics have theirs.

    Args:
        noise_multiplier: the planned sigma_eff; 0 for training without privacy.
        bounds: C_g, shape [K].
        shares: each group's part of what is left, positive, summing to 1.
        sides: side statistics with the noise they ask for, relative to their sensitivity.

    Returns:
        standard deviations on the sum scale, for bounds enlarged by `FLOAT_SLACK`.

    Raises:
        PrivacyError: bounds that bound nothing, shares that are not shares, sides that cost more
            than the step has.
    """
    if noise_multiplier == 0:
        silent = {side.name: 0.0 for side in sides}
        return NoiseScale((0.0,) * len(bounds), silent, 0.0)
    if not all(0 < bound < math.inf for bound in bounds):
        raise PrivacyError(
            f"bounds {list(bounds)} must be positive and finite before noise can be scaled to them"
        )
    if min(shares) <= 0 or not math.isclose(math.fsum(shares), 1.0, rel_tol=1e-9):
        raise PrivacyError(f"shares {list(shares)} must be positive and sum to 1")
    relative = [side.noise_for(noise_multiplier) for side in sides]
    left = noise_multiplier**-2 - math.fsum(
        noise**-2 if noise > 0 else math.inf for noise in relative
    )
    if left <= 0:
        raise PrivacyError(
            "the side statistics need more than one step's budget at noise multiplier "
            f"{noise_multiplier:g}: give them more noise"
        )
    inflated = [bound * (1 + FLOAT_SLACK) for bound in bounds]
    stds = tuple(
        bound / math.sqrt(left * share) for bound, share in zip(inflated, shares, strict=True)
    )
    exact = [replace(side, sensitivity=side.sensitivity * (1 + FLOAT_SLACK)) for side in sides]
    side_stds = {
        side.name: side.sensitivity * noise for side, noise in zip(exact, relative, strict=True)
    }
    effective = sigma_eff(inflated, stds, exact, side_stds)
    if not math.isclose(effective, noise_multiplier, rel_tol=1e-9):
        raise PrivacyError(
            f"sigma_eff of the parts is {effective:g}, not the planned {noise_multiplier:g}"
        )
    return NoiseScale(stds, side_stds, noise_multiplier)
