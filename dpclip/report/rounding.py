"""Numbers as a reader sees them: ε and δ never smaller, noise never larger, than the statement
says.
"""

import unicodedata
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

from accounting.wording import NOT_STATED, exact, plain, power, significant
from accounting.wording import shown_epsilon as epsilon
from accounting.wording import shown_if_special as _special


def lower_epsilon(value: object) -> str:
    """The lower end of an interval for ε, rounded down so that the interval still encloses."""
    return epsilon(value, ROUND_FLOOR)


def noise_multiplier(value: object) -> str:
    """σ rounded down to 4 significant digits."""
    number = exact(value)
    special = _special(number)
    if special is not None or number is None:
        return special or NOT_STATED
    return plain(significant(number, 4, ROUND_FLOOR))


def delta(value: object) -> str:
    """δ in scientific notation, rounded up to 3 significant digits."""
    number = exact(value)
    return _special(number) or power(number or Decimal(0), 3, ROUND_CEILING)


def rounded_up(value: object, digits: int) -> str:
    """Any quantity that makes privacy worse as it grows, to so many significant digits."""
    number = exact(value)
    special = _special(number)
    if special is not None or number is None:
        return special or NOT_STATED
    if number.is_zero() or Decimal("0.0001") <= abs(number) < 1_000_000:
        return plain(significant(number, digits, ROUND_CEILING), separator=True)
    return power(number, digits, ROUND_CEILING)


def number(value: object, digits: int = 6) -> str:
    """Any other number: whole ones in full with thousands marked, the rest to 6 significant
    digits.
    """
    given = exact(value)
    special = _special(given)
    if special is not None or given is None:
        return special or NOT_STATED
    if isinstance(value, int):
        return f"{value:,}"
    if given.is_zero() or Decimal("0.0001") <= abs(given) < 1_000_000_000:
        # A million and a quarter keeps its whole part: digits say how finely, not how coarsely.
        return plain(
            significant(given, max(digits, given.adjusted() + 1), ROUND_HALF_EVEN), separator=True
        )
    return power(given, digits, ROUND_HALF_EVEN)


def percentage(share: float) -> str:
    """A probability in per cent, rounded up to 3 significant digits or 2 decimals, whichever says
    more.
    """
    percent = Decimal(repr(share)) * 100
    if percent >= 100:
        return "100%"
    if percent >= 10:
        return f"{plain(percent.quantize(Decimal('0.01'), rounding=ROUND_CEILING))}%"
    return f"{plain(significant(percent, 3, ROUND_CEILING))}%"


def text(value: object) -> str:
    """Words from a statement on one line, with control and direction marks made visible as �."""
    words = " ".join(str(value).split())
    hidden = {"Cc", "Cf", "Cs", "Co"}
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in hidden else c for c in words
    )


def anything(value: object) -> str:
    """A value of unknown kind, as faithfully as one line of text allows."""
    if value is None or value == "" or value == [] or value == {}:
        return NOT_STATED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{name(key)}: {anything(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(anything(part) for part in value)
    if isinstance(value, str) and exact(value) is None:
        return text(value)
    return number(value)


def name(key: object) -> str:
    """A key of the statement as words: ``steps_given_up`` becomes ``steps given up``."""
    return text(key).replace("_", " ")
