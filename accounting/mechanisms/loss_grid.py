"""Privacy losses on a grid: a distribution that is certainly too pessimistic, and one certainly too
optimistic.

A privacy loss log(P/Q) is known through masses in the cells between neighbouring grid points. Write
C(k) for E_Q[(P/Q - k)+], the hockey-stick divergence at k = e^eps; composition keeps the order of
such functions, also when each is only smaller pointwise.

Pessimistic: each cell's mass moves to its two ends so that its P mass and its Q mass are kept. C
can only grow ("connect the dots": Doroshenko, Ghazi, Kamath, Kumar and Manurangsi 2022, arXiv
2207.04380).

Optimistic (derived here): between two grid points C lies above its tangents at them, so the chord,
lowered by the height m of the chord above the tangents' intersection, lies below C. Lowering every
grid point by the larger m of its two cells gives a broken line below C, whose second differences
are the masses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class LossPmf:
    """A privacy loss on a grid: the value offset + (first + i) * interval has P mass masses[i].

    Attributes:
        first: index of the first mass.
        masses: probabilities [points].
        infinite: P mass at +inf.
        interval: width of the grid, in loss, > 0.
        offset: the loss at index 0.
        lowered_by: what the divergence at any epsilon must be lowered by, once for each release; 0
            if pessimistic.
    """

    first: int
    masses: Array
    infinite: float
    interval: float
    offset: float = 0.0
    lowered_by: float = 0.0

    @cached_property
    def support(self) -> tuple[Array, Array]:
        """Indices and logs of the positive masses, each [positive masses]."""
        held = np.nonzero(self.masses > 0)[0]
        return (held + self.first).astype(float), np.log(self.masses[held])

    def cumulant(self, tilt: float) -> float:
        """log E[exp(tilt * (loss - offset)); loss finite].

        Args:
            tilt: any real number.

        Returns:
            the log; -inf if no finite loss has mass.
        """
        index, log_mass = self.support
        if not index.size:
            return -math.inf
        exponent = log_mass + (tilt * self.interval) * index
        largest = float(np.max(exponent))
        return largest + math.log(float(np.sum(np.exp(exponent - largest))))

    def tilted(self, tilt: float) -> tuple[NDArray[np.int64], Array, float]:
        """The distribution weighted by exp(tilt * (loss - offset)), finite losses only.

        Args:
            tilt: any real number.

        Returns:
            (indices, probabilities that sum to 1, log of what they were divided by); both arrays
            are [positive masses].
        """
        index, log_mass = self.support
        exponent = log_mass + tilt * self.interval * index
        cumulant = self.cumulant(tilt)
        return index.astype(np.int64), np.exp(exponent - cumulant), cumulant

    def realigned(self, offset: float, upper: bool) -> LossPmf:
        """The same on a grid with another offset.

        Args:
            offset: of the new grid, in loss.
            upper: split each mass between its neighbours, so that no divergence falls; else move it
                down, so that none rises.
        """
        if offset == self.offset:
            return self
        shift = (self.offset - offset) / self.interval
        whole = math.floor(shift)
        share = (
            math.expm1(-(shift - whole) * self.interval) / math.expm1(-self.interval)
            if upper
            else 0.0
        )
        masses = np.append(self.masses * (1 - share), 0.0)
        masses[1:] += self.masses * share
        return replace(self, first=self.first + whole, masses=masses, offset=offset)


@dataclass(frozen=True)
class LossGrid:
    """P masses of the privacy loss, cell by cell, each split so that its Q mass is kept, too.

    Cell i lies between the losses offset + (first + i) * interval and one interval more.

    Attributes:
        interval: width of the grid, in loss, > 0.
        first: index of the first cell's lower end.
        up: P mass [cells] that belongs to each cell's upper end.
        down: P mass [cells] that belongs to each cell's lower end.
        below: P mass of smaller and larger finite losses.
        above: P mass of smaller and larger finite losses.
        above_least: e^(largest grid loss) times the Q mass of the larger ones.
        infinite: P mass at +inf.
        rounding_mass: probability charged for the rounding of masses.
        share_rounding: bound on the rounding of up/(up + down).
        offset: the loss at index 0.
    """

    interval: float
    first: int
    up: Array
    down: Array
    below: float
    above: float
    above_least: float
    infinite: float
    rounding_mass: float
    share_rounding: float
    offset: float = 0.0

    def pessimistic(self) -> LossPmf:
        """A distribution whose divergences are nowhere smaller, before and after composition."""
        moved = np.minimum(self.down, self.share_rounding * (self.up + self.down))
        masses = np.zeros(self.up.size + 1)
        masses[1:] = self.up + moved
        masses[:-1] += self.down - moved
        masses[0] += self.below
        return LossPmf(
            self.first,
            masses,
            self.above + self.infinite + self.rounding_mass,
            self.interval,
            self.offset,
        )

    def optimistic(self, tilt: float = 1.0) -> LossPmf:
        """A distribution whose divergences, less `lowered_by`, are nowhere larger, before and after
        composition.

        Args:
            tilt: of two such distributions, with `lowered_by` within a factor of 2, the one with
                the larger E[exp(tilt * loss)] is returned.
        """
        mass = self.up + self.down
        moved = np.minimum(self.up, self.share_rounding * mass)
        up, down = self.up - moved, self.down + moved
        shrink = -math.expm1(-self.interval)
        with np.errstate(divide="ignore", invalid="ignore"):
            raw = up * down * shrink / (up * math.exp(-self.interval) + down)
        height = np.where(mass > 0, raw, 0.0) * (1 + 1e-9) + 2 * self.share_rounding * mass * shrink
        lowered = np.maximum(np.append(height, 0.0), np.append(0.0, height))
        along = _following_first_tangent(up, down, lowered, self.interval)
        candidates = [self._lowered_by(heights, up, down) for heights in (lowered, along)]
        least = min(pmf.lowered_by for pmf in candidates)
        return max(candidates, key=lambda pmf: (pmf.lowered_by <= 2 * least, pmf.cumulant(tilt)))

    def _lowered_by(self, lowered: Array, up: Array, down: Array) -> LossPmf:
        """The distribution of the broken line that is this much below each grid point, made
        convex.
        """
        slope = np.diff(lowered)
        masses: Array = np.zeros(up.size + 1)
        masses[1:] += up + slope / -math.expm1(-self.interval)
        masses[:-1] += down - slope / math.expm1(min(self.interval, 700.0))
        masses[-1] += self.above_least
        kept, lowered_by = _convex(masses, self.interval)
        exact, lowered_by = 1 - 1e-11, lowered_by + float(lowered[-1])  # the masses' own rounding
        return LossPmf(
            self.first, kept * exact, self.infinite * exact, self.interval, self.offset, lowered_by
        )


class DiscretizableLoss(Protocol):
    """A privacy loss that can be rounded to a grid in both directions."""

    def pessimistic(self) -> LossPmf:
        """A distribution whose divergences are nowhere smaller, before and after composition."""

    def optimistic(self, tilt: float = 1.0) -> LossPmf:
        """A distribution whose divergences, less `lowered_by`, are nowhere larger.

        Args:
            tilt: where it shall be as good as possible, > 0.
        """


@dataclass(frozen=True)
class Mixture:
    """The loss of a mechanism that also tells which of several pairs it used.

    By joint convexity it is at least as revealing as the mechanism that does not tell.

    Attributes:
        parts: (weight, loss) pairs; the weights are probabilities that sum to 1.
    """

    parts: tuple[tuple[float, DiscretizableLoss], ...]

    def pessimistic(self) -> LossPmf:
        """The weighted sum of the parts' pessimistic distributions."""
        return mixed([(weight, part.pessimistic()) for weight, part in self.parts], upper=True)

    def optimistic(self, tilt: float = 1.0) -> LossPmf:
        """The weighted sum of the parts' optimistic distributions."""
        return mixed([(weight, part.optimistic(tilt)) for weight, part in self.parts], upper=False)


def mixed(parts: Sequence[tuple[float, LossPmf]], upper: bool) -> LossPmf:
    """The weighted sum of distributions, on the grid of the heaviest one.

    Args:
        parts: (weight, distribution) pairs; all distributions have one interval.
        upper: how the others are moved to that grid, see `LossPmf.realigned`.
    """
    offset = max(parts, key=lambda part: part[0])[1].offset
    aligned = [(weight, pmf.realigned(offset, upper)) for weight, pmf in parts]
    first = min(pmf.first for _, pmf in aligned)
    masses = np.zeros(max(pmf.first + pmf.masses.size for _, pmf in aligned) - first)
    for weight, pmf in aligned:
        start = pmf.first - first
        masses[start : start + pmf.masses.size] += weight * pmf.masses
    infinite = math.fsum(weight * pmf.infinite for weight, pmf in parts)
    lowered_by = math.fsum(weight * pmf.lowered_by for weight, pmf in parts)
    return LossPmf(first, masses, infinite, parts[0][1].interval, offset, lowered_by)


def loss_grid_from_atoms(
    losses: Sequence[float],
    masses: Sequence[float],
    infinite: float,
    interval: float,
    rounding_mass: float,
) -> LossGrid:
    """Cells of a loss with finitely many values.

    Args:
        losses: the finite values [n].
        masses: the P mass of each [n], which sum to 1 with `infinite`.
        infinite: P mass at +inf.
        interval: width of the grid, in loss, > 0.
        rounding_mass: probability charged for the rounding of masses.
    """
    positions = np.asarray(losses, dtype=float) / interval
    weights = np.asarray(masses, dtype=float)
    first = math.floor(float(positions.min()))
    size = max(1, math.ceil(float(positions.max())) - first)
    up, down = np.zeros(size), np.zeros(size)
    index = np.minimum(np.floor(positions).astype(int) - first, size - 1)
    rest = (positions - first - index) * interval  # loss above the lower end of its cell
    share = -np.expm1(-rest) / -math.expm1(-interval)
    np.add.at(up, index, weights * share)
    np.add.at(down, index, weights * (1 - share))
    share_rounding = 1e-12 + 4e-16 * float(np.max(np.abs(positions)))
    return LossGrid(
        interval=interval,
        first=first,
        up=up,
        down=down,
        below=0.0,
        above=0.0,
        above_least=0.0,
        infinite=infinite,
        rounding_mass=rounding_mass,
        share_rounding=share_rounding,
    )


def _following_first_tangent(up: Array, down: Array, lowered: Array, interval: float) -> Array:
    """Another lowering at the lower end, where the broken line may not leave the first tangent
    downwards.

    Lowering the first grid point itself loses that much mass. Or the line follows the first tangent
    until it is low enough, lower[j] = E_Q[(grid point j - P/Q)+], which loses no mass but more of
    the spread.
    """
    growth = math.expm1(min(interval, 700.0))
    # E_Q[(z_j - P/Q)+] and z_j Q(P/Q < z_j), both with the mass on the grid only
    along, below = 0.0, 0.0
    result = lowered.copy()
    for j in range(lowered.size):
        result[j] = along
        if j and along >= lowered[j] * (1 + 1e-12):
            break
        if j < up.size:
            along = (along + (below + float(down[j])) * growth) * (1 + 1e-12)
            below = (below + float(down[j])) * (1 + growth) + float(up[j])
    return result


def _convex(masses: Array, interval: float) -> tuple[Array, float]:
    """Masses of the greatest convex function below the broken line, and how much lower it ends.

    A negative mass is a concave corner: the corner is cut, which spreads it over the neighbouring
    corners.
    """
    lowered_by, size = 0.0, masses.size
    waiting = np.nonzero(masses < 0)[0].tolist()
    left: dict[int, int] = {}
    right: dict[int, int] = {}
    while waiting:
        here = waiting.pop()
        value = float(masses[here])
        if value >= 0.0:
            continue
        masses[here] = 0.0
        before, after = left.get(here, here - 1), right.get(here, here + 1)
        back, ahead = (here - before) * interval, (after - here) * interval
        right[before], left[after] = after, before
        if before < 0 and after >= size:
            break
        if before < 0:
            masses[after] += value * math.exp(min(ahead, 700.0))
        elif after >= size:
            masses[before] += value * math.exp(-back)
            lowered_by += -value * -math.expm1(-back)
        else:
            whole = -math.expm1(-back - ahead)
            masses[before] += value * math.exp(-back) * -math.expm1(-ahead) / whole
            masses[after] += value * -math.expm1(-back) / whole
        waiting += [node for node in (before, after) if 0 <= node < size and masses[node] < 0]
    return masses, lowered_by
