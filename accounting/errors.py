"""What this package raises when it is asked for something it cannot honestly answer."""


class InvalidInput(ValueError):
    """A value nobody can account for: one line with the value, the reason and the remedy."""


def require(condition: bool, message: str) -> None:
    """Raise `InvalidInput(message)` unless the condition holds (a NaN comparison does not)."""
    if not condition:
        raise InvalidInput(message)


def require_delta(delta: float) -> None:
    """Refuse a failure probability outside [0, 1)."""
    require(0.0 <= delta < 1.0, f"delta={delta!r} is not a failure probability; give a number in [0, 1)")


class Refused(Exception):
    """The question cannot be answered within the limits of a method; the message says why."""


class TooFine(Refused):
    """One release alone needs more grid points than the limit, whatever is done with it afterwards."""
