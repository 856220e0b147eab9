"""Privacy units: which rows are whose.

Units differ by the values of their names and never by the objects that hold them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence, Set
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from itertools import islice
from typing import Any, Protocol
from uuid import UUID

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from dpclip.errors import InputError

# a datetime is a date, too
_AS_THEY_ARE: tuple[type, ...] = (
    bytes,
    datetime,
    date,
    time,
    timedelta,
    UUID,
)


class RowDataset(Protocol):
    """Anything with a length and rows by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def check_dataset(dataset: Any) -> None:
    """Check that rows can be drawn from a data set by index.

    Args:
        dataset: whatever the user gave.

    Raises:
        InputError: it is a loader, a stream, a mapping or empty, or has no length or no rows.
    """
    kind = type(dataset).__name__
    if isinstance(dataset, DataLoader):
        raise InputError(
            f"a {kind} was given as the data set; its batches are drawn by dpclip itself: give "
            "loader.dataset"
        )
    if isinstance(dataset, IterableDataset) or kind == "IterableDataset":
        raise InputError(
            f"the data set is a stream ({kind}), from which no random sample can be drawn by "
            "index: load it into a data set with rows by index"
        )
    if isinstance(dataset, Mapping | Set):
        raise InputError(
            f"the data set is a {kind}, which has no rows by index: give one split, or a list of "
            "rows"
        )
    if not hasattr(dataset, "__getitem__"):
        raise InputError(
            f"the data set ({kind}) has no rows by index: give it __getitem__(index), or make a "
            "list of it"
        )
    try:
        rows = len(dataset)
    except (TypeError, NotImplementedError, AttributeError) as error:
        raise InputError(
            f"the data set ({kind}) has no length: give it __len__, or make a list of it"
        ) from error
    if rows == 0:
        raise InputError(f"the data set ({kind}) is empty: there is nothing to train on")


class UnitIndex:
    """Which rows belong to which privacy unit.

    Args:
        rows: how many rows there are.
        unit_of_row: a name a row, compared by value; by default each row is a unit of its own.

    Raises:
        InputError: names that are missing, have no value to compare or are of different kinds. The
            line gives the row and never the name, which is private.
    """

    def __init__(self, rows: int, unit_of_row: Sequence[Any] | None) -> None:
        self.grouped = unit_of_row is not None
        if unit_of_row is None:
            self.rows: list[list[int]] = [[row] for row in range(rows)]
            return
        column = _Column()
        grouped: dict[Any, list[int]] = {}
        for row, name in enumerate(_names(unit_of_row, rows)):
            grouped.setdefault(column.key(row, name), []).append(row)
        self.rows = list(grouped.values())

    def __len__(self) -> int:
        return len(self.rows)


def _names(given: Any, rows: int) -> list[Any]:
    """One name a row, of any kind of sequence."""
    kind = type(given).__name__
    if isinstance(given, str | bytes | Mapping | Set) or not (
        hasattr(given, "__iter__") or hasattr(given, "__len__")
    ):
        raise InputError(f"the unit names are one {kind}: give a sequence with one name a row")
    if getattr(given, "ndim", 1) != 1:
        raise InputError(
            f"the unit names are a {kind} of shape {list(given.shape)}: give one name a row, shape "
            f"[{rows}]"
        )
    if isinstance(given, Tensor):
        given = given.tolist()
    names = list(islice(given, rows + 1))  # a generator may have no end
    if len(names) != rows:
        count = len(given) if hasattr(given, "__len__") else len(names)
        raise InputError(f"{count} unit names for {rows} rows: give one a row")
    return names


class _Column:
    """Turns names into keys, and holds each place of a name (tuples have several) to one kind."""

    def __init__(self) -> None:
        self._kinds: dict[tuple[int, ...], str] = {}

    def key(self, row: int, name: Any, place: tuple[int, ...] = ()) -> Any:
        """Equal for names of equal value."""
        kind, value = _canonical(row, name)
        if kind == "tuple":
            value = tuple(self.key(row, element, (*place, i)) for i, element in enumerate(value))
        known = self._kinds.setdefault(place, kind)
        if known != kind:
            raise _refused(
                row, f"is a {kind}, and those before are each a {known}: make them all of one kind"
            )
        return value


def _refused(row: int, what: str) -> InputError:
    return InputError(f"the unit name of row {row} {what}")


def _canonical(row: int, name: Any) -> tuple[str, Any]:
    """The kind of a name, and its value as something that is compared by value."""
    name = _plain(row, name)
    if name is None or _is_not_a_number(name):
        raise _refused(
            row, "is missing (None, NaN or the like): give each row a unit, or leave the row out"
        )
    if isinstance(name, Enum) and not isinstance(name, str | int | float):
        return f"{type(name).__name__} member", (
            type(name).__module__,
            type(name).__qualname__,
            name.name,
        )
    if isinstance(name, str):
        return "text", _filled(row, unicodedata.normalize("NFC", str.__str__(name)).strip())
    if isinstance(name, int):
        return "number", int(name)
    if isinstance(name, float | complex | Fraction | Decimal):
        return "number", name
    if isinstance(name, tuple):
        return "tuple", _filled(row, tuple(name))
    for kind in _AS_THEY_ARE:
        if isinstance(name, kind):
            return kind.__name__, _filled(row, name) if kind is bytes else name
    raise _refused(
        row,
        f"is a {type(name).__name__}, which has no fixed value to compare: give text, numbers or "
        "tuples of them",
    )


def _plain(row: int, name: Any) -> Any:
    """What torch, numpy or arrow wraps."""
    if isinstance(name, np.ma.MaskedArray):
        return None
    if isinstance(name, Tensor | np.ndarray):
        count = name.numel() if isinstance(name, Tensor) else name.size
        if count != 1:
            raise _refused(
                row,
                f"is a {type(name).__name__} of {count} elements: give one value a row, or a tuple",
            )
        return _plain(row, name.reshape(())[()] if isinstance(name, np.ndarray) else name.item())
    if isinstance(name, np.datetime64 | np.timedelta64):
        # else nanoseconds are ints
        return None if np.isnat(name) else name.astype(f"{type(name).__name__}[us]").item()
    if isinstance(name, np.longdouble | np.clongdouble):
        return complex(name) if isinstance(name, np.clongdouble) else float(name)
    if isinstance(name, np.generic):
        return name.item()
    return _plain(row, name.as_py()) if hasattr(name, "as_py") else name


def _is_not_a_number(name: Any) -> bool:
    # pandas' own, whose comparisons have no truth value
    if type(name).__name__ in (
        "NAType",
        "NaTType",
    ):
        return True
    if isinstance(name, Decimal):
        return name.is_nan()
    return isinstance(name, float | complex) and name != name


def _filled(row: int, name: Any) -> Any:
    if not name:
        raise _refused(row, "is empty: give each row a unit, or leave the row out")
    return name
