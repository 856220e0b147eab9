"""How the figures of a statement are written: epsilon never smaller than it is, one form
everywhere.
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal

STATEMENT_SCHEMA = 1  # the newest schema of a statement that is written and read
NOT_STATED = "not stated"
INFINITY = "∞"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def finite(value: float | None) -> float | str | None:
    """A number as JSON knows it: an infinite one becomes the string "inf"."""
    return "inf" if value is not None and math.isinf(value) else value


def sentence(
    epsilon: float, delta: float, unit: str, adjacency: str, kind: str, assumption: str | None
) -> str:
    """The guarantee in one sentence.

    Args:
        epsilon: >= 0, shown rounded up; inf for no guarantee.
        delta: a failure probability, shown with 6 significant digits.
        unit: what one unit of privacy is, in words.
        kind: of guarantee, as in `EpsilonGuarantee`.
        assumption: what the guarantee depends on, in words; None if on nothing.
    """
    if math.isinf(epsilon):
        return "This run gives no privacy guarantee: epsilon is infinite."
    relation = {
        "add-remove": "adding or removing",
        "zero-out": "blanking out",
        "replace-one": "replacing",
    }.get(adjacency, adjacency)
    condition = f", provided that {assumption}" if assumption else ""
    return (
        f"The trained model is ({shown_epsilon(epsilon)}, {delta:g})-differentially private "
        f"({kind}) with respect to {relation} {unit}{condition}."
    )


def exact(value: object) -> Decimal | None:
    """The decimal number a JSON value spells.

    Args:
        value: a number, "inf" or "-inf".

    Returns:
        the number with the digits it is written with, or None where it spells none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str):
        return {"inf": Decimal("Infinity"), "-inf": Decimal("-Infinity")}.get(value.strip().lower())
    number = Decimal(repr(value))  # the shortest spelling: 7.98 is 7.98, not 7.9800000000000004
    return None if number.is_nan() else number


def significant(number: Decimal, digits: int, rounding: str) -> Decimal:
    """``number`` rounded to so many significant digits.

    Args:
        digits: >= 1.
        rounding: a rounding mode of `decimal`.
    """
    if number.is_zero():
        return Decimal(0)
    rounded = number.quantize(Decimal(1).scaleb(number.adjusted() - digits + 1), rounding=rounding)
    if rounded.adjusted() > number.adjusted():  # 0.0999 became 0.1000, one digit too many
        rounded = rounded.quantize(
            Decimal(1).scaleb(rounded.adjusted() - digits + 1), rounding=rounding
        )
    return rounded


def plain(number: Decimal, separator: bool = False) -> str:
    """A number in full without trailing zeros.

    Args:
        separator: mark thousands by commas.
    """
    text = f"{number:,f}" if separator else f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def power(number: Decimal, digits: int, rounding: str) -> str:
    """Scientific notation: ``7.42×10⁻⁶``.

    Args:
        digits: significant ones, >= 1.
        rounding: a rounding mode of `decimal`.
    """
    if number.is_zero():
        return "0"
    number = significant(number, digits, rounding)
    exponent = number.adjusted()
    mantissa = plain(number.scaleb(-exponent))
    return f"{mantissa}×10{str(exponent).translate(_SUPERSCRIPTS)}"


def shown_if_special(number: Decimal | None) -> str | None:
    """What is written where there is no finite number.

    Returns:
        text for None and for infinity, or None where there is a finite number.
    """
    if number is None:
        return NOT_STATED
    if number.is_infinite():
        return INFINITY if number > 0 else f"−{INFINITY}"
    return None


def shown_epsilon(value: object, rounding: str = ROUND_CEILING) -> str:
    """ε rounded up to 2 decimals, to 3 significant digits below 0.1, in powers of ten below 0.0001
    and from a million on.

    Args:
        value: a JSON value as in `exact`; one that spells no number is "not stated".
        rounding: ROUND_FLOOR only for the lower end of an interval, which would otherwise not
            enclose.
    """
    number = exact(value)
    special = shown_if_special(number)
    if special is not None or number is None:
        return special or NOT_STATED
    size = abs(number)
    if number.is_zero():
        return "0"
    if size >= 1_000_000 or size < Decimal("0.0001"):
        return power(number, 3, rounding)
    if size < Decimal("0.1"):
        return f"{significant(number, 3, rounding):f}"
    return f"{number.quantize(Decimal('0.01'), rounding=rounding):f}"
