"""Composing one-step loss distributions by an exponentially tilted FFT, with every error added to delta.

With c the composed masses tilted by e^(t s) and normalised (log normaliser K),
delta(eps) = sum over s > eps of c(s) e^(K - t s) (1 - e^(eps - s))  +  everything lost on the way:
mass sent to +inf, mass beyond the window (Chernoff), and a bound on the round-off of the transform.
Tilting is derived here; it makes that round-off relative to delta. Mass that wraps around the window from
below only adds to the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from accounting.discretise import LossPmf, Refused

Array = NDArray[np.floating[Any]]

LARGEST_WINDOW = 2**22  # points; the transforms then hold about 300 MB
_UNIT = 2.0**-53
_SLACK = 1 + 1e-6  # covers the rounding of sums of at most LARGEST_WINDOW positive terms


class Composition:
    """The distribution of a sum of independent losses, seen through one tilt.

    parts: (one-step distribution, count); tilt > 0: where the transform is sharpest; target: the delta whose
    neighbourhood is asked for (tails far below it are charged instead of kept).
    """

    def __init__(self, parts: Sequence[tuple[LossPmf, int]], tilt: float, target: float) -> None:
        self._parts = list(parts)
        self._interval = parts[0][0].interval
        self._tilt = tilt
        self._target = target
        self._normaliser = self._cumulant(tilt)
        self._low, size = self._window()
        # Mass at +inf, and the tail above the window, which is at most this by the choice of the window.
        self._lost = -math.expm1(sum(n * math.log1p(-pmf.infinite) for pmf, n in parts)) + 1e-7 * target
        self._masses, self._roundoff = self._transform(size)

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon >= 0 whose delta, with every allowance, is within `delta`; inf if none is."""
        losses = self._losses()
        # Only losses that can matter: below, the weights overflow and delta is above the target anyway.
        reference = (self._normaliser - math.log(delta)) / self._tilt
        usable = np.nonzero(self._tilt * (reference - losses) < 600.0)[0]
        start = int(usable[0]) if usable.size else losses.size - 1
        losses, masses = losses[start:], self._masses[start:]
        weights = masses * np.exp(self._normaliser - self._tilt * losses)
        ratios = np.exp(losses[0] - losses)
        above, discounted = _sums_beyond(weights), _sums_beyond(weights * ratios)
        deltas = (above - np.exp(np.minimum(losses - losses[0], 700.0)) * discounted) * _SLACK
        deltas += self._lost + self._roundoff_at(losses) + 1e-12 * above
        within = np.nonzero(deltas <= delta)[0]
        if not within.size:
            return math.inf
        # The running sums locate the answer; only direct sums, with all allowances, decide it.
        for index in range(int(within[0]), min(int(within[0]) + 20, losses.size)):
            if self.delta(float(losses[index])) <= delta:
                return max(0.0, self._within_cell(losses, index, delta))
        return math.inf

    def delta(self, epsilon: float) -> float:
        """Upper bound on delta at epsilon."""
        losses = self._losses()
        if epsilon < losses[0]:
            epsilon_used = float(losses[0])
            return min(1.0, self.delta(epsilon_used) - math.expm1(epsilon - epsilon_used))
        beyond = losses > epsilon
        gap = epsilon - losses[beyond]
        weights = np.exp(np.minimum(self._normaliser - self._tilt * losses[beyond], 700.0))
        total = float(np.sum(self._masses[beyond] * weights * -np.expm1(gap))) * _SLACK
        return min(1.0, total + self._lost + float(self._roundoff_at(np.array([epsilon]))[0]))

    def slope(self, epsilon: float) -> float:
        """-d log delta / d epsilon near epsilon: the tilt that would be sharpest there."""
        step = 0.05 / max(self._tilt, 1e-3)
        here, there = self.delta(epsilon), self.delta(epsilon + step)
        if not 0.0 < there < here:
            return self._tilt
        return min(max(math.log(here / there) / step, self._tilt / 100), 100 * self._tilt)

    def _within_cell(self, losses: Array, index: int, delta: float) -> float:
        """Sharpen the grid answer losses[index] by bisection inside the cell below it."""
        if index == 0:
            return float(losses[0])
        low, high = float(losses[index - 1]), float(losses[index])
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if self.delta(middle) <= delta else (middle, high)
        return high

    def _losses(self) -> Array:
        return (self._low + np.arange(self._masses.size)) * self._interval

    def _roundoff_at(self, losses: Array) -> Array:
        # e^(-t y) (1 - e^(-y)) <= 1 / (1 + t) for y >= 0.
        return np.exp(np.minimum(self._normaliser - self._tilt * losses, 700.0)) * (self._roundoff / (1 + self._tilt))

    def _cumulant(self, tilt: float) -> float:
        return math.fsum(count * pmf.cumulant(tilt) for pmf, count in self._parts)

    def _window(self) -> tuple[int, int]:
        """(first index, size) of a window outside which the tails are negligible, by Chernoff bounds."""
        spread = self._spread()
        step = math.sqrt(40.0) / max(spread, 1e-300)
        factors = np.geomspace(0.01, 6.0, 10).tolist()
        log_tail = math.log(1e-7 * self._target)
        high, wide = math.inf, math.inf
        for gap in (step * factor for factor in factors):
            above = self._cumulant(self._tilt + gap)
            high = min(high, (above - log_tail) / (self._tilt + gap))
            wide = min(wide, (above - self._normaliser + 23.0) / gap)
        high = max(high, wide)  # the true tail is charged; the tilted one would wrap around and cost accuracy
        low = max(
            (self._normaliser - self._cumulant(self._tilt - step * factor) - 23.0) / (step * factor)
            for factor in factors
        )
        reach = (high - low) / self._interval
        if not reach < LARGEST_WINDOW - 8:
            raise Refused(f"the composition would need {reach:.3g} grid points (limit {LARGEST_WINDOW})")
        first = math.floor(low / self._interval) - 1
        return first, int(fft.next_fast_len(max(8, math.ceil(high / self._interval) + 2 - first), real=True))

    def _spread(self) -> float:
        """Standard deviation of the composed loss under the tilt."""
        variance = 0.0
        for pmf, count in self._parts:
            index, masses, _ = pmf.tilted(self._tilt)
            centre = float(masses @ index)
            variance += count * float(masses @ (index - centre) ** 2)
        return self._interval * math.sqrt(variance)

    def _transform(self, size: int) -> tuple[Array, float]:
        """(composed tilted masses on the window, bound on the sum of their absolute round-off)."""
        total = sum(count for _, count in self._parts)
        spectrum = np.ones(size // 2 + 1, dtype=complex)
        weakest = np.ones(size // 2 + 1)
        per_entry = 4 * _UNIT * (math.log2(size) + 4)  # of one transform of masses that sum to 1
        for pmf, count in self._parts:
            index, masses, _ = pmf.tilted(self._tilt)
            step = fft.rfft(np.bincount(index % size, weights=masses, minlength=size))
            weakest = np.minimum(weakest, np.abs(step))
            with np.errstate(under="ignore"):
                spectrum *= step**count
        magnitude = np.abs(spectrum)
        errors = per_entry * (total * magnitude / np.maximum(weakest, per_entry) + magnitude)
        composed = np.maximum(np.roll(fft.irfft(spectrum, size), -(self._low % size)), 0.0)
        # Parseval and Cauchy-Schwarz: sum |error| <= sqrt(sum over all frequencies of |error|^2).
        return composed, 2 * math.sqrt(2 * float(np.sum(errors * errors)))


def _sums_beyond(values: Array) -> Array:
    """At each position the sum of all later values."""
    sums = np.zeros(values.size)
    sums[:-1] = np.cumsum(values[:0:-1])[::-1]
    return sums
