"""Reading the records of a data set: the columns that a task learns from, as strings."""

from __future__ import annotations

from dpclip.errors import InputError
from dpclip.tasks import task_kind
from dpclip.tasks.records import Columns, Records, listed
from dpclip.tasks.tables import RecordTable, open_table


def read_records(
    data: str | None,
    *,
    text_column: str | None = None,
    input_column: str | None = None,
    target_column: str | None = None,
    label_column: str | None = None,
    unit_column: str | None = None,
    task: str = "lm",
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
        task: a name of `dpclip.tasks.TASKS`, which says what the columns are for.

    Raises:
        InputError: the source cannot be read, has no rows, or does not have the columns asked for.
    """
    kind = task_kind(task)
    table = open_table(data)
    if not table.columns:
        raise InputError(f"{table.source}: the file is empty; give data with at least one record")
    if len(set(table.columns)) < len(table.columns):
        raise InputError(
            f"{table.source}: a column name occurs twice; rename one: {listed(table.columns)}"
        )
    asked = Columns(text_column, input_column, target_column, label_column, unit_column)
    roles = kind.columns(table, asked)
    return _take(table, {role: column for role, column in roles.items() if column is not None})


def _take(table: RecordTable, chosen: dict[str, str]) -> Records:
    for role, column in chosen.items():
        if column not in table.columns:
            option = f"--{role.removesuffix('s')}-column"
            there = listed(table.columns)
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
