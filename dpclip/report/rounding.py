"""Numbers as a reader sees them: ε and δ never smaller, noise never larger, than stated."""

import unicodedata
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal

from accounting.wording import NOT_STATED, exact, plain, power, significant
from accounting.wording import shown_epsilon as epsilon
from accounting.wording import shown_if_special as _special


def lower_epsilon(value: object) -> str:
    """Show the lower end of an interval for ε, rounded down so that the interval still encloses.

    Args:
        value: a number of the statement, or what is none.
    """
    return epsilon(value, ROUND_FLOOR)


def noise_multiplier(value: object) -> str:
    """Show σ, rounded down to 4 significant digits.

    Args:
        value: a number of the statement, or what is none.
    """
    number = exact(value)
    special = _special(number)
    if special is not None or number is None:
        return special or NOT_STATED
    return plain(significant(number, 4, ROUND_FLOOR))


def delta(value: object) -> str:
    """Show δ in scientific notation, rounded up to 3 significant digits.

    Args:
        value: a number of the statement, or what is none.
    """
    number = exact(value)
    return _special(number) or power(number or Decimal(0), 3, ROUND_CEILING)


def rounded_up(value: object, digits: int) -> str:
    """Show any quantity that makes privacy worse as it grows, rounded up.

    Args:
        value: a number of the statement, or what is none.
        digits: significant ones.
    """
    number = exact(value)
    special = _special(number)
    if special is not None or number is None:
        return special or NOT_STATED
    if number.is_zero() or Decimal("0.0001") <= abs(number) < 1_000_000:
        return plain(significant(number, digits, ROUND_CEILING), separator=True)
    return power(number, digits, ROUND_CEILING)


def number(value: object, digits: int = 6) -> str:
    """Show any other number, rounded to the nearest.

    Args:
        value: a number of the statement, or what is none.
        digits: significant ones, 6 by default; whole numbers are shown in full, with thousands
            marked.
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
    """Show a probability in per cent, rounded up.

    Args:
        share: in [0, 1].

    Returns:
        3 significant digits below 10 %, 2 decimals from there on; "100%" at most.
    """
    percent = Decimal(repr(share)) * 100
    if percent >= 100:
        return "100%"
    if percent >= 10:
        return f"{plain(percent.quantize(Decimal('0.01'), rounding=ROUND_CEILING))}%"
    return f"{plain(significant(percent, 3, ROUND_CEILING))}%"


def text(value: object) -> str:
    """Show words on one line, with control and direction marks made visible as �.

    Args:
        value: of the statement, of any kind.
    """
    words = " ".join(str(value).split())
    hidden = {"Cc", "Cf", "Cs", "Co"}
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in hidden else c for c in words
    )


def anything(value: object) -> str:
    """Show a value of unknown kind, as faithfully as one line of text allows.

    Args:
        value: of the statement; numbers are rounded as by `number`, and what is empty is said not
            to be stated.
    """
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
    """Spell a key of the statement as words: ``steps_given_up`` becomes ``steps given up``.

    Args:
        key: of the statement.
    """
    return text(key).replace("_", " ")
