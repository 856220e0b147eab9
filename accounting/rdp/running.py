"""Epsilon during training: a Rényi curve that is kept up to date at every charge."""

from __future__ import annotations

import math
from typing import cast

import numpy as np

from accounting.events import Event, PoissonGaussian, unsupported_reason
from accounting.rdp.curve import curve_of, epsilon_from_curve, given_success, mixed_curve
from accounting.schedules import can_blend, corners_on_lattice

_MANY = 24  # different releases: further ones share the curves of a lattice of noises and rates
_ORDERS = (
    *(1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.65, 1.8),
    *(2.0 + 0.2 * step for step in range(10)),
    *(4.0 + 0.5 * step for step in range(17)),
    *(
        13.0,
        14.0,
        15.0,
        16.0,
        18.0,
        20.0,
        23.0,
        26.0,
        30.0,
        35.0,
        41.0,
        48.0,
        64.0,
        128.0,
        256.0,
        1024.0,
        4096.0,
    ),
)


class RunningCurve:
    """The sum of the Rényi curves of everything charged, on a sparse grid of orders.

    A release that was charged before costs one addition. Where every release differs, each is
    bounded by a mixture of neighbours on a lattice (see `schedules`), so that few curves are ever
    computed.

    Args:
        adjacency: the neighbouring relation.
    """

    def __init__(self, adjacency: str) -> None:
        self._adjacency = adjacency
        self._orders = np.asarray(_ORDERS)
        self._rho = np.zeros(self._orders.size)
        self._log_kept = 0.0  # of the probability that no release gives everything away
        self._kinds: set[Event] = set()
        self._pending: dict[Event, int] = {}

    def charge(self, event: Event, count: int) -> None:
        """Book some releases of a primitive event.

        Args:
            count: >= 0.
        """
        self._pending[event] = self._pending.get(event, 0) + count

    def epsilon(self, delta: float) -> float:
        """Upper bound on epsilon at delta of everything charged.

        Args:
            delta: in [0, 1).

        Returns:
            epsilon >= 0; inf where there is no bound.
        """
        for event, count in self._pending.items():
            self._rho = self._rho + count * self._curve(event) * (1 + 1e-15)
            self._log_kept += count * math.log1p(
                -min(event.failure_probability_under(self._adjacency), 1 - 2**-53)
            )
        self._pending = {}
        left = given_success(delta, -math.expm1(self._log_kept) * (1 + 1e-12))
        return epsilon_from_curve(self._orders, self._rho, left)[0] if left >= 0.0 else math.inf

    def _curve(self, event: Event) -> np.ndarray:
        if unsupported_reason(event, self._adjacency) is not None:
            return np.full(self._orders.size, math.inf)
        if event not in self._kinds and len(self._kinds) >= _MANY and can_blend(event):
            corners = corners_on_lattice(cast(PoissonGaussian, event), self._adjacency)
            return mixed_curve(
                self._orders, [(w, curve_of(node, _ORDERS, self._adjacency)) for w, node in corners]
            )
        self._kinds.add(event)
        return curve_of(event, _ORDERS, self._adjacency)
