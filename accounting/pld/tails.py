"""Sums over everything beyond a position."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def sums_beyond(values: Array) -> Array:
    """At each position the sum of all later values.

    Args:
        values: [n].

    Returns:
        the sums [n]; the last one is 0.
    """
    sums = np.zeros(values.size)
    sums[:-1] = np.cumsum(values[:0:-1])[::-1]
    return sums


def discounted_beyond(values: Array, interval: float) -> Array:
    """At each position j the sum over later i of values[i] e^(-(i - j) interval).

    Args:
        values: [n].
        interval: > 0.

    Returns:
        the sums [n], computed in blocks that cannot overflow.
    """
    result = np.zeros(values.size)
    block = max(1, int(500.0 / interval))
    carried, end = 0.0, values.size  # carried: the sum over i >= end, discounted to position `end`
    while end > 0:
        start = max(0, end - block)
        growth = np.exp(np.arange(end - start) * interval)
        shrunk = values[start:end] / growth
        ahead = carried / (growth[-1] * math.exp(interval))
        result[start:end] = growth * (sums_beyond(shrunk) + ahead)
        carried, end = float(np.sum(shrunk)) + ahead, start
    return result
