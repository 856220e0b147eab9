"""Composing privacy losses by an exponentially tilted FFT, with every error charged to delta.

With c the composed masses tilted by e^(t s) and normalized (log normaliser K),
delta(eps) = sum over s > eps of c(s) e^(K - t s) (1 - e^(eps - s)), give or take everything lost on
the way: mass at +inf, mass beyond the window (Chernoff), and a bound on the round-off of the
transform. Tilting is derived here; it makes that round-off relative to delta. The same object
bounds delta from above (pessimistic distributions, every error added) or from below (optimistic
ones, every error taken off).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from accounting.errors import CannotComputeError
from accounting.mechanisms.loss_grid import LossPmf
from accounting.pld.tails import discounted_beyond, sums_beyond
from accounting.pld.terms import aligned, blended_cumulant, infinite_mass
from accounting.schedules import Term

Array = NDArray[np.floating[Any]]
ComplexArray = NDArray[np.complexfloating[Any, Any]]

LARGEST_WINDOW = 2**22  # points; the transforms then hold about 300 MB
_UNIT = 2.0**-53
_SLACK = 1 + 1e-6  # covers the rounding of sums of at most LARGEST_WINDOW positive terms
_WRAPPED = 23.0  # -log of the tilted mass that may lie beyond either end of the window
_NEGLIGIBLE = 1e-30  # frequencies this weak are left out of further products
_REACHES = (12.0, 600.0)  # further below, weights overflow and delta is above any target
_REVIEW = 8  # terms between two looks for such frequencies


class Composition:
    """The distribution of a sum of independent losses, seen through one tilt.

    Args:
        pmfs: one-release distributions on one grid.
        terms: what is composed of them.
        tilt: where the transform is sharpest, > 0.
        target: the delta whose neighbourhood is asked for; tails far below it are charged, not
            kept.
        upper: whether delta is bounded from above (pmfs pessimistic) or from below (pmfs
            optimistic).
        largest: points the window may have.

    Raises:
        CannotComputeError: the window needs more; nothing is allocated by then.
    """

    def __init__(
        self,
        pmfs: Sequence[LossPmf],
        terms: Sequence[Term],
        tilt: float,
        target: float,
        upper: bool = True,
        largest: int = LARGEST_WINDOW,
    ) -> None:
        self._pmfs, self._terms = aligned(list(pmfs), list(terms), upper)
        # of the sum; tilted quantities leave it out
        self._offset = math.fsum(
            term.count * self._pmfs[term.weights[0][0]].offset for term in self._terms
        )
        self._interval = pmfs[0].interval
        self._tilt = tilt
        self._target = target
        self._upper = upper
        self._normaliser = self._cumulant(tilt)
        self._low, size = self._window(largest)
        self._lost = self._lost_mass()
        self._masses, self._roundoff = self._transform(size)
        self._grid: Array | None = None

    def epsilon(self, delta: float) -> float:
        """A bound on the smallest epsilon >= 0 whose delta is within `delta`.

        From above: with every allowance it is within (inf if none is). From below: with every
        allowance it is not within yet (0 if it already is there).

        Args:
            delta: in (0, 1).
        """
        for reach in _REACHES:
            losses, deltas = self._deltas_on_grid(delta, reach)
            beyond = np.nonzero(deltas > delta)[0]
            if beyond.size:
                break
        if not self._upper:
            return self._last_beyond(losses, int(beyond[-1]) + 1, delta) if beyond.size else 0.0
        within = np.nonzero(deltas <= delta)[0]
        first = int(within[0]) if within.size else losses.size
        # The running sums locate the answer; only direct sums, with all allowances, decide it.
        for index in range(first, min(first + 20, losses.size)):
            if self.delta(float(losses[index])) <= delta:
                return max(0.0, self._within_cell(losses, index, delta))
        # Round-off hides the answer, but no finite loss exceeds the sum of the largest ones.
        return max(0.0, self._largest_loss()) if self._lost <= delta else math.inf

    def delta(self, epsilon: float) -> float:
        """The bound on delta at epsilon, with every allowance.

        Args:
            epsilon: any number.

        Returns:
            a probability in [0, 1].
        """
        losses = self._losses()
        if epsilon < losses[0]:
            if not self._upper:
                return self.delta(float(losses[0]))
            least = float(losses[0])
            return min(1.0, self.delta(least) - math.expm1(epsilon - least))
        weights, beyond = self._weights_beyond(epsilon)
        return self._allowing(float(weights @ -np.expm1(epsilon - beyond)), epsilon)

    def _weights_beyond(self, epsilon: float) -> tuple[Array, Array]:
        """(untilted masses, losses) of all losses above epsilon."""
        losses = self._losses()
        start = int(np.searchsorted(losses, epsilon, side="right"))
        exponent = self._normaliser - self._tilt * (losses[start:] - self._offset)
        return self._masses[start:] * np.exp(np.minimum(exponent, 700.0)), losses[start:]

    def _allowing(self, total: float, epsilon: float) -> float:
        """delta with every allowance, from its sum."""
        roundoff = float(self._roundoff_at(np.array([epsilon]))[0])
        if self._upper:
            return min(1.0, total * _SLACK + self._lost + roundoff)
        return max(0.0, total / _SLACK + self._lost - roundoff)

    def sharpest_tilt(self, epsilon: float) -> float:
        """The tilt at which the round-off of delta at epsilon would be smallest: that of the
        Chernoff bound.

        Returns:
            a tilt > 0, within a factor of 100 of the present one.
        """
        best = self._tilt
        for reach, count in ((64.0, 25), (1.41, 9)):
            tilts = (best * np.geomspace(1 / reach, reach, count)).tolist()
            best = min(
                tilts,
                key=lambda t: self._cumulant(t) - t * (epsilon - self._offset) - math.log1p(t),
            )
        return best

    def _deltas_on_grid(self, delta: float, reach: float) -> tuple[Array, Array]:
        """Losses around the answer, and the bound on delta at each by running sums (which cancel a
        little).

        Args:
            reach: how far to look below the Chernoff bound, in units of 1 / tilt.

        Returns:
            (losses, deltas), each [points].
        """
        losses = self._losses()
        reference = self._offset + (self._normaliser - math.log(delta)) / self._tilt
        start = min(int(np.searchsorted(losses, reference - reach / self._tilt)), losses.size - 1)
        losses, masses = losses[start:], self._masses[start:]
        scale = np.exp(self._normaliser - self._tilt * (losses - self._offset))
        weights = masses * scale
        above = sums_beyond(weights)
        deltas = above - discounted_beyond(weights, self._interval)
        sign = 1.0 if self._upper else -1.0
        return losses, deltas + self._lost + sign * (
            scale * (self._roundoff / (1 + self._tilt)) + 1e-12 * above
        )

    def _last_beyond(self, losses: Array, first: int, delta: float) -> float:
        """The largest epsilon near losses[first] whose delta certainly exceeds `delta`."""
        for index in range(min(first, losses.size - 1), max(-1, first - 20), -1):
            if self.delta(float(losses[index])) > delta:
                return max(0.0, self._sharpened(losses, min(index + 1, losses.size - 1), delta, 0))
        return 0.0

    def _within_cell(self, losses: Array, index: int, delta: float) -> float:
        return float(losses[0]) if index == 0 else self._sharpened(losses, index, delta, 1)

    def _sharpened(self, losses: Array, index: int, delta: float, end: int) -> float:
        """The crossing of `delta` in the cell below losses[index]: its lower (0) or upper (1) end
        by bisection.

        No loss lies inside the cell, so that delta(eps) = A - e^(eps - losses[index]) B there.
        """
        top = float(losses[index])
        weights, gaps = self._weights_beyond(top - 0.5 * self._interval)
        whole, discounted = float(np.sum(weights)), float(np.sum(weights * np.exp(top - gaps)))
        bracket = [float(losses[max(index - 1, 0)]), top]
        for _ in range(24):
            middle = (bracket[0] + bracket[1]) / 2
            total = (
                whole
                - math.exp(middle - top) * discounted
                + (1e-12 if self._upper else -1e-12) * whole
            )
            bracket[self._allowing(total, middle) <= delta] = middle
        return bracket[end]

    def _losses(self) -> Array:
        if self._grid is None:
            self._grid = self._offset + (self._low + np.arange(self._masses.size)) * self._interval
        return self._grid

    def _roundoff_at(self, losses: Array) -> Array:
        # e^(-t y) (1 - e^(-y)) <= 1 / (1 + t) for y >= 0.
        exponent = self._normaliser - self._tilt * (losses - self._offset)
        return np.exp(np.minimum(exponent, 700.0)) * (self._roundoff / (1 + self._tilt))

    def _largest_loss(self) -> float:
        tops = [pmf.offset + float(pmf.support[0][-1]) * pmf.interval for pmf in self._pmfs]
        return math.fsum(term.count * max(tops[i] for i, _ in term.weights) for term in self._terms)

    def _lost_mass(self) -> float:
        """What delta gains (from above: mass at +inf and the cut tail; from below: mass at +inf,
        less `lowered_by`).
        """
        infinite = infinite_mass(self._pmfs, self._terms)
        if self._upper:
            # The tail above the window is at most this by the choice of the window.
            return infinite + 1e-7 * self._target
        lowered_by = math.fsum(
            term.count * math.fsum(w * self._pmfs[i].lowered_by for i, w in term.weights)
            for term in self._terms
        )
        return infinite * (1 - 1e-9) - lowered_by

    def _cumulant(self, tilt: float) -> float:
        each = [pmf.cumulant(tilt) for pmf in self._pmfs]
        return math.fsum(term.count * blended_cumulant(term, each) for term in self._terms)

    def _window(self, largest: int) -> tuple[int, int]:
        """(first index, size) of a window outside which the tails are negligible, by Chernoff
        bounds.
        """
        spread = self._spread()
        step = math.sqrt(40.0) / max(spread, 1e-300)
        factors = np.geomspace(0.01, 6.0, 10).tolist()
        log_tail = math.log(1e-7 * self._target)
        high, wide = math.inf, math.inf
        for gap in (step * factor for factor in factors):
            above = self._cumulant(self._tilt + gap)
            high = min(high, (above - log_tail) / (self._tilt + gap))
            wide = min(wide, (above - self._normaliser + _WRAPPED) / gap)
        # the true tail is charged; the tilted one would wrap around and cost accuracy
        high = max(high, wide)
        low = max(
            (self._normaliser - self._cumulant(self._tilt - step * factor) - _WRAPPED)
            / (step * factor)
            for factor in factors
        )
        reach = (high - low) / self._interval
        if not reach < largest - 8:
            raise CannotComputeError(
                f"the composition would need {reach:.3g} grid points (limit {largest})"
            )
        first = math.floor(low / self._interval) - 1
        return first, int(
            fft.next_fast_len(max(8, math.ceil(high / self._interval) + 2 - first), real=True)
        )

    def _spread(self) -> float:
        """Standard deviation of the composed loss under the tilt."""
        each = [pmf.cumulant(self._tilt) for pmf in self._pmfs]
        moments = []
        for pmf in self._pmfs:
            index, masses, _ = pmf.tilted(self._tilt)
            centre = float(masses @ index)
            moments.append((centre, float(masses @ (index - centre) ** 2)))
        variance = 0.0
        for term in self._terms:
            total = blended_cumulant(term, each)
            shares = [(math.exp(each[i] - total) * w, *moments[i]) for i, w in term.weights]
            centre = math.fsum(share * mean for share, mean, _ in shares)
            spread = math.fsum(
                share * (square + (mean - centre) ** 2) for share, mean, square in shares
            )
            variance += term.count * spread
        return self._interval * math.sqrt(variance)

    def _transform(self, size: int) -> tuple[Array, float]:
        """(composed tilted masses on the window, bound on the sum of their absolute errors)."""
        per_entry = 4 * _UNIT * (math.log2(size) + 4)  # of one transform of masses that sum to 1
        steps, cumulants = [], []
        for pmf in self._pmfs:
            index, masses, cumulant = pmf.tilted(self._tilt)
            steps.append(fft.rfft(np.bincount(index % size, weights=masses, minlength=size)))
            cumulants.append(cumulant)
        spectrum, weakest = self._product(steps, cumulants)
        magnitude = np.abs(spectrum)
        total = sum(term.count for term in self._terms)
        errors = per_entry * (total * magnitude / np.maximum(weakest, per_entry) + magnitude)
        composed = np.maximum(np.roll(fft.irfft(spectrum, size), -(self._low % size)), 0.0)
        # Parseval and Cauchy-Schwarz: sum |error| <= sqrt(sum over all frequencies of |error|^2).
        roundoff = 2 * math.sqrt(2 * float(np.sum(errors * errors))) + 2 * _NEGLIGIBLE * size
        # Mass that wraps around the window from below only adds to the sum: a lower bound must take
        # it off.
        return composed, roundoff if self._upper else roundoff + 4 * math.exp(-_WRAPPED)

    def _product(
        self, steps: list[ComplexArray], cumulants: list[float]
    ) -> tuple[ComplexArray, Array]:
        """(the spectrum of all terms, the smallest magnitude any factor has at each frequency)."""
        spectrum = np.ones(steps[0].size, dtype=complex)
        weakest = np.ones(steps[0].size)
        active = spectrum.size
        for number, term in enumerate(self._terms):
            total = blended_cumulant(term, cumulants)
            shares = [(i, w * math.exp(cumulants[i] - total)) for i, w in term.weights]
            factor = shares[0][1] * steps[shares[0][0]][:active]
            for i, share in shares[1:]:
                factor += share * steps[i][:active]
            magnitude = np.abs(factor)
            np.minimum(weakest[:active], magnitude, out=weakest[:active])
            if term.count == 1:
                spectrum[:active] *= factor
            else:
                power = _power(factor, magnitude, term.count)
                active = power.size
                spectrum[:active] *= power
                spectrum[active:] = 0.0
            if number % _REVIEW == _REVIEW - 1:
                # No factor exceeds 1 in magnitude, so what is negligible stays so.
                kept = np.nonzero(np.abs(spectrum[:active]) > _NEGLIGIBLE)[0]
                active = int(kept[-1]) + 1 if kept.size else 1
                spectrum[active:] = 0.0
        return spectrum, weakest


def _power(values: ComplexArray, magnitude: Array, count: int) -> ComplexArray:
    """values**count, up to the last entry that is not negligible (magnitudes are at most 1)."""
    with np.errstate(divide="ignore"):
        log_size = count * np.log(magnitude)
    kept = np.nonzero(log_size > math.log(_NEGLIGIBLE))[0]
    last = int(kept[-1]) + 1 if kept.size else 1
    return np.exp(np.maximum(log_size[:last], -700.0) + 1j * (count * np.angle(values[:last])))
