"""Released metrics as series over steps, and the series as figures that belong together."""

import math
import re
from collections.abc import Iterator
from typing import Any

from dpclip.report import rounding
from dpclip.report.content import Line, Plot
from dpclip.report.reading import Metrics

Points = tuple[tuple[float, float], ...]
MOST_POINTS = 400  # a figure is some hundred pixels wide
_HELD_OUT = ("held_out", "heldout", "eval", "validation", "valid", "test", "public")
_INDEX = re.compile(r"[\s._\-\[(]*\d+[\])]?$")


def series(metrics: Metrics) -> dict[str, Points]:
    """Collect every numeric series by its name, ordered by step.

    Args:
        metrics: records in the order of the file; the last record of a step counts, and one
            without a step has its position.

    Returns:
        points (step, value) by name; values that are not finite numbers are left out.
    """
    found: dict[str, dict[float, float]] = {}
    for position, record in enumerate(metrics):
        given = _number(record.get("step"))
        step = float(position) if given is None else given
        for key, value in record.items():
            if key == "step":
                continue
            for label, number in _numbers(str(key), value):
                found.setdefault(label, {})[step] = number
    return {label: tuple(sorted(points.items())) for label, points in found.items()}


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    number = _number(value)
    if number is not None:
        yield key, number
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(f"{key}[{index}]", item)
    elif isinstance(value, dict):
        for inner, item in value.items():
            yield from _numbers(f"{key} {inner}", item)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def groups(all_series: dict[str, Points]) -> dict[str, dict[str, Points]]:
    """Put series that differ only in a trailing index (one per layer, say) into one figure.

    Args:
        all_series: points by name.

    Returns:
        by the common name, the members' points by their own.
    """
    together: dict[str, dict[str, Points]] = {}
    for label, points in all_series.items():
        together.setdefault(_INDEX.sub("", label) or label, {})[label] = points
    return together


def is_held_out(label: str) -> bool:
    """Whether a metric was measured on held-out data, judging by its name.

    Args:
        label: as in the released metrics; how it begins counts, in any case.
    """
    return label.lower().startswith(_HELD_OUT)


def plots(metrics: Metrics, held_out: bool) -> tuple[Plot, ...]:
    """Make one figure a group, of the held-out metrics or of all others.

    Args:
        metrics: records in the order of the file.
        held_out: which of the two.
    """
    chosen = {
        label: points for label, points in series(metrics).items() if is_held_out(label) == held_out
    }
    return tuple(_plot(stem, members) for stem, members in groups(chosen).items())


def _plot(stem: str, members: dict[str, Points]) -> Plot:
    title = rounding.name(stem)
    title = title[:1].upper() + title[1:]
    lines = tuple(Line(rounding.name(label), thinned(points)) for label, points in members.items())
    ends = [
        f"{rounding.name(label)} {_course(points)}" for label, points in list(members.items())[:4]
    ]
    more = f", and {len(members) - 4} more" if len(members) > 4 else ""
    return Plot(title, f"{title} over training steps: {'; '.join(ends)}{more}.", "step", "", lines)


def _course(points: Points) -> str:
    (first_step, first), (last_step, last) = points[0], points[-1]
    start = f"{rounding.number(first, 4)} at step {rounding.number(first_step)}"
    return start if len(points) == 1 else f"from {start} to {_end(last, last_step)}"


def _end(value: float, step: float) -> str:
    return f"{rounding.number(value, 4)} at step {rounding.number(step)}"


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Choose points evenly, the first and the last among them.

    Args:
        points: (x, y), in order.
        most: how many to keep at most; at least 2.
    """
    if len(points) <= most:
        return points
    return tuple(points[round(index * (len(points) - 1) / (most - 1))] for index in range(most))


def table(metrics: Metrics) -> tuple[tuple[str, ...], ...]:
    """Sum up each series in a row.

    Args:
        metrics: records in the order of the file.

    Returns:
        the name, how many values, and the first, least, greatest and last of them, as text.
    """
    rows = []
    for label, points in series(metrics).items():
        values = [value for _, value in points]
        shown = (values[0], min(values), max(values), values[-1])
        rows.append(
            (rounding.name(label), f"{len(values):,}", *(_shown(label, value) for value in shown))
        )
    return tuple(rows)


def _shown(label: str, value: float) -> str:
    return rounding.epsilon(value) if label == "epsilon" else rounding.number(value, 4)
