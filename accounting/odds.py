"""What (epsilon, delta) guarantees leave to someone who guesses whether a unit was in the data.

Everything is rounded outwards: never a smaller chance than the guarantees leave.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal

from accounting.errors import require

Point = tuple[float, float]  # (epsilon, delta), a valid guarantee


def best_guess(epsilon: float, delta: float) -> float:
    """The largest probability of a right guess in or out, from even odds.

    (e^epsilon + delta) / (1 + e^epsilon): with probability delta a sure win, otherwise a bet at
    odds e^epsilon to 1 (Kairouz, Oh and Viswanath 2015, arXiv 1311.0776).

    Args:
        epsilon: >= 0.
        delta: in [0, 1].

    Returns:
        a probability in [1/2, 1], rounded up.

    Raises:
        InputError: no such guarantee.
    """
    checked_points([(epsilon, delta)])
    lost = (1.0 - delta) * math.exp(-epsilon) / (1.0 + math.exp(-epsilon))
    return min(1.0, 1.0 - lost * (1 - 1e-15))


def true_positive_rate(false_positive_rate: float, points: Iterable[Point]) -> float:
    """The most members any membership test finds while accusing this share of non-members.

    The least of e^epsilon FPR + delta and 1 - e^-epsilon (1 - delta - FPR) over the points (Dong,
    Roth and Su 2019, arXiv 1905.02383, equation 5).

    Args:
        false_positive_rate: share of non-members accused, in [0, 1].
        points: (epsilon, delta) guarantees that hold together.

    Returns:
        a share of members in [0, 1], rounded up; 1 without points.

    Raises:
        InputError: a rate outside [0, 1], or a point that is no guarantee.
    """
    require_rates([false_positive_rate])
    bound = 1.0
    for epsilon, delta in checked_points(points):
        rising = odds(epsilon) * false_positive_rate if false_positive_rate > 0.0 else 0.0
        falling = 1.0 - math.exp(-epsilon) * (1.0 - delta - false_positive_rate) * (1 - 1e-15)
        bound = min(bound, (rising + delta) * (1 + 1e-15), falling * (1 + 1e-15))
    return bound


def odds(epsilon: float) -> float:
    """e^epsilon, at which odds to one a unit's presence can be told.

    Returns:
        odds >= 1; inf from epsilon = 700 on.
    """
    return math.exp(epsilon) if epsilon < 700.0 else math.inf


def exact_odds(epsilon: Decimal) -> Decimal:
    """`odds` with as many digits as the decimal context has, for a figure that is written out."""
    return epsilon.exp()


def require_rates(rates: Sequence[float]) -> None:
    """Refuse what is no share of non-members.

    Raises:
        InputError: a rate outside [0, 1].
    """
    valid = all(0.0 <= rate <= 1.0 for rate in rates)
    require(
        valid,
        f"false positive rates {list(rates)!r} are not all in [0, 1]; give shares of non-members",
    )


def checked_points(points: Iterable[Point]) -> list[Point]:
    """Read points as pairs of floats.

    Args:
        points: (epsilon, delta) with epsilon >= 0 and delta in [0, 1].

    Raises:
        InputError: one that is no guarantee.
    """
    given = [(float(epsilon), float(delta)) for epsilon, delta in points]
    for epsilon, delta in given:
        valid = epsilon >= 0.0 and 0.0 <= delta <= 1.0
        require(
            valid,
            f"({epsilon!r}, {delta!r}) is no (epsilon, delta) guarantee; give epsilon >= 0, delta "
            "in [0, 1]",
        )
    return given
