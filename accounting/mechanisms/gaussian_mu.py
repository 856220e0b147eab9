"""The Gaussian mechanism without sampling, by its mu."""

from __future__ import annotations

import math


def unsampled_mu(noise_multiplier: float, adjacency: str) -> float:
    """mu of one release: the sum moves by C, or by 2C when a unit is replaced.

    Args:
        noise_multiplier: scale of the noise / C, >= 0.

    Returns:
        mu > 0, rounded up; inf without noise.
    """
    if noise_multiplier < 1e-100:
        return math.inf
    return (2.0 if adjacency == "replace-one" else 1.0) / noise_multiplier * (1 + 1e-15)


def gaussian_renyi(mu: float | None, order: float) -> float:
    """Rényi divergence of N(mu, 1) from N(0, 1), rounded up.

    Args:
        mu: >= 0; None for a release that is no such pair.
        order: > 1.

    Returns:
        rho >= 0; inf for a mu of None or inf.
    """
    if mu is None or math.isinf(mu):
        return math.inf
    return order * mu * mu / 2 * (1 + 1e-15)
