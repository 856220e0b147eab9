"""Many different releases through few distributions: a schedule whose noise changes at every step.

Write C_v(k) for the divergences of a Poisson-sampled Gaussian. As a function of theta = Phi(1/(2
sigma)) they are
convex at every k: for the unsampled Gaussian dC/dtheta = 2 e^(eps/2 - eps^2 sigma^2 / 2), which
increases with theta, and sampling scales C and moves k. They are convex in the sample rate, too,
since the pair is linear in it (derived here). So a release between four neighbouring nodes is
dominated by the bilinear mixture of the four, with an error of second order in the distance; a
release at the node with more noise and less sampling bounds it from below.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy.special import ndtr

from accounting.events import Event, PoissonGaussian

_FEW = 24  # releases that differ: up to so many are composed as they are
_RATIO = 1.01  # between nodes
_MOST_NODES = 160  # distinct releases of a schedule; the nodes move apart until it is kept


@dataclass(frozen=True)
class Term:
    """Several releases of one labelled mixture of distributions.

    Attributes:
        weights: (index of a distribution, probability) pairs; the probabilities sum to 1.
        count: number of releases.
    """

    weights: tuple[tuple[int, float], ...]
    count: int


class NoiseSchedule(NamedTuple):
    """Distinct releases, and what to compose of them.

    Attributes:
        nodes: the distinct releases.
        terms: mixtures of them; an index is a position in `nodes`.
        exact: whether the terms are the steps themselves, not a bound on them.
    """

    nodes: list[Event]
    terms: list[Term]
    exact: bool


def blended(steps: Sequence[tuple[Event, int]], adjacency: str, upper: bool) -> NoiseSchedule:
    """A schedule of few distinct releases that bounds the steps from above or from below.

    Args:
        steps: (event, count) pairs.
        upper: bound from above, else from below.

    Returns:
        the steps themselves if at most 24 of them can be blended, else a schedule of at most 160
        distinct releases.
    """
    kinds = [event for event, _ in steps if isinstance(event, PoissonGaussian) and can_blend(event)]
    if len(kinds) <= _FEW:
        alone = [Term(((i, 1.0),), count) for i, (_, count) in enumerate(steps)]
        return NoiseSchedule([event for event, _ in steps], alone, True)
    ratio = _RATIO
    while True:
        schedule = _on_nodes(steps, kinds, ratio, adjacency, upper)
        if len(schedule.nodes) <= _MOST_NODES:
            return schedule
        ratio **= 1.5


def _on_nodes(
    steps: Sequence[tuple[Event, int]],
    kinds: list[PoissonGaussian],
    ratio: float,
    adjacency: str,
    upper: bool,
) -> NoiseSchedule:
    rates = _nodes([event.sample_rate for event in kinds], ratio)
    sigmas = _nodes([event.noise_multiplier for event in kinds], ratio)
    index: dict[Event, int] = {}
    counts: dict[tuple[tuple[int, float], ...], int] = {}
    for event, count in steps:
        corners = [(1.0, event)]
        if isinstance(event, PoissonGaussian) and can_blend(event):
            corners = _corners(event, rates, sigmas, upper, adjacency != "replace-one")
        weights = tuple((index.setdefault(node, len(index)), weight) for weight, node in corners)
        counts[weights] = counts.get(weights, 0) + count
    return NoiseSchedule(
        list(index), [Term(weights, count) for weights, count in counts.items()], False
    )


def can_blend(event: Event) -> bool:
    """Whether the event is a sampled Gaussian with some noise.

    Returns:
        True for a `PoissonGaussian` with a sample rate in (0, 1) and a noise multiplier above 1e-3.
    """
    return (
        isinstance(event, PoissonGaussian)
        and 0.0 < event.sample_rate < 1.0
        and event.noise_multiplier > 1e-3
    )


def corners_on_lattice(event: PoissonGaussian, adjacency: str) -> list[tuple[float, Event]]:
    """A labelled mixture of releases on a fixed lattice that is at least as revealing as the event.

    Args:
        event: one that can be blended.

    Returns:
        (probability, node) pairs, at most four.
    """
    rates = [min(1.0, rate) for rate in _lattice_around(event.sample_rate)]
    sigmas = _lattice_around(event.noise_multiplier)
    return _corners(event, rates, sigmas, True, adjacency != "replace-one")


def _lattice_around(value: float) -> list[float]:
    """The powers of the ratio just below and above a positive value."""
    if value <= 0.0:
        return [value]
    step = math.floor(math.log(value) / math.log(_RATIO))
    return [_RATIO ** (step - 1), _RATIO**step, _RATIO ** (step + 1), _RATIO ** (step + 2)]


def _nodes(values: Sequence[float], ratio: float) -> list[float]:
    """Increasing values from the least to the largest: those given if few, else evenly spread in
    the logarithm.
    """
    distinct = sorted(set(values))
    if len(distinct) <= 4:
        return distinct
    span = distinct[-1] / distinct[0]
    spaces = max(1, math.ceil(math.log(span) / math.log(ratio)))
    inner = [distinct[0] * span ** (i / spaces) for i in range(1, spaces)]
    return [distinct[0], *inner, distinct[-1]]


def _corners(
    event: PoissonGaussian, rates: list[float], sigmas: list[float], upper: bool, convex: bool
) -> list[tuple[float, Event]]:
    less, more = _around(event.sample_rate, rates)
    loud, quiet = _around(event.noise_multiplier, sigmas)  # loud: less noise
    if not upper:
        return [(1.0, PoissonGaussian(less, quiet))]
    rate_share = _share(event.sample_rate, less, more)
    # Towards less noise by the position of theta; all of it where convexity is not known.
    noise_share = (
        1.0
        if quiet == loud
        else _share(_theta(event.noise_multiplier), _theta(quiet), _theta(loud))
    )
    if not convex:
        rate_share, noise_share = 1.0, 1.0
    corners = [
        (rate_share * noise_share, PoissonGaussian(more, loud)),
        (rate_share * (1 - noise_share), PoissonGaussian(more, quiet)),
        ((1 - rate_share) * noise_share, PoissonGaussian(less, loud)),
        ((1 - rate_share) * (1 - noise_share), PoissonGaussian(less, quiet)),
    ]
    return [(weight, node) for weight, node in corners if weight > 0.0]


def _theta(sigma: float) -> float:
    return float(ndtr(0.5 / sigma))


def _share(value: float, low: float, high: float) -> float:
    """Position of value between low (0) and high (1), rounded up a little: up is the safe side."""
    return 1.0 if high == low else min(1.0, (value - low) / (high - low) + 1e-12)


def _around(value: float, nodes: list[float]) -> tuple[float, float]:
    """The neighbouring nodes below and above (twice the same at a node)."""
    after = min(bisect_right(nodes, value), len(nodes) - 1)
    if nodes[after] <= value:
        return nodes[after], nodes[after]
    return nodes[max(after - 1, 0)], nodes[after]
