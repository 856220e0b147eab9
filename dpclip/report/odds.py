"""What an (ε, δ) guarantee, and a whole profile of them, leave to someone guessing who was in the data."""

import math
from collections.abc import Iterable
from decimal import Decimal

Point = tuple[float, float]  # (ε, δ), each an upper bound


def odds(epsilon: Decimal) -> Decimal:
    """e^ε: at these odds to one, at most, can a row's presence be told (apart from a chance of δ)."""
    return epsilon.exp()


def best_guess(epsilon: float, delta: float) -> float:
    """The largest probability of a right guess in or out, from even odds.

    p = (e^ε + δ) / (1 + e^ε): with probability δ a sure win, otherwise a bet at odds e^ε to 1.
    Follows from the trade-off region of Kairouz, Oh and Viswanath (2015), arXiv 1311.0776.
    """
    lost = (1.0 - delta) * math.exp(-epsilon) / (1.0 + math.exp(-epsilon))
    return min(1.0, 1.0 - lost)


def true_positive_rate(false_positive_rate: float, points: Iterable[Point]) -> float:
    """The most members any membership test finds while accusing this share of non-members.

    TPR ≤ min over (ε, δ) of min(e^ε·FPR + δ, 1 − e^(−ε)·(1 − δ − FPR)): every pair of a profile binds, and
    both directions of the adjacency (Dong, Roth and Su 2019, arXiv 1905.02383, equation 5).
    """
    bound = 1.0
    for epsilon, delta in points:
        rising = math.exp(min(epsilon, 700.0)) * false_positive_rate + delta
        falling = 1.0 - math.exp(-epsilon) * (1.0 - delta - false_positive_rate)
        bound = min(bound, rising, falling)
    return bound
