"""Privacy units by value, and data sets that rows can be drawn from."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from dpclip.errors import InputError
from dpclip.sampling.units import UnitIndex, check_dataset


class Ward(Enum):
    EAST = "east"
    WEST = "west"


class Letter(StrEnum):
    A = "a"


class Number(IntEnum):
    ONE = 1


def rows_of(*names: Any) -> list[list[int]]:
    return UnitIndex(len(names), names).rows


def test_without_names_each_row_is_a_unit() -> None:
    index = UnitIndex(3, None)
    assert (index.rows, index.grouped, len(index)) == ([[0], [1], [2]], False, 3)


def test_units_are_in_the_order_of_their_first_rows() -> None:
    index = UnitIndex(4, ["b", "a", "b", "c"])
    assert (index.rows, index.grouped, len(index)) == ([[0, 2], [1], [3]], True, 3)


@pytest.mark.parametrize(
    "names",
    [
        (
            1,
            1.0,
            np.int64(1),
            torch.tensor(1),
            np.float32(1),
            torch.tensor([1.0]),
            np.array(1),
            Fraction(1),
            Decimal(1),
        ),
        (True, 1, np.bool_(True), Number.ONE, pa.scalar(1), np.longdouble(1)),
        ("Zoë", "Zoe\u0308", " Zoë\n", np.str_("Zoë"), pa.scalar("Zoë")),
        (Letter.A, "a"),
        (Ward.EAST, Ward("east")),
        (("x", 1), (" x", torch.tensor(1)), (np.str_("x"), 1.0)),
        (date(2020, 1, 2), np.datetime64("2020-01-02").item()),
        (
            datetime(2020, 1, 2),
            np.datetime64("2020-01-02T00:00:00.000000000"),
            pd.Timestamp("2020-01-02"),
        ),
        (UUID(int=5), UUID("00000000-0000-0000-0000-000000000005")),
        (b"id", np.bytes_(b"id")),
        (2**53 + 1, torch.tensor(2**53 + 1)),
    ],
    ids=str,
)
def test_equal_values_are_one_unit(names: tuple[Any, ...]) -> None:
    assert rows_of(*names) == [list(range(len(names)))]


@pytest.mark.parametrize(
    "names",
    [
        (1, 2),
        ("a", "A"),
        (2**53, 2**53 + 1),
        (Ward.EAST, Ward.WEST),
        (("a", 1), ("a", 2)),
        (0.1, 0.2),
    ],
    ids=str,
)
def test_other_values_are_other_units(names: tuple[Any, ...]) -> None:
    assert rows_of(*names) == [[0], [1]]


@pytest.mark.parametrize(
    "names",
    [
        torch.tensor([7, 8, 7]),
        torch.tensor([7.0, 8.0, 7.0], dtype=torch.bfloat16),
        np.array([7, 8, 7]),
        np.array(["a", "b", "a"]),
        np.array(["2020-01-01", "2021-01-01", "2020-01-01"], dtype="datetime64[ns]"),
        pd.Series(["a", "b", "a "]),
        pd.Series([7, 8, 7], index=[5, 6, 9]),
        pd.Series(["a", "b", "a"], dtype="category"),
        pa.array(["a", "b", "a"]),
        pa.chunked_array([[7], [8, 7]]),
        [torch.tensor(7), 8, np.int32(7)],
    ],
    ids=lambda names: type(names).__name__,
)
def test_every_kind_of_column_will_do(names: Any) -> None:
    assert UnitIndex(3, names).rows == [[0, 2], [1]]


def test_names_may_come_one_at_a_time() -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    assert UnitIndex(2, iter(["a", "b"])).rows == [[0], [1]]  # type: ignore[arg-type]
    with pytest.raises(InputError, match="4 unit names for 3 rows"):
        UnitIndex(3, endless())  # type: ignore[arg-type]


@dataclass(frozen=True)
class Private:
    name: str


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "is missing"),
        (math.nan, "is missing"),
        (np.float32("nan"), "is missing"),
        (torch.tensor(math.nan), "is missing"),
        (Decimal("nan"), "is missing"),
        (Decimal("snan"), "is missing"),
        (complex(0, math.nan), "is missing"),
        (np.datetime64("NaT"), "is missing"),
        (pd.NA, "is missing"),
        (pd.NaT, "is missing"),
        (pa.scalar(None), "is missing"),
        (np.ma.masked, "is missing"),
        (" \n", "is empty"),
        (b"", "is empty"),
        ((), "is empty"),
        (torch.tensor([1, 2]), "is a Tensor of 2 elements"),
        (np.zeros((2, 2)), "is a ndarray of 4 elements"),
        (["secret"], "is a list, which has no fixed value to compare"),
        ({"secret": 1}, "is a dict, which"),
        pytest.param(object(), "is a object, which", id="object"),
        (Private("secret"), "is a Private, which"),
        (("a", None), "is missing"),
        (("a", ["secret"]), "is a list"),
    ],
    ids=str,
)
def test_what_is_no_name_is_refused_and_not_quoted(name: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"the unit name of row 0 {message}") as refusal:
        rows_of(name, "b")
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "names",
    [
        ("secret", 417),
        (417, "secret"),
        (("a", 417), ("a", "secret")),
        (("secret",), 417),
        (b"secret", "417"),
    ],
)
def test_kinds_are_not_mixed(names: tuple[Any, ...]) -> None:
    with pytest.raises(InputError, match=r"row 1 is a \w+, and those before are each a") as refusal:
        rows_of(*names)
    assert "secret" not in str(refusal.value)
    assert "417" not in str(refusal.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a"], "1 unit names for 3 rows"),
        (["a"] * 5, "5 unit names for 3 rows"),
        ("abc", "are one str"),
        ({0: "a", 1: "b", 2: "c"}, "are one dict"),
        ({"a", "b", "c"}, "are one set"),
        (17, "are one int"),
        (torch.zeros(3, 2), r"are a Tensor of shape \[3, 2\]"),
        (np.zeros((3, 1)), r"are a ndarray of shape \[3, 1\]"),
        (torch.tensor(1), r"are a Tensor of shape \[\]"),
        (pd.DataFrame({"a": [1, 2, 3]}), r"are a DataFrame of shape \[3, 1\]"),
    ],
)
def test_what_is_no_column_is_refused(names: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        UnitIndex(3, names)


numbers = st.integers(-(2**31), 2**31 - 1)
texts = st.text(min_size=1).filter(lambda t: unicodedata.normalize("NFC", t).strip() != "")


@given(numbers, st.integers(0, 5))
def test_a_number_is_one_unit_however_it_is_held(number: int, form: int) -> None:
    forms = [
        number,
        float(number),
        np.int64(number),
        torch.tensor(number),
        Fraction(number),
        Decimal(number),
    ]
    assert rows_of(number, forms[form], number + 1) == [[0, 1], [2]]


@given(texts, st.sampled_from(["NFC", "NFD"]), st.sampled_from(["", " ", "\t\n", "\u2003"]))
def test_a_text_is_one_unit_however_it_is_written(text: str, form: Any, space: str) -> None:
    written = space + unicodedata.normalize(form, text) + space
    assert rows_of(text, written, text) == [[0, 1, 2]]


@given(texts)
def test_normalisation_is_done_once_for_all(text: str) -> None:
    once = unicodedata.normalize("NFC", text).strip()
    assert rows_of(text, once, unicodedata.normalize("NFC", once).strip()) == [[0, 1, 2]]
    assert unicodedata.normalize("NFC", once).strip() == once


@given(st.lists(numbers, min_size=1))
def test_the_rows_are_split_among_the_units(names: list[int]) -> None:
    index = UnitIndex(len(names), [torch.tensor(n) for n in names])
    assert sorted(row for rows in index.rows for row in rows) == list(range(len(names)))
    assert [{names[row] for row in rows} for rows in index.rows] == [
        {n} for n in dict.fromkeys(names)
    ]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([1])


class Unmeasured(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class Unindexed:
    def __len__(self) -> int:
        return 3


ROWS = TensorDataset(torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (DataLoader(ROWS), r"a DataLoader was given .*: give loader\.dataset"),
        (Stream(), r"is a stream \(Stream\)"),
        ({"train": ROWS}, "is a dict, which has no rows by index"),
        (iter([1]), "has no rows by index"),
        (Unindexed(), r"\(Unindexed\) has no rows by index"),
        (Unmeasured(), r"\(Unmeasured\) has no length"),
        ([], r"\(list\) is empty"),
    ],
)
def test_what_rows_cannot_be_drawn_from_is_refused(dataset: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_dataset(dataset)


def test_data_sets_are_accepted() -> None:
    rows: list[Tensor] = [torch.zeros(2)]
    for dataset in (ROWS, rows, torch.zeros(3, 2), (1, 2)):
        check_dataset(dataset)
