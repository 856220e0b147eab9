"""Which columns of a table are learnt from: its records, as strings, with their labels and
units.
"""

from dataclasses import dataclass, fields
from typing import Literal, get_args

from dpclip.errors import InputError
from dpclip.tasks.tables import RecordTable, open_table

__all__ = ["Records", "read_records"]

Task = Literal["lm", "classification"]
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


def read_records(
    data: str | None,
    *,
    text_column: str | None = None,
    input_column: str | None = None,
    target_column: str | None = None,
    label_column: str | None = None,
    unit_column: str | None = None,
    task: Task = "lm",
) -> Records:
    """Read every record of `data`.

    Args:
        data: a file (.csv, .tsv, .jsonl or .json with one object a line, .parquet, .txt with one
            record a line that is not blank; each also with .gz); None or "builtin" for the built-in
            clinic notes, "builtin:public" for the notes of other people; else a data set of the
            Hugging Face hub, `[owner/]name[:split]` or `owner/name/config[:split]`, split "train"
            unless given.
        text_column: the column to learn; without it the only column, or the one named like a text.
        input_column: for language modelling, what comes before the target; needs `target_column`.
        target_column: for language modelling, what the model learns to write after the input.
        label_column: the class of a record; for classification, without it, the column named like a
            label.
        unit_column: whose record it is (a patient, an author); without it every row is a unit of
            its own.
        task: "lm" or "classification".

    Raises:
        InputError: the source cannot be read, has no rows, or does not have the columns asked for.
    """
    if task not in get_args(Task):
        raise InputError(f"task {task!r} is unknown; choose lm or classification")
    table = open_table(data)
    if not table.columns:
        raise InputError(f"{table.source}: the file is empty; give data with at least one record")
    if len(set(table.columns)) < len(table.columns):
        raise InputError(
            f"{table.source}: a column name occurs twice; rename one: {_listed(table.columns)}"
        )
    chosen = {"units": unit_column, "labels": label_column}
    if task == "classification" and label_column is None:
        chosen["labels"] = _default_label(table)
    if input_column is None and target_column is None:
        chosen["texts"] = text_column or _default_text(table, {chosen["units"], chosen["labels"]})
    else:
        _check_pair(text_column, input_column, target_column, task)
        chosen |= {"inputs": input_column, "targets": target_column}
    return _take(table, {role: column for role, column in chosen.items() if column is not None})


def _take(table: RecordTable, chosen: dict[str, str]) -> Records:
    for role, column in chosen.items():
        if column not in table.columns:
            option = f"--{role.removesuffix('s')}-column"
            there = _listed(table.columns)
            raise InputError(
                f"{table.source}: there is no column {column!r}; give {option} one of {there}"
            )
    values = table.read(list(dict.fromkeys(chosen.values())))
    for role in ("units", "labels"):
        empty = next(
            (row for row, v in enumerate(values.get(chosen.get(role, ""), []), 1) if not v.strip()),
            0,
        )
        if empty:
            name = chosen[role]
            raise InputError(
                f"{table.source}: row {empty} has no value in column {name!r}; fill it in or "
                "remove it"
            )
    records = Records(table.source, **{role: values[column] for role, column in chosen.items()})
    if not records.rows:
        raise InputError(f"{table.source}: there are no rows; give data with at least one record")
    return records


def _default_label(table: RecordTable) -> str:
    named = [column for column in table.columns if column.lower() in LABEL_COLUMNS]
    if len(named) != 1:
        raise InputError(
            f"{table.source}: which column is the label cannot be told from "
            f"{_listed(table.columns)}; give --label-column"
        )
    return named[0]


def _default_text(table: RecordTable, others: set[str | None]) -> str:
    left = [column for column in table.columns if column not in others]
    named = (
        left if len(left) == 1 else [column for column in left if column.lower() in TEXT_COLUMNS]
    )
    if len(named) != 1:
        raise InputError(
            f"{table.source}: which column is the text cannot be told from "
            f"{_listed(table.columns)}; give --text-column, or --input-column with --target-column"
        )
    return named[0]


def _check_pair(text: str | None, given: str | None, target: str | None, task: Task) -> None:
    if task == "classification":
        raise InputError(
            "--input-column and --target-column are for language modelling; give --text-column"
        )
    if text is not None:
        raise InputError(
            f"--text-column {text} excludes --input-column and --target-column; give one or the "
            "other"
        )
    if given is None or target is None:
        column, lacking = (
            (given, "--target-column") if target is None else (target, "--input-column")
        )
        raise InputError(f"column {column!r} is one half of input and target; give {lacking} too")


def _listed(columns: list[str]) -> str:
    shown = ", ".join(columns[:20])
    return f"{shown} and {len(columns) - 20} more" if len(columns) > 20 else shown or "no columns"
