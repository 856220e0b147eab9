"""What an (ε, δ) guarantee, and a whole profile of them, leave to someone guessing who was in the data."""

from decimal import Decimal

from accounting.tradeoff import best_guess, true_positive_rate

__all__ = ["best_guess", "odds", "true_positive_rate"]


def odds(epsilon: Decimal) -> Decimal:
    """e^ε: at these odds to one, at most, can a row's presence be told (apart from a chance of δ)."""
    return epsilon.exp()
