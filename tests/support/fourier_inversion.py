"""An independent reference: delta by inverting the exact moment generating function of the privacy
loss.

No grid of losses, no dominating distribution, no tail bound: with M(z) = E[e^(zL)] by
Gauss-Legendre quadrature in x, delta(eps) = (1/pi) Re of the integral over w > 0 of M(z)^T e^(-z
eps) / (z (z+1)) at z = tilt + i w, for any tilt > 0.
"""

from __future__ import annotations

import math

import numpy as np


class Inversion:
    """T releases of (1-q) N(0, s^2) + q N(1, s^2) against N(0, s^2), or mirrored against q N(-1,
    s^2).
    """

    def __init__(self, rate: float, sigma: float, steps: int, replaced: bool = False) -> None:
        nodes, weights = np.polynomial.legendre.leggauss(20)
        edges = np.linspace(-11 * sigma - float(replaced), 1 + 15 * sigma, 160)
        half = np.diff(edges)[:, None] / 2
        x = (edges[:-1, None] + half + half * nodes).ravel()

        def log_ratio(x: np.ndarray) -> np.ndarray:
            exponent = (x - 0.5) / sigma**2
            inside = np.log1p(rate * np.expm1(np.minimum(exponent, 600.0)))
            return np.where(exponent > 600.0, math.log(rate) + exponent, inside)

        self._loss = log_ratio(x) - (log_ratio(-x) if replaced else 0.0)
        density = np.exp(-0.5 * (x / sigma) ** 2 + log_ratio(x)) / (sigma * math.sqrt(2 * math.pi))
        self._mass = (half * weights).ravel() * density
        self._steps = steps

    def delta(self, epsilon: float, tilt: float) -> float:
        """delta at epsilon, on two contours that agree to eight digits; ArithmeticError where they
        never do.
        """
        for fineness in (1.0, 0.5, 0.25, 0.125):
            here, there = (self._along(epsilon, share * tilt, fineness) for share in (1.0, 0.8))
            if math.isclose(here, there, rel_tol=1e-8):
                return here
        raise ArithmeticError("two contours disagree")

    def _along(self, epsilon: float, tilt: float, fineness: float) -> float:
        around = self._log_moment(np.array([0.99, 1.0, 1.01]) * tilt + 0j).real
        deviation = math.sqrt(max(around[0] - 2 * around[1] + around[2], 1e-12)) / (0.01 * tilt)
        step = fineness * min(0.05 / deviation, 0.2 / max(epsilon, 1e-3), 0.1 * tilt)
        height = float(self._log_moment(np.array([tilt + 0j]))[0].real) - tilt * epsilon
        total = 0.0
        for block in range(80):
            z = tilt + 1j * step * (1000 * block + np.arange(1001))
            values = np.exp(self._log_moment(z) - z * epsilon - height) / (z * (z + 1))
            real = values.real
            total += (
                step
                / 3
                * float(real[0] + real[-1] + 4 * real[1:-1:2].sum() + 2 * real[2:-1:2].sum())
            )
            if abs(values[-1]) < 1e-11 / (tilt * (tilt + 1)):
                if total * tilt < 1e-4:
                    raise ArithmeticError(
                        "the tilt is poor: too few digits survive the cancellation"
                    )
                return total / math.pi * math.exp(height)
        raise ArithmeticError("the integrand does not decay")

    def _log_moment(self, z: np.ndarray) -> np.ndarray:
        return self._steps * np.log1p(np.expm1(z[:, None] * self._loss) @ self._mass)
