"""One-step privacy losses of the Poisson-sampled Gaussian on a grid, never smaller than the truth.

For x in a cell between two grid points of the loss, the cell's mass under P and under Q is split between the
two end points so that both masses are kept. This spreads the likelihood ratio without moving its mean, so
every hockey-stick divergence can only grow, also after composition ("connect the dots": Doroshenko, Ghazi,
Kamath, Kumar and Manurangsi 2022, arXiv 2207.04380). Rounding is paid for by moving a sliver up one cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Array = NDArray[np.floating[Any]]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_NARROW = 0.2  # standard deviations: cells up to this width are integrated by five nodes to 1e-9
LARGEST_PMF = 2**20


class Refused(Exception):
    """The distribution cannot be computed within the limits; the message says why."""


@dataclass(frozen=True)
class LossPmf:
    """A privacy loss: (first + i) * interval with probability masses[i], and +inf with `infinite`."""

    first: int
    masses: Array
    infinite: float
    interval: float

    @cached_property
    def support(self) -> tuple[Array, Array]:
        """Indices and logs of the positive masses."""
        held = np.nonzero(self.masses > 0)[0]
        return (held + self.first).astype(float), np.log(self.masses[held])

    def cumulant(self, tilt: float) -> float:
        """log E[exp(tilt * loss); loss finite]."""
        index, log_mass = self.support
        exponent = log_mass + (tilt * self.interval) * index
        largest = float(np.max(exponent))
        return largest + math.log(float(np.sum(np.exp(exponent - largest))))

    def tilted(self, tilt: float) -> tuple[NDArray[np.int64], Array, float]:
        """(indices, masses proportional to mass * exp(tilt * loss), their log normaliser)."""
        index, log_mass = self.support
        exponent = log_mass + tilt * self.interval * index
        cumulant = self.cumulant(tilt)
        return index.astype(np.int64), np.exp(exponent - cumulant), cumulant


@lru_cache(maxsize=8)
def poisson_gaussian_pmfs(rate: float, sigma: float, interval: float, tail: float) -> tuple[LossPmf, LossPmf]:
    """Pessimistic loss distributions of one step in the (remove, add) direction.

    rate in (0, 1], sigma > 0 (noise / sensitivity), interval: grid width of the loss, tail: probability that
    may be sent to +inf at each end. Raises Refused when the grid would be too large.
    """
    reach = -float(ndtri(tail)) * sigma
    ends = loss(np.array([-reach, 1.0 + reach]), rate, sigma)
    first, last = math.floor(float(ends[0]) / interval), math.ceil(float(ends[1]) / interval)
    if last - first > LARGEST_PMF:
        raise Refused(f"one step would need {last - first} grid points (limit {LARGEST_PMF})")
    grid = np.arange(first, last + 1) * interval
    edges = _where_loss_is(grid, rate, sigma)
    q_mass = _normal_mass(edges / sigma)
    p_mass = (1 - rate) * q_mass + rate * _normal_mass((edges - 1.0) / sigma)
    up_p, up_q = _upper_shares(edges, grid, p_mass, q_mass, rate, sigma, interval)
    below, above = (edges[0] / sigma, edges[-1] / sigma)
    remove = _split(p_mass, up_p)
    remove[0] += _mixture_below(edges[0], rate, sigma)
    add = _split(q_mass, 1.0 - up_q)
    add[-1] += float(ndtr(-above))
    lost = rate * float(ndtr(-(above - 1 / sigma))) + (1 - rate) * float(ndtr(-above))
    # The tail itself is charged too: it is far above any rounding of the masses that are lost.
    return (
        LossPmf(first, remove, lost + tail, interval),
        LossPmf(-last, add[::-1].copy(), float(ndtr(below)) + tail, interval),
    )


def loss(x: Array, rate: float, sigma: float) -> Array:
    """log of the density ratio ((1-q) N(0, s^2) + q N(1, s^2)) / N(0, s^2) at x."""
    exponent = (x - 0.5) / sigma / sigma
    if rate == 1.0:
        return exponent
    inside = np.log1p(rate * np.expm1(np.minimum(exponent, 600.0)))
    return np.where(exponent > 600.0, math.log(rate) + exponent, inside)


def _where_loss_is(values: Array, rate: float, sigma: float) -> Array:
    """The x at which the loss takes each value; -inf at or below its infimum log(1-q)."""
    if rate == 1.0:
        return sigma * sigma * values + 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        low = np.log(np.maximum(np.exp(np.minimum(values, 0.0)) - (1 - rate), 0.0) / rate)
        middle = np.log1p(np.maximum(np.expm1(np.minimum(values, 50.0)) / rate, -1.0))
        high = values - math.log(rate) + np.log1p((rate - 1) * np.exp(-np.maximum(values, 30.0)))
    exponent = np.where(values < -0.5, low, np.where(values > 40.0, high, middle))
    exponent = np.where(values <= math.log1p(-rate), -math.inf, exponent)
    return sigma * sigma * exponent + 0.5


def _normal_mass(z: Array) -> Array:
    """Standard normal mass between neighbouring points, from the nearer tail."""
    low, high = z[:-1], z[1:]
    return np.maximum(np.where(low > 0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low)), 0.0)


def _mixture_below(x: float, rate: float, sigma: float) -> float:
    return (1 - rate) * float(ndtr(x / sigma)) + rate * float(ndtr((x - 1) / sigma))


def _split(mass: Array, upper_share: Array) -> Array:
    """Mass of every grid point when a cell gives `upper_share` of its mass to its upper end."""
    result = np.zeros(mass.size + 1)
    result[1:] = mass * upper_share
    result[:-1] += mass * (1.0 - upper_share)
    return result


def _upper_shares(
    edges: Array, grid: Array, p_mass: Array, q_mass: Array, rate: float, sigma: float, interval: float
) -> tuple[Array, Array]:
    """Share of each cell's mass that goes to the end with the larger loss, (remove, add), rounded up.

    With R = E[e^(low - loss) | cell] the share is (1 - R) / (1 - e^(-interval)); the add direction is the
    same cell with the loss negated.
    """
    scale = -math.expm1(-interval)
    narrow = (edges[1:] - edges[:-1]) <= _NARROW * sigma
    up_p, up_q = np.ones(p_mass.size), np.ones(p_mass.size)
    low, high = grid[:-1], grid[1:]
    inner_p, inner_q = _shares_by_nodes(edges[:-1][narrow], edges[1:][narrow], low[narrow], high[narrow], rate, sigma)
    up_p[narrow], up_q[narrow] = inner_p / scale, inner_q / scale
    wide = ~narrow & (p_mass > 1e-290) & (q_mass > 1e-290)
    with np.errstate(over="ignore"):
        up_p[wide] = (1.0 - np.exp(low[wide]) * (q_mass[wide] / p_mass[wide])) / scale
        up_q[wide] = (1.0 - np.exp(-high[wide]) * (p_mass[wide] / q_mass[wide])) / scale
    sliver = 1e-7 + 1e-12 / interval
    return np.clip(up_p + sliver, 0.0, 1.0), np.clip(up_q + sliver, 0.0, 1.0)


def _shares_by_nodes(
    left: Array, right: Array, low: Array, high: Array, rate: float, sigma: float
) -> tuple[Array, Array]:
    """(1 - R) of narrow cells in the remove and the add direction by Gauss-Legendre quadrature in x."""
    centre, half = (left + right) / 2, (right - left) / 2
    p_total, p_drop = np.zeros(left.size), np.zeros(left.size)
    q_total, q_drop = np.zeros(left.size), np.zeros(left.size)
    for node, weight in zip(_NODES, _WEIGHTS, strict=True):
        offset = half * node
        density = weight * np.exp(-offset * (2 * centre + offset) / (2 * sigma) / sigma)
        value = loss(centre + offset, rate, sigma)
        p_total += density * np.exp(value - low)
        p_drop += density * np.expm1(value - low)
        q_total += density
        q_drop += density * -np.expm1(value - high)
    return p_drop / p_total, q_drop / q_total
