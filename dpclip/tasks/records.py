"""Records of text, column by column, and the columns that they are asked for by."""

from dataclasses import dataclass, fields

from dpclip.errors import InputError
from dpclip.tasks.tables import RecordTable

TEXT_COLUMNS = ("text", "sentence", "content", "note", "body", "message")
LABEL_COLUMNS = ("label", "labels", "category", "class")


@dataclass(frozen=True)
class Records:
    """The records of a data set, column by column; every column that is there has `rows` entries.

    Attributes:
        source: where they come from: a file's base name, a hub name, "builtin clinic notes".
        texts: the text of each record; None where inputs and targets are given instead.
        inputs: what the model is given (never scored), with `targets`.
        targets: what the model is to write.
        labels: the class of each record, for classification.
        units: whose record it is; records of one unit are protected together.
    """

    source: str
    texts: list[str] | None = None
    inputs: list[str] | None = None
    targets: list[str] | None = None
    labels: list[str] | None = None
    units: list[str] | None = None

    def __post_init__(self) -> None:
        columns = [getattr(self, field.name) for field in fields(self) if field.name != "source"]
        if (self.texts is None) == (self.inputs is None) or (self.inputs is None) != (
            self.targets is None
        ):
            raise ValueError("records have either texts, or inputs with targets")
        if len({len(column) for column in columns if column is not None}) != 1:
            raise ValueError("the columns of records differ in length")

    @property
    def rows(self) -> int:
        """How many records there are."""
        texts = self.inputs if self.texts is None else self.texts
        return len(texts or [])


@dataclass(frozen=True)
class Columns:
    """Which columns were asked for; None where it was not said.

    Attributes:
        text: the column to learn.
        input: what the model is given, never scored; goes with `target`.
        target: what the model learns to write after the input.
        label: the class of a record.
        unit: whose record it is (a patient, an author).
    """

    text: str | None = None
    input: str | None = None
    target: str | None = None
    label: str | None = None
    unit: str | None = None


def default_label(table: RecordTable) -> str:
    """The one column that is named like a label.

    Raises:
        InputError: none is, or several are.
    """
    named = [column for column in table.columns if column.lower() in LABEL_COLUMNS]
    if len(named) != 1:
        raise InputError(
            f"{table.source}: which column is the label cannot be told from "
            f"{listed(table.columns)}; give --label-column"
        )
    return named[0]


def default_text(table: RecordTable, others: set[str | None]) -> str:
    """The only column besides `others`, or the one of them that is named like a text.

    Raises:
        InputError: none is, or several are.
    """
    left = [column for column in table.columns if column not in others]
    named = (
        left if len(left) == 1 else [column for column in left if column.lower() in TEXT_COLUMNS]
    )
    if len(named) != 1:
        raise InputError(
            f"{table.source}: which column is the text cannot be told from "
            f"{listed(table.columns)}; give --text-column, or --input-column with --target-column"
        )
    return named[0]


def listed(columns: list[str]) -> str:
    """Column names for a message, the first 20 of them."""
    shown = ", ".join(columns[:20])
    return f"{shown} and {len(columns) - 20} more" if len(columns) > 20 else shown or "no columns"
