"""Pairs of Gaussian mixtures on a line whose likelihood ratio increases along it, cut into cells of
the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri

from accounting.errors import GridTooFineError
from accounting.mechanisms.loss_grid import LossGrid

Array = NDArray[np.floating[Any]]
Mixture = tuple[tuple[float, float], ...]  # (weight, mean) of each component

LARGEST_PMF = 2**20
_NARROW = 0.2  # standard deviations: cells up to this width are integrated by five nodes to 1e-9
_EXACT = 5e-9  # rounding of a share that needs no integration; well below the sliver
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)


@dataclass(frozen=True)
class Pair:
    """P = sum of weight * N(mean, sigma^2) against such a Q; log(P/Q) must increase along the line.

    Attributes:
        sigma: standard deviation of every component, > 0.
        p: the components of P and Q; the weights are probabilities that sum to 1.
        q: likewise.
        loss: x [n] -> log(P/Q) [n].
        where: loss [n] -> x [n], -inf (inf) at or beyond the loss's infimum (supremum).
        anchor: a loss that shall be on the grid, such as one that most of the mass is close to.
    """

    sigma: float
    p: Mixture
    q: Mixture
    loss: Callable[[Array], Array]
    where: Callable[[Array], Array]
    anchor: float = 0.0

    def loss_grids(self, interval: float, tail: float) -> tuple[LossGrid, LossGrid]:
        """The loss log(P/Q) under P and the loss log(Q/P) under Q.

        Args:
            interval: width of the grid, in loss, > 0.
            tail: probability that may lie beyond the grid at each end, in (0, 1).

        Raises:
            GridTooFineError: the grid would be too large.
        """
        grid, first = self._grid(interval, tail)
        edges = self.where(grid)
        p_mass, q_mass, rounding = self._masses(edges)
        up_p, up_q = self._upper_shares(edges, grid, p_mass, q_mass, rounding)
        low, high = float(edges[0]), float(edges[-1])
        p_below, q_below = self._below(self.p, low), self._below(self.q, low)
        p_above, q_above = self._above(self.p, high), self._above(self.q, high)
        top, bottom = math.exp(min(float(grid[-1]), 700.0)), math.exp(min(-float(grid[0]), 700.0))
        share_rounding = 1e-7 + 1e-12 / interval
        # The tail itself is charged too: it is far above any rounding of the masses that are lost.
        return (
            LossGrid(
                interval=interval,
                first=first,
                up=p_mass * up_p,
                down=p_mass * (1 - up_p),
                below=p_below,
                above=p_above,
                above_least=min(top * q_above, p_above),
                infinite=0.0,
                rounding_mass=tail,
                share_rounding=share_rounding,
                offset=self.anchor,
            ),
            LossGrid(
                interval=interval,
                first=-(first + grid.size - 1),
                up=(q_mass * up_q)[::-1],
                down=(q_mass * (1 - up_q))[::-1],
                below=q_above,
                above=q_below,
                above_least=min(bottom * p_below, q_below),
                infinite=0.0,
                rounding_mass=tail,
                share_rounding=share_rounding,
                offset=-self.anchor,
            ),
        )

    def _grid(self, interval: float, tail: float) -> tuple[Array, int]:
        reach = -float(ndtri(tail)) * self.sigma
        means = [mean for _, mean in (*self.p, *self.q)]
        low, high = self.loss(np.array([min(means) - reach, max(means) + reach]))
        first = math.floor((float(low) - self.anchor) / interval)
        last = math.ceil((float(high) - self.anchor) / interval)
        if last - first > LARGEST_PMF:
            raise GridTooFineError(
                f"one release would need {last - first} grid points (limit {LARGEST_PMF})"
            )
        return self.anchor + np.arange(first, last + 1) * interval, first

    def _masses(self, edges: Array) -> tuple[Array, Array, Array]:
        """(P mass, Q mass, bound on the sum of their relative rounding errors) of every cell."""
        by_mean = {
            mean: _normal_masses((edges - mean) / self.sigma) for _, mean in {*self.p, *self.q}
        }
        totals = []
        for mixture in (self.p, self.q):
            mass = sum(
                (weight * by_mean[mean][0] for weight, mean in mixture), np.zeros(edges.size - 1)
            )
            error = sum(
                (weight * by_mean[mean][1] for weight, mean in mixture), np.zeros(edges.size - 1)
            )
            totals.append((mass, error))
        (p_mass, p_error), (q_mass, q_error) = totals
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            rounding = p_error / p_mass + q_error / q_mass
        return p_mass, q_mass, np.where(np.isnan(rounding), math.inf, rounding)

    def _below(self, mixture: Mixture, x: float) -> float:
        return math.fsum(weight * float(ndtr((x - mean) / self.sigma)) for weight, mean in mixture)

    def _above(self, mixture: Mixture, x: float) -> float:
        return math.fsum(weight * float(ndtr((mean - x) / self.sigma)) for weight, mean in mixture)

    def _upper_shares(
        self, edges: Array, grid: Array, p_mass: Array, q_mass: Array, rounding: Array
    ) -> tuple[Array, Array]:
        """Share of each cell's mass that goes to the end with the larger loss, for log(P/Q) and
        log(Q/P).

        With R = E[e^(low - loss) | cell] = e^low Q/P the share is (1 - R) / (1 - e^(-interval));
        the other direction is the same cell with the loss negated. Cells too small for that
        difference are integrated.
        """
        low, high = grid[:-1], grid[1:]
        scale = -np.expm1(low - high)
        up_p, up_q = np.ones(p_mass.size), np.ones(p_mass.size)
        direct = (rounding <= _EXACT * scale) & (low > -600.0) & (high < 600.0)
        ratio = q_mass[direct] / p_mass[direct]
        up_p[direct] = 1.0 - np.exp(low[direct]) * ratio
        up_q[direct] = 1.0 - np.exp(-high[direct]) / ratio
        narrow = ~direct & (edges[1:] - edges[:-1] <= _NARROW * self.sigma)
        up_p[narrow], up_q[narrow] = self._shares_by_nodes(
            edges[:-1][narrow], edges[1:][narrow], low[narrow], high[narrow]
        )
        wide = ~direct & ~narrow & ((p_mass > 0) | (q_mass > 0))
        log_p, log_q = (
            self._log_masses(mixture, edges[:-1][wide], edges[1:][wide])
            for mixture in (self.p, self.q)
        )
        up_p[wide] = -np.expm1(np.minimum(low[wide] + log_q - log_p, 0.0))
        up_q[wide] = -np.expm1(np.minimum(log_p - log_q - high[wide], 0.0))
        return np.clip(up_p / scale, 0.0, 1.0), np.clip(up_q / scale, 0.0, 1.0)

    def _log_masses(self, mixture: Mixture, low: Array, high: Array) -> Array:
        """log mass of each cell, however small."""
        logs = [
            math.log(weight)
            + _log_normal_mass((low - mean) / self.sigma, (high - mean) / self.sigma)
            for weight, mean in mixture
        ]
        return np.logaddexp.reduce(logs)

    def _shares_by_nodes(
        self, left: Array, right: Array, low: Array, high: Array
    ) -> tuple[Array, Array]:
        """(1 - R) of narrow cells in both directions by Gauss-Legendre quadrature in x."""
        centre, half = (left + right) / 2, (right - left) / 2
        p_total, p_drop = np.zeros(left.size), np.zeros(left.size)
        q_total, q_drop = np.zeros(left.size), np.zeros(left.size)
        plain = self.q == ((1.0, 0.0),)
        at_centre = 0.0 if plain else self._log_ratio(self.q, centre)
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            offset = half * node
            exponent = -offset * (2 * centre + offset) / (2 * self.sigma) / self.sigma
            if not plain:
                exponent = exponent + self._log_ratio(self.q, centre + offset) - at_centre
            density = weight * np.exp(exponent)
            value = self.loss(centre + offset)
            p_total += density * np.exp(value - low)
            p_drop += density * np.expm1(value - low)
            q_total += density
            q_drop += density * -np.expm1(value - high)
        return p_drop / p_total, q_drop / q_total

    def _log_ratio(self, mixture: Mixture, x: Array) -> Array:
        return log_likelihood_ratio(mixture, self.sigma, x)


def log_likelihood_ratio(mixture: Mixture, sigma: float, x: Array) -> Array:
    """log of the density ratio (sum of weight * N(mean, sigma^2)) / N(0, sigma^2).

    Args:
        mixture: (weight, mean) pairs; the weights are probabilities that sum to 1.
        sigma: > 0.
        x: where it is asked, any shape.

    Returns:
        the logs, of x's shape.
    """
    exponents = [mean * (2 * x - mean) / (2 * sigma) / sigma for _, mean in mixture]
    largest = np.maximum.reduce(exponents)
    small = np.abs(largest) < 1.0
    near = np.zeros_like(x)
    for (weight, _), exponent in zip(mixture, exponents, strict=True):
        near = near + weight * np.expm1(np.minimum(exponent, 1.0))
    far = sum(
        weight * np.exp(e - largest) for (weight, _), e in zip(mixture, exponents, strict=True)
    )
    return np.where(small, np.log1p(np.maximum(near, -1.0 + 1e-300)), largest + np.log(far))


def _normal_masses(z: Array) -> tuple[Array, Array]:
    """(standard normal mass between neighbouring points, from the nearer tail; bound on its
    rounding error).
    """
    tail = ndtr(-np.abs(z))
    low, high = tail[:-1], tail[1:]
    across = (z[:-1] < 0.0) & (z[1:] > 0.0)
    mass = np.where(across, 1.0 - low - high, np.abs(high - low))
    # The library's tail is good to a few units in the last place of its exponent.
    unit = 2.0**-52 * (4.0 + np.minimum(z * z, 1600.0))
    return mass, np.where(across, 2.0**-50, tail[:-1] * unit[:-1] + tail[1:] * unit[1:])


def _log_normal_mass(low: Array, high: Array) -> Array:
    """log of the standard normal mass of each cell, from the nearer tail."""
    mirrored = low > 0
    far, near = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    near_log = log_ndtr(near)
    with np.errstate(divide="ignore"):
        return near_log + np.log(-np.expm1(np.minimum(log_ndtr(far) - near_log, -1e-300)))
