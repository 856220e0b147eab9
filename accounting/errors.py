"""What this package raises when it is asked for something it cannot honestly answer."""

from __future__ import annotations

from typing import ClassVar


class AccountingError(Exception):
    """The base of all errors here: one line that says what was wrong, why, and what to do.

    Attributes:
        exit_code: what a command line ends with.
    """

    exit_code: ClassVar[int] = 1


class InputError(AccountingError, ValueError):
    """A value nobody can account for: one line with the value, the reason and the remedy."""

    exit_code: ClassVar[int] = 2


class BudgetExceededError(AccountingError):
    """A release would cost more than a filter has left; nothing was charged."""

    exit_code: ClassVar[int] = 3


class JournalCorruptError(AccountingError):
    """The journal is not what was written: edited, shortened or damaged."""

    exit_code: ClassVar[int] = 2


class JournalBusyError(AccountingError):
    """Another writer holds the journal."""

    exit_code: ClassVar[int] = 2


class CannotComputeError(AccountingError):
    """The question cannot be answered within the limits of a method; the message says why."""


class GridTooFineError(CannotComputeError):
    """One release alone needs more grid points than the limit, whatever is done with it
    afterwards.
    """


def require(condition: bool, message: str) -> None:
    """Raise `InputError(message)` unless the condition holds (a NaN comparison does not).

    Raises:
        InputError: the condition is false.
    """
    if not condition:
        raise InputError(message)


def require_delta(delta: float) -> None:
    """Refuse a failure probability outside [0, 1).

    Raises:
        InputError: it is not one.
    """
    require(
        0.0 <= delta < 1.0, f"delta={delta!r} is not a failure probability; give a number in [0, 1)"
    )
