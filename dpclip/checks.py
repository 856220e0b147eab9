"""Value checks that settings of all kinds share: each refuses in one line that names the remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from dpclip.errors import InputError


def one_of(setting: str, value: str, known: Sequence[str]) -> None:
    """Refuse an unknown choice.

    Args:
        setting: its name, for the message.
        value: what was chosen.
        known: the choices.

    Raises:
        InputError: it is none of the known ones.
    """
    if value not in known:
        raise InputError(f"{setting} = {value!r} is unknown: choose one of {', '.join(known)}")


def check_threshold(name: str, value: float) -> None:
    """Refuse a threshold that bounds nothing.

    Args:
        name: of the setting, for the message.
        value: a norm.

    Raises:
        InputError: it is not in (0, inf).
    """
    if not 0 < value < float("inf"):
        raise InputError(
            f"{name} = {value}: a clipping threshold must be positive and finite; 1.0 is common"
        )


def check_decay(name: str, value: float) -> None:
    """Refuse a decay that forgets nothing or is negative.

    Args:
        name: of the setting, for the message.
        value: weight of the old value in an exponential average.

    Raises:
        InputError: it is not in [0, 1).
    """
    if not 0 <= value < 1:
        raise InputError(
            f"{name} = {value}: a decay of at least 0 and below 1 is needed; 0.99 is common"
        )


def check_range(lowest: float, highest: float) -> None:
    """Refuse a range of variances that is none.

    Args:
        lowest: its lower end.
        highest: its upper end.

    Raises:
        InputError: unless 0 < lowest < highest < inf.
    """
    check_threshold("lowest", lowest)
    check_threshold("highest", highest)
    if lowest >= highest:
        raise InputError(
            f"lowest = {lowest} is not below highest = {highest}: give a range of variances"
        )


def not_negative(name: str, value: Any) -> None:
    """Refuse a negative number.

    Args:
        name: of the setting, for the message.
        value: any number; text is refused.

    Raises:
        InputError: it is not in [0, inf).
    """
    if isinstance(value, str) or not (math.isfinite(value) and value >= 0):
        raise InputError(f"{name} is {value}, not a finite number of at least 0; give one")


def positive(name: str, value: Any) -> None:
    """Refuse a number that is not positive.

    Args:
        name: of the setting, for the message.
        value: any number; text is refused.

    Raises:
        InputError: it is not in (0, inf).
    """
    if isinstance(value, str) or not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value}, not a finite number above 0; give one")


def threshold(name: str, value: Any) -> None:
    """Refuse a threshold that is not positive; none and infinity leave gradients unclipped.

    Args:
        name: of the setting, for the message.
        value: a norm, or None.

    Raises:
        InputError: it is neither in (0, inf] nor None.
    """
    if value is not None and not value > 0:
        raise InputError(
            f"{name} is {value}, not above 0; give a norm, or None to leave gradients unclipped"
        )


def fraction(name: str, value: Any) -> None:
    """Refuse what is no fraction below 1.

    Args:
        name: of the setting, for the message.
        value: any number.

    Raises:
        InputError: it is not in [0, 1).
    """
    if not 0 <= value < 1:
        raise InputError(f"{name} is {value}, not in [0, 1); give 0 for none, 0.9 for much")


Auto = float | Literal["auto"] | None
"""A number, None for none, or "auto".

That is the published default, and none where gradients carry privacy noise.
"""


def check_auto(setting: str, value: Auto) -> None:
    """Refuse what is neither a positive number nor none nor "auto".

    Args:
        setting: its name, for the message.
        value: what was given.

    Raises:
        InputError: anything else.
    """
    if value not in (None, "auto") and not (isinstance(value, int | float) and value > 0):
        raise InputError(f"{setting} = {value!r}: a positive number, none or auto is needed")


def check_between(
    setting: str, value: float, low: float, high: float, *, open_high: bool = True
) -> None:
    """Refuse a number outside an interval.

    Args:
        setting: its name, for the message.
        value: any number.
        low: the lower end, itself allowed.
        high: the upper end.
        open_high: whether the upper end itself is refused.

    Raises:
        InputError: the value is not in [low, high), or [low, high].
    """
    if not (low <= value < high or (value == high and not open_high)):
        end = ")" if open_high else "]"
        raise InputError(f"{setting} = {value}: a number in [{low:g}, {high:g}{end} is needed")
