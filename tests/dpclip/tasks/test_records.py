"""Reading tables: what is in the file comes back, whole, or one line says what is wrong and what to
do.
"""

import csv
import gzip
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from dpclip.errors import InputError
from dpclip.tasks.clinic_notes import clinic_notes, public_clinic_notes
from dpclip.tasks.reading import read_records
from dpclip.tasks.records import Records

TEXTS = [
    "NA",
    "None",
    "",
    " ",
    'she said "no", then',
    "two\nlines",
    "naïve 漢字 🩺",
    "nan",
    "007",
    "null",
    "1.50",
]
LABELS = [f"class {i % 3}" for i in range(len(TEXTS))]


def as_csv(rows: list[dict[str, str]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_tsv(rows: list[dict[str, str]]) -> bytes:
    return "".join(
        "\t".join(row) + "\n" for row in [list(rows[0]), *(row.values() for row in rows)]
    ).encode()


def as_json_lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


WRITERS = {
    ".csv": as_csv,
    ".tsv": as_tsv,
    ".jsonl": as_json_lines,
    ".json": as_json_lines,
    ".parquet": as_parquet,
}


def write(folder: Path, name: str, content: bytes | str) -> str:
    path = folder / name
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(raw) if name.lower().endswith(".gz") else raw)
    return str(path)


def refusal(data: str | None, **columns: Any) -> str:
    """The one line with which `data` is refused."""
    with pytest.raises(InputError) as caught:
        read_records(data, **columns)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("suffix", list(WRITERS))
def test_every_text_comes_back_from_every_format_as_it_was(
    suffix: str, gz: str, tmp_path: Path
) -> None:
    texts = [text for text in TEXTS if suffix != ".tsv" or "\n" not in text]
    rows = [{"label": label, "text": text} for label, text in zip(LABELS, texts, strict=False)]
    data = write(tmp_path, f"data{suffix}{gz}", WRITERS[suffix](rows))
    records = read_records(data, task="classification")
    assert records.texts == texts
    assert records.labels == LABELS[: len(texts)]
    assert records.rows == len(texts)
    assert records.source == f"data{suffix}{gz}"


@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz", "LINES.TXT"])
def test_a_text_file_has_one_record_a_line_that_is_not_blank(name: str, tmp_path: Path) -> None:
    data = write(tmp_path, name, " first \r\n\n   \nsecond, with comma\nNA\n'third")
    assert read_records(data).texts == [" first ", "second, with comma", "NA", "'third"]


def test_tabs_separate_and_quotes_are_text_in_tsv(tmp_path: Path) -> None:
    data = write(tmp_path, "data.tsv", 'label\tsentence\n1\t"open quote\n0\ta "b" c\n')
    assert read_records(data).texts == ['"open quote', 'a "b" c']


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    data = write(tmp_path, "data.csv", b"\xef\xbb\xbftext,other\na,b\n")
    assert read_records(data).texts == ["a"]


def test_blank_lines_between_csv_rows_are_no_rows_but_an_empty_text_is(tmp_path: Path) -> None:
    data = write(tmp_path, "data.csv", 'text\n\na\n""\n\nb\n\n')
    assert read_records(data).texts == ["a", "", "b"]


def test_a_text_longer_than_the_csv_modules_limit_is_read(tmp_path: Path) -> None:
    data = write(tmp_path, "data.csv", "text,n\n" + "x" * 300_000 + ",1\n")
    assert read_records(data).texts == ["x" * 300_000]


def test_line_separators_of_unicode_do_not_split_records(tmp_path: Path) -> None:
    text = "one\u2028record\x85here\x0b"
    assert read_records(write(tmp_path, "a.jsonl", as_json_lines([{"text": text}]))).texts == [text]
    assert read_records(write(tmp_path, "a.txt", text)).texts == [text]


def test_json_values_that_are_no_strings_are_spelt_as_json(tmp_path: Path) -> None:
    values = [3, 2.5, True, None, ["a", 1], {"k": "é"}, "plain"]
    data = write(tmp_path, "a.jsonl", "\n".join(json.dumps({"text": value}) for value in values))
    assert read_records(data).texts == ["3", "2.5", "true", "", '["a", 1]', '{"k": "é"}', "plain"]


def test_parquet_columns_of_other_types_become_strings(tmp_path: Path) -> None:
    out = io.BytesIO()
    columns = {"text": ["a", None], "label": [1, 0], "unit": pa.array([1, 2], pa.date32())}
    parquet.write_table(pa.table(columns), out)
    data = write(tmp_path, "a.parquet", out.getvalue())
    records = read_records(data, task="classification", unit_column="unit")
    assert (records.texts, records.labels) == (["a", ""], ["1", "0"])
    assert records.units == ["1970-01-02", "1970-01-03"]


def test_raw_bytes_in_parquet_are_refused_as_no_text(tmp_path: Path) -> None:
    data = write(tmp_path, "a.parquet", as_parquet([{"text": b"a"}]))  # type: ignore[dict-item]
    assert refusal(data) == "a cell holds raw bytes, not text: store the column as strings"


def test_inputs_and_targets_are_two_columns_and_no_texts(tmp_path: Path) -> None:
    data = write(tmp_path, "a.csv", "mr,ref,who\nm1,r1,u1\nm2,r2,u1\n")
    records = read_records(data, input_column="mr", target_column="ref", unit_column="who")
    assert (records.inputs, records.targets, records.texts) == (["m1", "m2"], ["r1", "r2"], None)
    assert records.units == ["u1", "u1"]
    assert records.rows == 2


@pytest.mark.parametrize("name", ["text", "sentence", "content", "note", "body", "message", "Text"])
def test_a_column_named_like_a_text_is_the_text(name: str, tmp_path: Path) -> None:
    data = write(tmp_path, "a.csv", f"id,{name},x\n1,hello,2\n")
    assert read_records(data).texts == ["hello"]


def test_the_only_column_left_is_the_text_whatever_its_name(tmp_path: Path) -> None:
    data = write(tmp_path, "a.csv", "letter,class,who\nhello,A,u\n")
    assert read_records(data, task="classification", unit_column="who").texts == ["hello"]
    assert read_records(write(tmp_path, "b.csv", "letter\nhello\n")).texts == ["hello"]


def test_the_builtin_notes_are_a_table_like_any_other() -> None:
    records = read_records(None, task="classification", unit_column="patient")
    notes = clinic_notes()
    assert records.texts == [note.text for note in notes]
    assert records.labels == [note.category for note in notes]
    assert records.units == [note.patient for note in notes]
    assert records.source == "builtin clinic notes"
    assert read_records("builtin").texts == records.texts
    assert read_records("builtin:public").texts == [note.text for note in public_clinic_notes()]


FAULTS: dict[str, tuple[str, bytes | str, str]] = {
    "ragged, short": (
        "a.csv",
        "text,n\na,1\nb\n",
        "a.csv: line 3 has 1 fields where the header has 2; quote",
    ),
    "ragged, long": (
        "a.csv",
        'text,n\n"a\nb",1\nc,d,2\n',
        "a.csv: line 4 has 3 fields where the header has 2",
    ),
    "ragged tsv": (
        "a.tsv",
        "text\tn\na\tb\tc\n",
        "a.tsv: line 2 has 3 fields where the header has 2",
    ),
    "open quote": ("a.csv", 'text,n\n"a,1\nb,2\n', "a.csv: line 3 cannot be parsed"),
    "bad json": (
        "a.jsonl",
        '{"text": "a"}\n\n{"text": \n',
        "a.jsonl: line 3 is not valid JSON; write one object",
    ),
    "json array": (
        "a.json",
        '[{"text": "a"}]',
        "a.json: line 1 is JSON but no object; write one object a line",
    ),
    "half a surrogate": ("a.jsonl", '{"text": "\\ud800"}', "a.jsonl: line 1 is not valid JSON"),
    "key missing": (
        "a.jsonl",
        '{"text": "a"}\n{"txt": "b"}',
        "a.jsonl: line 2 has no 'text'; give every line",
    ),
    "not utf-8": (
        "a.csv",
        b"text\nok\nb\xe9d\n",
        "a.csv: line 3 is not UTF-8 (at byte 9 of the text); save",
    ),
    "latin-1 text": (
        "a.txt",
        b"caf\xe9\n",
        "a.txt: line 1 is not UTF-8 (at byte 3 of the text); save",
    ),
    "no parquet": ("a.parquet", b"PAR?", "a.parquet: this is not a complete Parquet file; write"),
    "unknown kind": (
        "a.docx",
        b"x",
        "a.docx: this kind of file is not known; give one of .csv, .tsv, .jsonl",
    ),
    "no suffix": ("letters", b"x", "letters: this kind of file is not known"),
    "empty csv": ("a.csv", b"", "a.csv: the file is empty; give data with at least one record"),
    "header alone": (
        "a.csv",
        b"text,n\n",
        "a.csv: there are no rows; give data with at least one record",
    ),
    "blank txt": ("a.txt", b"\n  \n", "a.txt: there are no rows; give data"),
    "empty jsonl": ("a.jsonl", b"", "a.jsonl: the file is empty; give data"),
    "column twice": (
        "a.csv",
        b"text,text\na,b\n",
        "a.csv: a column name occurs twice; rename one: text, text",
    ),
}


@pytest.mark.parametrize(("name", "content", "expected"), list(FAULTS.values()), ids=list(FAULTS))
def test_a_file_with_a_fault_is_refused_with_its_place_and_remedy(
    name: str, content: bytes | str, expected: str, tmp_path: Path
) -> None:
    assert refusal(write(tmp_path, name, content)).startswith(expected)


def test_no_message_quotes_what_a_record_says(tmp_path: Path) -> None:
    for name, content, _ in FAULTS.values():
        raw = content.encode() if isinstance(content, str) else content
        secret = raw.replace(b"b", b"Fennimore").replace(b"text,text", b"text,n,n")
        if secret != raw:
            assert "Fennimore" not in refusal(write(tmp_path, name, secret))


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(b"text\na\n" * 99, mtime=0)[:-12]],
    ids=["no gzip", "cut short"],
)
def test_a_broken_gzip_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(content)
    assert refusal(str(tmp_path / "a.csv.gz")) == (
        "a.csv.gz: this is not a complete gzip file; compress it again"
    )


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(str(tmp_path)) == f"{tmp_path}: this is a folder; give a file in it"


def test_a_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(tmp_path, "a.csv", "text\na\n")

    def closed(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", closed)
    assert refusal(data) == f"{data}: it cannot be read (Permission denied); mend its permissions"


CHOICES: list[tuple[dict[str, str], str]] = [
    (
        {},
        "a.csv: which column is the text cannot be told from mr, ref, who; give --text-column, or "
        "--input",
    ),
    (
        {"text_column": "txt"},
        "a.csv: there is no column 'txt'; give --text-column one of mr, ref, who",
    ),
    (
        {"text_column": "mr", "unit_column": "id"},
        "a.csv: there is no column 'id'; give --unit-column one of",
    ),
    (
        {"input_column": "mr"},
        "column 'mr' is one half of input and target; give --target-column too",
    ),
    (
        {"target_column": "ref"},
        "column 'ref' is one half of input and target; give --input-column too",
    ),
    (
        {"input_column": "m", "target_column": "ref"},
        "a.csv: there is no column 'm'; give --input-column one of",
    ),
    (
        {"text_column": "mr", "input_column": "mr", "target_column": "ref"},
        "--text-column mr excludes --input-column and --target-column; give one or the other",
    ),
    (
        {"text_column": "mr", "task": "classification"},
        "a.csv: which column is the label cannot be told from mr, ref, who; give --label-column",
    ),
    (
        {
            "input_column": "mr",
            "target_column": "ref",
            "label_column": "who",
            "task": "classification",
        },
        "--input-column and --target-column are for language modelling; give --text-column",
    ),
    (
        {"text_column": "mr", "task": "translation"},
        "task 'translation' is unknown: choose one of classification, lm",
    ),
    (
        {"text_column": "mr", "unit_column": "who"},
        "a.csv: row 2 has no value in column 'who'; fill it in or remove",
    ),
]


@pytest.mark.parametrize(("columns", "expected"), CHOICES)
def test_columns_that_do_not_fit_are_refused_with_the_columns_there_are(
    columns: dict[str, str], expected: str, tmp_path: Path
) -> None:
    data = write(tmp_path, "a.csv", "mr,ref,who\nm1,r1,u1\nm2,r2,\n")
    assert refusal(data, **columns).startswith(expected)


def test_two_columns_named_like_a_text_are_too_many(tmp_path: Path) -> None:
    assert "cannot be told from text, note;" in refusal(
        write(tmp_path, "a.csv", "text,note\na,b\n")
    )


@pytest.mark.parametrize(
    "data",
    ["letters.csv", "my folder/letters", "../letters", "/no/such/file", "a/b.txt.gz", "a/b/c/d"],
)
def test_a_path_that_is_not_there_is_never_asked_of_the_hub(
    data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # any use of it would say so in the message
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    assert refusal(data) == f"{data}: there is no such file; check the path"


def test_the_hub_that_cannot_be_reached_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub\nwith details")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    assert refusal("owner/no-such-letters") == (
        "owner/no-such-letters: there is no such file here, and the Hugging Face hub could not "
        "give it (Couldn't reach the Hub); check the path, or the name and the connection"
    )


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        ("imdb", ("imdb", None, "train")),
        ("stanfordnlp/imdb:test", ("stanfordnlp/imdb", None, "test")),
        ("openai/gsm8k/main:train[:10%]", ("openai/gsm8k", "main", "train[:10%]")),
    ],
)
def test_a_hub_name_says_which_set_config_and_split(
    data: str, asked: tuple[str, str | None, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Rows(dict[str, list[Any]]):
        column_names = ("text", "label")

    def load_dataset(path: str, name: str | None, *, split: str) -> Rows:
        calls.append((path, name, split))
        return Rows(text=["a", "b"], label=[0, 1])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    records = read_records(data, task="classification")
    assert calls == [asked]
    assert (records.texts, records.labels, records.source) == (["a", "b"], ["0", "1"], data)


def test_records_with_columns_of_different_lengths_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Records("x", texts=["a", "b"], labels=["1"])
    with pytest.raises(ValueError, match="either texts, or inputs with targets"):
        Records("x", texts=["a"], inputs=["b"], targets=["c"])
