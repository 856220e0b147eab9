"""Tables of text as columns of strings: files, the built-in notes, data sets of the Hugging Face
hub.

No row is left out and none is added, because the number of records is public and enters the privacy
plan: a row whose text is empty stays, a row that cannot be read is an error. Messages name lines,
columns and bytes, never what stands there.

Local files are parsed here and not by `datasets`, which would leave a copy of private text in its
cache; and not by pandas, which fills rows that are too short without a word.
"""

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpclip.errors import InputError
from dpclip.tasks.clinic_notes import clinic_notes, public_clinic_notes

__all__ = ["RecordTable", "open_table"]

# no part begins with a dot: that is a path
HUB_NAME = re.compile(
    r"(?P<path>\w[\w.-]*(/\w[\w.-]*)?)(/(?P<config>\w[\w.-]*))?(:(?P<split>[^\\/]+))?"
)

ReadColumns = Callable[[list[str]], dict[str, list[str]]]
Columns = tuple[list[str], ReadColumns]  # the names of all columns, and how to read some of them


class RecordTable(NamedTuple):
    """A source opened for reading: its column names, and a way to read one or more of them as
    strings.
    """

    source: str
    columns: list[str]
    read: ReadColumns


def open_table(data: str | None) -> RecordTable:
    """Open `data` for reading; `read_records` says what it may be.

    Raises:
        InputError: there is no such source, or it cannot be read (some faults show only when
            columns are read).
    """
    if data in (None, "builtin", "builtin:public"):
        return _builtin(public=data == "builtin:public")
    assert data is not None
    try:
        path = Path(data).expanduser()
        there = path.exists()
    except (OSError, RuntimeError):  # a folder that is closed to us, a user that does not exist
        raise InputError(
            f"{data}: it cannot be reached; check the path and its permissions"
        ) from None
    if there:
        return _local(path)
    hub = HUB_NAME.fullmatch(data)
    # a mistyped file name may be private: do not ask the hub
    if hub is None or _format(path) is not None:
        raise InputError(f"{data}: there is no such file; check the path")
    return _from_hub(data, **hub.groupdict())


def _builtin(public: bool) -> RecordTable:
    notes = public_clinic_notes() if public else clinic_notes()
    source = "builtin clinic notes" + (" (public)" if public else "")
    columns = ["text", "patient", "category"]
    return RecordTable(
        source,
        columns,
        lambda names: {name: [getattr(note, name) for note in notes] for name in names},
    )


def _from_hub(data: str, path: str, config: str | None, split: str | None) -> RecordTable:
    try:
        import datasets

        rows = datasets.load_dataset(path, config, split=split or "train")
    except Exception as error:  # the hub fails in many ways, none of them the program's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{data}: there is no such file here, and the Hugging Face hub could not give it "
            f"({reason}); check the path, or the name and the connection"
        ) from None
    return RecordTable(
        data, rows.column_names, lambda names: {n: [_as_text(v) for v in rows[n]] for n in names}
    )


def _format(path: Path) -> str | None:
    """The suffix that decides how to read, without .gz; None when it is not one of ours."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    return suffix if suffix in READERS else None


def _local(path: Path) -> RecordTable:
    if path.is_dir():
        raise InputError(f"{path}: this is a folder; give a file in it")
    suffix = _format(path)
    if suffix is None:
        known = ", ".join(READERS)
        raise InputError(
            f"{path.name}: this kind of file is not known; give one of {known}, each also with .gz"
        )
    columns, read = READERS[suffix](path.name, _content(path))
    return RecordTable(path.name, columns, read)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix.lower() == ".gz" else content
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise InputError(
            f"{path.name}: this is not a complete gzip file; compress it again"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path}: it cannot be read ({error.strerror}); mend its permissions"
        ) from None


def _decoded(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name}: line {line} is not UTF-8 (at byte {error.start} of the text); save the file "
            "as UTF-8"
        ) from None


def _read_delimited(name: str, content: bytes, dialect: dict[str, Any]) -> Columns:
    text = _decoded(name, content)
    header = next(_parsed(name, text, dialect), [])

    def read(names: list[str]) -> dict[str, list[str]]:
        places = [header.index(column) for column in names]
        rows = _parsed(name, text, dialect)
        next(rows)
        columns = list(zip(*([row[place] for place in places] for row in rows), strict=True))
        return {column: list(columns[i]) if columns else [] for i, column in enumerate(names)}

    return header, read


def _parsed(name: str, text: str, dialect: dict[str, Any]) -> Iterator[list[str]]:
    """The header, then every row, each as long as the header; wholly blank lines are no rows."""
    # by default 128 KiB, less than a long letter
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, **dialect)
    width = 0
    try:
        for row in filter(None, reader):
            width = width or len(row)
            if len(row) != width:
                raise InputError(
                    f"{name}: line {reader.line_num} has {len(row)} fields where the header has "
                    f"{width}; quote fields that hold the separator, or complete the row"
                )
            yield row
    except csv.Error as error:
        raise InputError(
            f"{name}: line {reader.line_num} cannot be parsed ({error}); mend its quotes"
        ) from None


def _read_csv(name: str, content: bytes) -> Columns:
    return _read_delimited(name, content, {})


def _read_tsv(name: str, content: bytes) -> Columns:
    return _read_delimited(name, content, {"delimiter": "\t", "quoting": csv.QUOTE_NONE})


def _read_json_lines(name: str, content: bytes) -> Columns:
    lines = enumerate(io.StringIO(_decoded(name, content)), 1)
    rows = [(number, _json_object(name, number, line)) for number, line in lines if line.strip()]

    def read(names: list[str]) -> dict[str, list[str]]:
        for number, row in rows:
            for column in names:
                if column not in row:
                    raise InputError(
                        f"{name}: line {number} has no {column!r}; give every line that key"
                    )
        return {column: [_as_text(row[column]) for _, row in rows] for column in names}

    return list(dict.fromkeys(key for _, row in rows for key in row)), read


def _json_object(name: str, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        # half a surrogate pair is valid JSON, but no text
        json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise InputError(
            f"{name}: line {number} is not valid JSON; write one object a line"
        ) from None
    if not isinstance(row, dict):
        raise InputError(f"{name}: line {number} is JSON but no object; write one object a line")
    return row


def _read_parquet(name: str, content: bytes) -> Columns:
    from pyarrow import ArrowException, parquet

    broken = InputError(f"{name}: this is not a complete Parquet file; write it again")
    try:
        file = parquet.ParquetFile(io.BytesIO(content))
    except ArrowException:
        raise broken from None

    def read(names: list[str]) -> dict[str, list[str]]:
        try:
            rows = file.read(columns=names)
        except (ArrowException, OSError):
            raise broken from None
        return {
            column: [_as_text(value) for value in rows.column(column).to_pylist()]
            for column in names
        }

    return list(file.schema_arrow.names), read


def _read_lines(name: str, content: bytes) -> Columns:
    lines = [line.rstrip("\n") for line in io.StringIO(_decoded(name, content), newline=None)]
    texts = [line for line in lines if line.strip()]
    return ["text"], lambda names: dict.fromkeys(names, texts)


def _as_text(value: Any) -> str:
    """A cell as a string: text as it is, nothing as "", numbers and nested values as JSON spells
    them.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bytes):
        raise InputError("a cell holds raw bytes, not text: store the column as strings")
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


READERS: dict[str, Callable[[str, bytes], Columns]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json_lines,
    ".json": _read_json_lines,
    ".parquet": _read_parquet,
    ".txt": _read_lines,
}
