"""prv-accountant as an independent second opinion (Gopi, Lee and Wutschitz 2021, arXiv 2106.02848).

Both directions are computed and the larger interval is returned. The library can fail loudly or
return nonsense; whatever happens is named in the note of the interval and never raised.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr

from accounting.events import (
    Composed,
    Event,
    Gaussian,
    PoissonGaussian,
    SelfComposed,
    unsupported_reason,
)
from accounting.interval import Interval
from accounting.rdp.curve import COARSE_ORDERS, renyi_divergence, renyi_epsilon

NAME = "prv-accountant"
_LARGEST_GRID = 400_000  # about 20 s and 1 GiB for both directions
_CHEAP_GRID = 120_000


def prv_opinion(
    events: Sequence[tuple[Event, int]],
    delta: float,
    adjacency: str,
    eps_error: float | None = None,
) -> Interval:
    """prv-accountant's interval for epsilon at delta.

    Args:
        events: (event, count) pairs.
        delta: in (0, 1).
        eps_error: half-width asked of the library, > 0; by default 0.01, or 0.1 where that would be
            slow.

    Returns:
        the interval, or one up to inf whose note says why there is none.
    """
    reason = _reason_against(events, delta, adjacency)
    if reason is not None:
        return _declined(reason)
    parts = [(event, count) for event, count in events if count > 0 and _rate(event) > 0.0]
    if not parts:
        return Interval(NAME, 0.0, 0.0, 0.0)
    try:
        error = _affordable(parts, delta, eps_error)
        if error is None:
            return _declined("its grid would be too large to finish within about 20 seconds")
        return _both_directions(parts, delta, error)
    # MemoryError and everything the library may raise is an opinion, too
    except Exception as failure:
        return _declined(f"{type(failure).__name__}: {str(failure)[:200]}")


def _reason_against(
    events: Sequence[tuple[Event, int]], delta: float, adjacency: str
) -> str | None:
    reasons = [
        reason
        for event, _ in events
        if (reason := unsupported_reason(event, adjacency)) is not None
    ]
    if reasons:
        return reasons[0]
    if adjacency == "replace-one":
        return "it has no replace-one adjacency"
    strange = sorted(
        {event.kind for event, _ in events if not isinstance(event, Gaussian | PoissonGaussian)}
    )
    if strange:
        return f"it has no events of kind {', '.join(strange)}"
    if not 0.0 < delta < 1.0:
        return f"delta={delta!r} is outside (0, 1)"
    if any(_rate(event) > 0.0 and _sigma(event) == 0.0 for event, _ in events):
        return "a release has no noise"
    return None


def _declined(reason: str) -> Interval:
    return Interval(NAME, None, None, math.inf, f"not run: {reason}")


def _rate(event: Event) -> float:
    return event.sample_rate if isinstance(event, PoissonGaussian) else 1.0


def _sigma(event: Event) -> float:
    return event.noise_multiplier if isinstance(event, Gaussian | PoissonGaussian) else 0.0


def _affordable(parts: list[tuple[Event, int]], delta: float, asked: float | None) -> float | None:
    """The eps_error to ask for, by the size of the grid the library would choose (Theorem 5.5)."""
    delta_error = delta / 1000
    total = sum(count for _, count in parts)
    whole = Composed(tuple(SelfComposed(event, count) for event, count in parts))
    half = renyi_epsilon(whole, delta_error / 4, "add-remove", COARSE_ORDERS)[0]
    for event, _ in parts:
        half = max(
            half, renyi_epsilon(event, delta_error / 8 / total, "add-remove", COARSE_ORDERS)[0]
        )
    points_times_error = 2 * (half + 3) * math.sqrt(total / 2 * math.log(12 / delta_error))
    limit = _LARGEST_GRID / len(parts)
    if asked is not None:
        return asked if points_times_error / asked <= limit else None
    if points_times_error / 0.01 <= _CHEAP_GRID / len(parts):
        return 0.01
    return 0.1 if points_times_error / 0.1 <= limit else None


def _both_directions(parts: list[tuple[Event, int]], delta: float, eps_error: float) -> Interval:
    from prv_accountant import PRVAccountant as LibraryAccountant
    from prv_accountant.privacy_random_variables import PoissonSubsampledGaussianMechanism

    counts = [count for _, count in parts]
    answers = []
    for make in (PoissonSubsampledGaussianMechanism, _AddDirection):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            library = LibraryAccountant(
                prvs=[make(_rate(event), _sigma(event)) for event, _ in parts],
                max_self_compositions=counts,
                eps_error=eps_error,
                delta_error=delta / 1000,
            )
            answers.append([float(end) for end in library.compute_epsilon(delta, counts)])
    if not np.isfinite(answers).all():
        return _declined(f"it returned {answers}")
    lower, estimate, upper = (max(0.0, *ends) for ends in zip(*answers, strict=True))
    if not lower <= estimate <= upper:
        return _declined(f"it returned the interval [{lower}, {estimate}, {upper}]")
    return Interval(NAME, lower, estimate, upper, f"eps_error={eps_error}")


class _AddDirection:
    """The loss of adding a unit: L = -log((1-q) + q e^((2x-1)/(2 s^2))) with x ~ N(0, s^2)."""

    pm_inf = 0.0

    def __init__(self, rate: float, noise_multiplier: float) -> None:
        self._rate = rate
        self._sigma = noise_multiplier

    def cdf(self, t: Any) -> Any:
        """P(L <= t) = P(x >= x(t)), with x(t) = s^2 log((e^-t - 1 + q) / q) + 1/2."""
        t = np.asarray(t, dtype=float)
        with np.errstate(all="ignore"):
            inside = np.expm1(np.minimum(-t, 500.0)) / self._rate
            exponent = np.where(
                -t > 500.0, -t - math.log(self._rate), np.log1p(np.maximum(inside, -1.0))
            )
            x = self._sigma**2 * exponent + 0.5
        return ndtr(-x / self._sigma)

    def probability(self, a: Any, b: Any) -> Any:
        """Mass of the loss between a and b."""
        return self.cdf(b) - self.cdf(a)

    def rdp(self, alpha: float) -> float:
        """An upper bound: the other direction's divergence is the larger one."""
        return renyi_divergence(
            PoissonGaussian(self._rate, self._sigma), float(alpha), "add-remove"
        )
