"""Terms of a composition: their moments, their mass at infinity, and one grid for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from accounting.mechanisms.loss_grid import LossPmf
from accounting.schedules import Term

_SLACK = 1 + 1e-9  # rounding of the moments


def chernoff_delta(pmfs: Sequence[LossPmf], terms: Sequence[Term], epsilon: float) -> float:
    """A quick upper bound on delta of a composition of pessimistic distributions, by their moments
    alone.

    (1 - e^(eps - s))+ <= c e^(t (s - eps)) with a = t + 1 and c = (1/a) (1 - 1/a)^t.

    Args:
        pmfs: pessimistic one-release distributions.
        terms: what is composed of them.
        epsilon: >= 0.

    Returns:
        a probability in [0, 1].
    """
    infinite, best = infinite_mass(pmfs, terms), 1.0
    for tilt in np.geomspace(1e-3, 1e5, 33).tolist():
        cumulants = [pmf.cumulant(tilt) + tilt * pmf.offset for pmf in pmfs]
        total = math.fsum(term.count * blended_cumulant(term, cumulants) for term in terms)
        log_bound = total - tilt * epsilon - math.log1p(tilt) - tilt * math.log1p(1 / tilt)
        best = min(best, math.exp(min(log_bound + 1e-9 * (1 + abs(total)), 0.0)))
    return min(1.0, best * _SLACK + infinite)


def infinite_mass(pmfs: Sequence[LossPmf], terms: Sequence[Term]) -> float:
    """Probability that the loss of a composition is +inf.

    Args:
        pmfs: one-release distributions.
        terms: what is composed of them.
    """
    each = [
        (math.fsum(w * pmfs[i].infinite for i, w in term.weights), term.count) for term in terms
    ]
    return -math.expm1(math.fsum(count * math.log1p(-mass) for mass, count in each))


def aligned(
    pmfs: list[LossPmf], terms: list[Term], upper: bool
) -> tuple[list[LossPmf], list[Term]]:
    """Give the distributions of each term one grid: that of the term's heaviest one.

    Args:
        upper: how the others are moved to that grid, see `LossPmf.realigned`.

    Returns:
        (distributions, terms), where moved distributions are added and the terms refer to them.
    """
    result, moved = list(pmfs), []
    known: dict[tuple[int, float], int] = {}
    for term in terms:
        offset = pmfs[max(term.weights, key=lambda pair: pair[1])[0]].offset
        weights = []
        for i, weight in term.weights:
            if pmfs[i].offset != offset and (i, offset) not in known:
                known[i, offset] = len(result)
                result.append(pmfs[i].realigned(offset, upper))
            weights.append((known.get((i, offset), i), weight))
        moved.append(Term(tuple(weights), term.count))
    return result, moved


def blended_cumulant(term: Term, cumulants: Sequence[float]) -> float:
    """log of the weighted sum of e^cumulant over the distributions of a term.

    Args:
        cumulants: one for each distribution.
    """
    if len(term.weights) == 1:
        return cumulants[term.weights[0][0]] + math.log(term.weights[0][1])
    largest = max(cumulants[i] for i, _ in term.weights)
    return largest + math.log(
        math.fsum(w * math.exp(cumulants[i] - largest) for i, w in term.weights)
    )
