"""The errors of this package.

The command line prints their one line and ends with their exit code.
"""

from __future__ import annotations

from typing import ClassVar

import accounting.errors


class DpclipError(Exception):
    """The base of all errors here.

    Attributes:
        exit_code: what the command line ends with.
    """

    exit_code: ClassVar[int] = 1


class InputError(DpclipError, accounting.errors.InputError):
    """Something the user gave cannot be used: one line with the value, the reason and the remedy.

    The line never quotes a record: messages leave the building, private text may not.
    """

    exit_code: ClassVar[int] = 2


class BudgetExceededError(DpclipError, accounting.errors.BudgetExceededError, RuntimeError):
    """The next step would cost more privacy than the run was given; nothing was drawn for it."""

    exit_code: ClassVar[int] = 3


class PrivacyError(DpclipError, RuntimeError):
    """What was asked for would break a promise; nothing is released."""


class ReplayError(DpclipError, RuntimeError):
    """A replayed step arrived at another gradient than the one its noise was drawn for; nothing was
    released.
    """


class BatchDimensionError(InputError, RuntimeError):
    """A layer whose input or output does not have one row a sample, so that no per-sample gradient
    exists.
    """
