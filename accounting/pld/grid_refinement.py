"""Choosing the grid of losses: finer and finer, until the bounds from above and from below are
close.

A grid of width v adds about T v^2 (t+1) / 12 to epsilon at tilt t and takes twice that from the
lower bound
(derived here: a split adds about v^2/6 to the variance of one release's loss, the chords take
v^2/3). The best tilt is that of the Chernoff bound at the answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from accounting.errors import CannotComputeError, GridTooFineError
from accounting.events import Event
from accounting.mechanisms.loss_grid import DiscretizableLoss, LossPmf
from accounting.pld.composition import LARGEST_WINDOW, Composition
from accounting.pld.terms import chernoff_delta
from accounting.schedules import NoiseSchedule, blended

WIDTH = 8e-4  # how wide, relative to the answer, the bounds may be
_TOLERANCE = 3e-4  # relative, of the pessimistic side alone: what the first grid aims at
_LARGEST_TOTAL = 2**24  # points of all single releases together, each about 60 bytes
_SMALL = 1e-3  # epsilon below which little effort is made
_LARGEST_EFFORT = 20  # grids, refused ones included
_PATIENCE = 2  # grids in a row that may fail to narrow the bounds
_COARSER = 4.0  # how much coarser the first look at the second direction is
_LARGEST_REFINED = 2**21  # points of a window that is only wanted for closer bounds


class Bounds(NamedTuple):
    """lower <= truth <= upper.

    Attributes:
        lower: >= 0.
        upper: >= 0; inf where there is no bound.
    """

    lower: float
    upper: float


class Grid(NamedTuple):
    """How losses are discretised and composed.

    Attributes:
        width: of the grid, in loss, > 0.
        tilt: of the transform, > 0.
        target: the delta below which tails may be cut.
    """

    width: float
    tilt: float
    target: float


@dataclass(frozen=True)
class Query:
    """What is asked of the composition of some releases: epsilon at `delta`, or delta at `epsilon`.

    Attributes:
        steps: (event, count) pairs.
        adjacency: the neighbouring relation.
        tilt: a first guess, > 0.
        target: the delta at `near`, roughly.
        near: an epsilon close to (not below) where it is asked.
        delta: in (0, 1) if epsilon is asked for, else None.
        epsilon: >= 0 if delta is asked for, else None.
        absolute: how wide the bounds may always be, in the unit of the answer.
        above: schedules that bound the steps from above and from below.
        below: schedules that bound the steps from above and from below.
    """

    steps: list[tuple[Event, int]]
    adjacency: str
    tilt: float
    target: float
    near: float
    delta: float | None = None
    epsilon: float | None = None
    absolute: float = 0.0
    above: NoiseSchedule = field(init=False)
    below: NoiseSchedule = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "above", blended(self.steps, self.adjacency, upper=True))
        object.__setattr__(self, "below", blended(self.steps, self.adjacency, upper=False))

    def ask(self, composition: Composition) -> float:
        """Read the answer from a composition.

        Returns:
            a bound on epsilon, or on delta.
        """
        return (
            composition.epsilon(self.delta)
            if self.delta is not None
            else composition.delta(self.epsilon or 0.0)
        )

    def epsilon_of(self, answer: float) -> float:
        """The epsilon that an answer belongs to.

        Args:
            answer: an epsilon, or a delta, as asked for.
        """
        return answer if self.epsilon is None else self.epsilon

    def point(self, answer: float) -> tuple[float, float]:
        """The point that an answer stands for.

        Args:
            answer: an epsilon, or a delta, as asked for.

        Returns:
            (epsilon, delta).
        """
        return (answer, self.delta) if self.delta is not None else (self.epsilon or 0.0, answer)

    @property
    def releases(self) -> int:
        """How many releases are composed."""
        return sum(count for _, count in self.steps)


def over_directions(query: Query) -> Bounds:
    """The larger of the directions' bounds; a direction that is clearly the smaller one is not
    refined.

    Raises:
        CannotComputeError: no grid within the limits gives an answer.
    """
    start = Grid(_first_width(query), query.tilt, query.target)
    first, grid = _converged(query, 0, 0.0, start)
    if _stays_below(query, first.upper, grid):
        return first
    second, _ = _converged(query, 1, first.upper, grid)
    return Bounds(max(first.lower, second.lower), max(first.upper, second.upper))


def _stays_below(query: Query, enough: float, grid: Grid) -> bool:
    """Whether there is no second direction, or a coarse look bounds it by `enough`."""
    try:
        if not _losses(query, query.above.nodes, 1, grid):
            return True
        coarse = grid._replace(width=_COARSER * grid.width)
        pmfs = _within_limits(
            [loss.pessimistic() for loss in _losses(query, query.above.nodes, 1, coarse)]
        )
        composition = Composition(
            pmfs, query.above.terms, grid.tilt, grid.target, True, _LARGEST_REFINED
        )
    except CannotComputeError:
        return False
    return query.ask(composition) <= enough


def _first_width(query: Query) -> float:
    tolerance = _TOLERANCE * query.near + 1e-6
    smooth = math.sqrt(6 * tolerance / (query.releases * (query.tilt + 1)))
    return _power_of_two(min(max(0.05, 2e-5 * query.near), smooth))


def _power_of_two(width: float) -> float:
    # few distinct values: neighbouring questions share their grid
    return 2.0 ** math.floor(math.log2(width))


def _converged(query: Query, side: int, enough: float, grid: Grid) -> tuple[Bounds, Grid]:
    """(one direction's bounds, the grid they came from); no effort is made below an upper end of
    `enough`.
    """
    best, width, done, stalls = Bounds(0.0, math.inf), math.inf, None, 0
    tried: set[Grid] = set()
    while grid not in tried and len(tried) < _LARGEST_EFFORT:
        tried.add(grid)
        try:
            largest = LARGEST_WINDOW if done is None else _LARGEST_REFINED
            found, tilt = _on_grid(query, side, enough, grid, largest, best)
        except CannotComputeError as refusal:
            easier = _easier(grid, done, isinstance(refusal, GridTooFineError))
            if easier is None:
                break
            grid = easier
            continue
        best = Bounds(max(best.lower, found.lower), min(best.upper, found.upper))
        done, before, width = grid, width, best.upper - best.lower
        if best.upper <= enough or _close(query, best):
            break
        stalls = stalls + 1 if width > 0.8 * before else 0
        # A finer grid hardly narrows the bounds of a schedule that is itself only bounded.
        if stalls > (1 if query.epsilon_of(best.upper) < _SMALL else _PATIENCE) or (
            best.upper < math.inf and not query.above.exact
        ):
            break
        if stalls:
            # Round-off rules: look on either side of the tilt.
            grid = grid._replace(tilt=grid.tilt * (8.0 if stalls % 2 else 1 / 64))
            continue
        wanted = (
            grid.width * math.sqrt(0.7 * WIDTH * best.upper / width)
            if width < math.inf
            else grid.width / 2
        )
        target = min(grid.target, query.point(best.upper)[1])
        step = round(math.log2(max(grid.width / 64, wanted) / grid.width))
        grid = Grid(grid.width * 2.0 ** min(-1, step), tilt, target)
    if done is None:
        raise CannotComputeError(
            "the distribution needs more grid points than the limit, or delta is too small for it"
        )
    return best, done


def _easier(grid: Grid, done: Grid | None, too_fine: bool) -> Grid | None:
    """What to try when a grid was refused: a tilt nearer to one that worked, then a wider grid;
    None to give up.
    """
    if done is not None and grid.tilt != done.tilt and not too_fine:
        nearer = math.sqrt(grid.tilt * done.tilt)
        return grid._replace(
            tilt=nearer if abs(math.log(grid.tilt / done.tilt)) > 0.4 else done.tilt
        )
    wider = 2 * grid.width
    return (
        None
        if wider > 1e6 or (done is not None and wider >= 2 * done.width)
        else grid._replace(width=wider)
    )


def _on_grid(
    query: Query, side: int, enough: float, grid: Grid, largest: int, best: Bounds
) -> tuple[Bounds, float]:
    """One direction's bounds on one grid.

    Args:
        best: the bounds of coarser grids.

    Returns:
        (bounds, the tilt that would be best there).
    """
    losses = _losses(query, query.above.nodes, side, grid)
    if not losses:  # the pairs are symmetric: there is no second direction
        return Bounds(0.0, 0.0), grid.tilt
    lower = _below(query, side, grid, largest) if best.upper < math.inf else None
    if lower is not None and _close(query, Bounds(lower, best.upper)):
        return Bounds(lower, best.upper), grid.tilt
    pmfs = _within_limits([loss.pessimistic() for loss in losses])
    epsilon, delta = query.point(enough)
    if enough > 0.0 and chernoff_delta(pmfs, query.above.terms, epsilon) <= delta:
        return Bounds(0.0, enough), grid.tilt
    upper = Composition(pmfs, query.above.terms, grid.tilt, grid.target, True, largest)
    found = query.ask(upper)
    if found <= enough:
        return Bounds(0.0, found), grid.tilt
    at = query.epsilon_of(found)
    if at == math.inf:
        return Bounds(0.0, found), grid.tilt / 2
    bounds = Bounds(_below(query, side, grid, largest) if lower is None else lower, found)
    return bounds, grid.tilt if _close(query, bounds) else upper.sharpest_tilt(at)


def _below(query: Query, side: int, grid: Grid, largest: int) -> float:
    """The bound from below on one grid."""
    losses = _losses(query, query.below.nodes, side, grid)
    pmfs = _within_limits([loss.optimistic(grid.tilt) for loss in losses])
    return query.ask(Composition(pmfs, query.below.terms, grid.tilt, grid.target, False, largest))


def _close(query: Query, bounds: Bounds) -> bool:
    """Whether no finer grid is needed."""
    return bounds.upper - bounds.lower <= WIDTH * bounds.upper + query.absolute < math.inf


def _losses(query: Query, nodes: list[Event], side: int, grid: Grid) -> list[DiscretizableLoss]:
    """The privacy loss of each distinct release in one direction; none if there is no such
    direction.
    """
    # Cutting this much adds 1e-5 to delta, relatively; keeping more would let rare losses dominate
    # the tilted masses.
    tail = 1e-5 * grid.target / query.releases
    if tail < 1e-280:
        raise CannotComputeError(f"delta={grid.target!r} is out of reach of double precision")
    tail = 10.0 ** math.floor(math.log10(tail))
    sides = [node.loss_grid(query.adjacency, grid.width, tail) for node in nodes]
    if side >= max(len(directions) for directions in sides):
        return []
    return [directions[min(side, len(directions) - 1)] for directions in sides]


def _within_limits(pmfs: list[LossPmf]) -> list[LossPmf]:
    points = sum(pmf.masses.size for pmf in pmfs)
    if points > _LARGEST_TOTAL:
        raise GridTooFineError(
            f"single releases would need {points} grid points together (limit {_LARGEST_TOTAL})"
        )
    return pmfs
