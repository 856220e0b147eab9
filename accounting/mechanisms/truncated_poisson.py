"""Poisson sampling with a largest batch: larger samples are cut to a uniformly chosen subset of
that size.

n units with vectors of norm <= C, each drawn with probability q; more than B are cut to B; the sum
is released with noise N(0, s^2 C^2). Ganesh 2025 (arXiv 2508.15089) treats this by cases; what is
used here is derived below and is a little smaller. Let the unit x change (zeroed, absent, or
replaced), and let b say whether at least B of the
*other* units are drawn: p = P(b) = P(Bin(n-1, q) >= B). b does not depend on x, so by joint
convexity the mechanism is dominated by one that tells b: with probability 1-p that given "not b",
with probability p that given b.

Not b: no cut is ever needed. x is drawn with probability q independently of the others, and given
these the pair is that of plain Poisson sampling.

b: let T be the others drawn, U a uniform B-subset of T, and j uniform in U. Unless x is drawn and
survives the cut, the released sample is U; if it does, it is U without j and with x. The latter has
probability q B / (|T| + 1) given T, and whatever |T| is, (U, j) is uniform among all others. So
given b, survival is independent of (U, j) and has probability c = P(Bin(n, q) > B) (B/n) / p: all n
units are alike, so that x is in a cut sample with probability B/n. With R the law of the sum over U
this is M(D) = (1-c) R + c P1, M(D') = (1-c) R + c Q1, as in sampling without replacement at rate c,
with P1, Q1 and R at most 2 apart (Q1 = R if x is absent): see `without_replacement`.

A union bound (Chua et al. 2024, arXiv 2411.04205: delta + T (1 + e^eps) P(Bin(n, q) > B) after T
releases) is never
smaller: counting every survival of a cut as a failure costs at most p c = P(Bin(n, q) > B) B/n a
release. What the mechanism certainly reveals is plain Poisson sampling at rate (1-p) q + p c: all
other vectors may be 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betainc, betaincc

from accounting.mechanisms.loss_grid import DiscretizableLoss, LossPmf, Mixture
from accounting.mechanisms.poisson_gaussian import poisson_loss_grid, poisson_renyi
from accounting.mechanisms.without_replacement import fixed_size_loss_grid, fixed_size_renyi

_BINOMIAL = 1e-9  # bound on the relative error of a binomial tail (measured: below 1e-11)
_LEAST = 1e-290  # probabilities below this one are bounded only
_LARGEST_TAIL = 0.01


@dataclass(frozen=True)
class Truncation:
    """What cutting large samples does, each within a relative error of _BINOMIAL (p and 1-p).

    Attributes:
        uncut: 1-p, the probability of "not b".
        log_cut: log p.
        survival: c, the probability of being in the sample given b.
    """

    uncut: float
    log_cut: float
    survival: float

    def rounded(self, sign: int) -> Truncation:
        """Round all of them one way.

        Args:
            sign: 1 for up, -1 for down.
        """
        shift = 3 * sign * _BINOMIAL
        cut = math.exp(self.log_cut)
        # Of the two bounds on 1-p, the one that errs by the smaller of p and 1-p.
        ends = (self.uncut * (1 + shift), 1 - cut * (1 - shift))
        uncut = min(1.0, *ends) if sign > 0 else max(0.0, *ends)
        return Truncation(
            uncut, min(0.0, self.log_cut + shift), min(1.0, self.survival * (1 + shift))
        )


def truncation(units: int, rate: float, largest: int) -> Truncation:
    """The probabilities of a cut; where p is below 1e-290, log p and c are only bounds from above.

    Args:
        units: n.
        rate: q, in (0, 1].
        largest: B, from 1 to n - 1.
    """
    cut = float(betainc(largest, units - largest, rate))
    uncut = float(betaincc(largest, units - largest, rate))
    survival = rate * largest / (largest + 1)  # an upper bound: at least B + 1 units are drawn
    if cut < _LEAST:
        return Truncation(uncut, _log_chernoff(units - 1, rate, largest), survival)
    too_many = float(betainc(largest + 1, units - largest, rate))
    return Truncation(uncut, math.log(cut), min(survival, too_many * largest / units / cut))


def _log_chernoff(trials: int, rate: float, least: int) -> float:
    """A bound on log P(Bin(trials, rate) >= least), for least far above the mean: -trials
    KL(least/trials, rate).
    """
    share = least / trials
    rest = (1 - share) * math.log((1 - share) / (1 - rate)) if share < 1.0 else 0.0
    return -trials * (share * math.log(share / rate) + rest) * (1 - 1e-9)


@dataclass(frozen=True)
class Between:
    """A loss whose parameters are only known up to rounding.

    Attributes:
        above: its loss at parameters that are too large.
        below: its loss at parameters that are too small.
    """

    above: DiscretizableLoss
    below: DiscretizableLoss

    def pessimistic(self) -> LossPmf:
        """A distribution whose divergences are nowhere smaller, from the larger parameters."""
        return self.above.pessimistic()

    def optimistic(self, tilt: float = 1.0) -> LossPmf:
        """A distribution whose divergences, less `lowered_by`, are nowhere larger, from the smaller
        ones.
        """
        return self.below.optimistic(tilt)


def truncated_loss(
    units: int,
    rate: float,
    largest: int,
    sigma: float,
    adjacency: str,
    interval: float,
    tail: float,
) -> tuple[DiscretizableLoss, ...]:
    """Privacy loss of one release.

    Args:
        units: n.
        rate: q, in (0, 1].
        largest: B, from 1 to n - 1.
        sigma: noise standard deviation / L2 sensitivity of one unit.
        interval: width of the grid, in loss, > 0.
        tail: probability that may lie beyond the grid at each end, in (0, 1); more after a cut.

    Returns:
        (remove, add) directions, or one direction under replace-one.

    Raises:
        CannotComputeError: there is no noise, or the grid would be too large.
    """
    plain = poisson_loss_grid(rate, sigma, adjacency, interval, tail)
    exact = truncation(units, rate, largest)
    sides: list[list[DiscretizableLoss]] = []
    for sign in (1, -1):
        parts = exact.rounded(sign)
        cut = (
            math.exp(parts.log_cut)
            if parts.log_cut > math.log(_LEAST)
            else (_LEAST if sign > 0 else 0.0)
        )
        # What is beyond the grid after a cut weighs little: keeping more would only make the grid
        # larger.
        after_cut = fixed_size_loss_grid(
            parts.survival, sigma, interval, min(_LARGEST_TAIL, tail / max(cut, _LEAST))
        )
        sides.append([Mixture(((parts.uncut, direction), (cut, after_cut))) for direction in plain])
    return tuple(Between(above, below) for above, below in zip(*sides, strict=True))


def truncated_renyi(
    units: int, rate: float, largest: int, sigma: float, order: float, adjacency: str
) -> float:
    """Rényi divergence of the dominating mixture of one release, rounded up.

    The moments e^((a-1) D_a) are averaged; what they exceed 1 by is averaged where it is small.

    Args:
        units: n.
        rate: q, in (0, 1].
        largest: B, from 1 to n - 1.
        sigma: noise standard deviation / L2 sensitivity of one unit.
        order: > 1.

    Returns:
        rho >= 0; inf without noise.
    """
    parts = truncation(units, rate, largest).rounded(1)
    plain = (order - 1) * poisson_renyi(rate, sigma, order, adjacency)
    after_cut = (order - 1) * fixed_size_renyi(parts.survival, sigma, order)
    if math.isinf(max(plain, after_cut)):
        return math.inf
    if max(plain, after_cut) < 1.0:  # no digits are lost
        log_moment = math.log1p(
            parts.uncut * math.expm1(plain) + math.exp(parts.log_cut) * math.expm1(after_cut)
        )
    else:
        log_moment = parts.log_cut + after_cut
        if parts.uncut > 0.0:
            log_moment = float(np.logaddexp(log_moment, math.log(parts.uncut) + plain))
        log_moment = log_moment + 1e-14 if log_moment < 1.0 else log_moment * (1 + 1e-14)
    return log_moment / (order - 1) * (1 + 1e-14)
