"""From add-remove to replace-one adjacency.

Replacing a unit is removing one and adding another: (eps, delta) under add-remove gives
(2 eps, delta (1 + e^eps)) under replace-one: P <= e^eps R + delta <= e^eps (e^eps P' + delta) + delta.
Unsampled Gaussians need no such detour: their sum moves by at most 2C, so mu doubles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from accounting.events import Event, Gaussian, PoissonGaussian
from accounting.gaussian import gaussian_delta, gaussian_epsilon


def replace_one_epsilon(
    epsilon_at: Callable[[float], float], delta: float, events: Sequence[tuple[Event, int]]
) -> float:
    """Upper bound on the replace-one epsilon at delta from the add-remove profile delta -> epsilon.

    Any guess g works that turns out at least as large as e = epsilon_at(delta / (1 + e^g)): then
    delta / (1 + e^g) * (1 + e^e) <= delta, so 2 e is valid, and e itself is the next, better guess.
    """
    mu = _unsampled_mu(events)
    if mu is not None:
        return gaussian_epsilon(delta, 2 * mu)
    best, guess = math.inf, 1.5 * epsilon_at(delta) + 0.1
    for _ in range(10):
        if not guess < 600.0:
            break
        found = epsilon_at(delta / (1 + math.exp(guess)) * (1 - 1e-12))
        if found > guess:
            guess = 2 * found - guess
            continue
        best = min(best, 2 * found)
        if guess - found <= 1e-3 * found:
            break
        guess = found
    return best


def replace_one_delta(delta_at: Callable[[float], float], epsilon: float, events: Sequence[tuple[Event, int]]) -> float:
    """Upper bound on the replace-one delta at epsilon from the add-remove profile epsilon -> delta."""
    mu = _unsampled_mu(events)
    if mu is not None:
        return gaussian_delta(epsilon, 2 * mu)
    return min(1.0, delta_at(epsilon / 2) * (1 + math.exp(min(epsilon / 2, 700.0))) * (1 + 1e-12))


def _unsampled_mu(events: Sequence[tuple[Event, int]]) -> float | None:
    squared = 0.0
    for event, count in events:
        sampled = isinstance(event, PoissonGaussian) and event.sample_rate < 1.0
        if sampled or not isinstance(event, Gaussian | PoissonGaussian) or event.noise_multiplier < 1e-100:
            return None
        squared += count / event.noise_multiplier**2
    return math.sqrt(squared) * (1 + 1e-15)
