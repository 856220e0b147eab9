"""Round sums with Gaussian noise exactly, where float32 is too coarse to decide.

Box and Muller (1958): z = r cos t or r sin t with r^2 = -2 ln u, t = 2 pi a. u and a are real
numbers between 0 and 1 whose binary digits are secret bits, drawn as far as they are needed: 32 for
float32, 96 here, 64 more each time interval arithmetic cannot decide.

How wrong float64 is, v = 2^-53, libm assumed within 4 ulp (NumPy's vectorised kernels promise
that): let d be the distance of u from the nearer end of (0, 1), known to 2^-97. It is computed with
relative error 3v if d >= 2^-44.

    below 1/2:  -ln d      is wrong by 3v + 8v (-ln d),       r >= 1.17:  r by (3/1.17 + 4r + r) v
    above 1/2:  -ln(1 - d) is wrong by (1.44 * 3 + 8) v of it,             r by (6.2 + 1) r v
    angle:      64 bits, pi and the product rounded, 3 pi v; cosine or sine 4v; so 13.5 r v in z,
                and v r to multiply

In all less than 23 v max(r, 1) = 2^-48.4 max(r, 1), against a tolerance of 2^-45 max(r, 1).
Multiples of the grid are decided on after the whole part of S/g has been taken away, so that |f + z
s/g| < 2^13 and its two roundings cost less than 2^-40, at any S.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
from mpmath import MPIntervalContext

from dpclip.errors import PrivacyError

TOLERANCE = 2.0**-45  # on |error of z| / max(r, 1) in float64
ROUNDING = 2.0**-40  # of f + z s/g in float64
LEVELS = 16  # of refinement; the last one is reached with probability 2^-900
_END = 1 << 20  # 64-bit words of u this close to either end are left to interval arithmetic
_BELOW = np.uint64((1 << 32) - 1)
_INTERVALS = MPIntervalContext()
_ONE_AT_A_TIME = threading.Lock()  # the context's precision belongs to whoever computes in it

# (level, which coordinates) -> 64 bits of radius and angle each
More = Callable[[int, np.ndarray], np.ndarray]


def refined(
    sums: np.ndarray, ratio: float, words: np.ndarray, sine: np.ndarray, more: More
) -> np.ndarray:
    """round(sums + ratio z), exactly, for coordinates that float32 leaves open.

    Args:
        sums: S/g, float64 below 2^52, shape [n].
        ratio: s/g.
        words: the first 32 bits of u and of a, uint32, shape [2, n].
        sine: which coordinates take the sine, shape [n].
        more: draws the next bits, uint64 [., 2], of some coordinates at one level from 1 on.

    Returns:
        integers in float64, shape [n].
    """
    whole = np.rint(sums)
    parts = sums - whole
    bits = more(1, np.arange(len(sums)))
    first = words.astype(np.uint64) << np.uint64(32) | bits.T >> np.uint64(32)
    normals, radius = normals64(first, bits[:, 0] & _BELOW, sine)
    normals *= ratio
    normals += parts
    found = np.rint(normals)
    near = np.abs(normals - found) > 0.5 - ROUNDING - ratio * TOLERANCE * np.maximum(radius, 1.0)
    for index in np.flatnonzero(near | (first[0] + np.uint64(_END) < np.uint64(2 * _END))):
        pair = [int(words[row, index]) << 64 | int(bits[index, row]) for row in (0, 1)]
        found[index] = decided(
            float(parts[index]), ratio, pair, bool(sine[index]), _more_of(more, int(index))
        )
    return whole + found


def normals64(
    first: np.ndarray, below: np.ndarray, sine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Box and Muller's transform in float64.

    Meaningful where the first words are 2^20 or more from either end.

    Args:
        first: the first 64 bits of u and of a, uint64, shape [2, n].
        below: the 32 bits of u that follow, uint64, shape [n].
        sine: which take the sine, shape [n].

    Returns:
        z and r, float64, shape [n].
    """
    high, turns = first
    upper = high >= np.uint64(1 << 63)
    # Counted from the nearer end: the complement of all the bits is 1 - u.
    flip = np.where(upper, ~np.uint64(0), np.uint64(0))
    distance = (below ^ flip & _BELOW) + 0.5
    distance *= 2.0**-32
    distance += high ^ flip
    distance *= 2.0**-64
    radius = np.sqrt(-2.0 * np.where(upper, np.log1p(-distance), np.log(distance)))
    angle = turns.view(np.int64) * (np.pi * 2.0**-63)
    return radius * np.where(sine, np.sin(angle), np.cos(angle)), radius


def decided(
    part: float, ratio: float, pair: list[int], sine: bool, more: Callable[[int], tuple[int, int]]
) -> int:
    """round(part + ratio z) by interval arithmetic, with as many bits as that takes.

    Args:
        part: the fraction of S/g, in [-1/2, 1/2].
        ratio: s/g.
        pair: the first 96 bits of u and of a.
        sine: whether z takes the sine.
        more: the next 64 bits of both at a level from 2 on.

    Raises:
        PrivacyError: 992 bits do not decide it.
    """
    radius, angle = pair
    for level in range(2, LEVELS + 1):
        bits = 32 + 64 * (level - 1)
        with _ONE_AT_A_TIME:
            i = _INTERVALS
            i.prec = bits + 64
            u, turn = (i.mpf([word, word + 1]) / i.mpf(2) ** bits for word in (radius, angle))
            if radius > 0:
                wave = i.sin if sine else i.cos
                value = i.sqrt(-2 * i.log(u)) * wave(2 * i.pi * turn) * ratio + part
                nearest = round(float(value.mid))
                rest = value - nearest
                # None where the interval is on both sides
                if (rest > -0.5) is True and (rest < 0.5) is True:
                    return nearest
        if level < LEVELS:
            next_radius, next_angle = more(level)
            radius, angle = radius << 64 | next_radius, angle << 64 | next_angle
    raise PrivacyError(
        "the noise of one coordinate is not decided by 992 bits; nothing was released"
    )


def _more_of(more: More, index: int) -> Callable[[int], tuple[int, int]]:
    def draw(level: int) -> tuple[int, int]:
        radius, angle = more(level, np.array([index]))[0]
        return int(radius), int(angle)

    return draw
