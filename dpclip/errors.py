"""The errors a user can mend. The command line prints their one line and ends with their exit code."""

from typing import ClassVar


class BadInput(ValueError):
    """Something the user gave cannot be used: one line with the value, the reason and the remedy.

    The line never quotes a record: messages leave the building, private text may not.
    """

    exit_code: ClassVar[int] = 2


class BudgetExhausted(RuntimeError):
    """The next step would cost more privacy than the run was given; nothing was drawn for it."""

    exit_code: ClassVar[int] = 3


class PrivacyError(RuntimeError):
    """What was asked for would break a promise; nothing is released."""
