"""Reading a run folder: what is refused and how, and that writing is whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dpclip import report
from dpclip.errors import InputError

STATEMENT = {
    "schema": 1,
    "guarantee": {"epsilon": 7.971, "delta": 1e-5, "kind": "worst-case"},
    "note": "ä",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "public").mkdir()
    (tmp_path / "public" / "statement.json").write_text(json.dumps(STATEMENT), encoding="utf-8")
    return tmp_path


def refusal(run: Path, format: report.Format = "html") -> str:
    with pytest.raises(InputError) as caught:
        report.render(run, format)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_folder_without_public_is_no_run_folder(tmp_path: Path) -> None:
    assert "is not a run folder" in refusal(tmp_path)
    assert "is not a run folder" in refusal(tmp_path / "absent")


def test_a_missing_statement_is_named(run: Path) -> None:
    (run / "public" / "statement.json").unlink()
    assert "statement.json is missing" in refusal(run)


@pytest.mark.parametrize("text", ["", "{", "not json", '{"schema": 1', "\xff\xfe"])
def test_unreadable_json_is_refused(run: Path, text: str) -> None:
    (run / "public" / "statement.json").write_text(text, encoding="latin-1")
    assert "is not valid JSON" in refusal(run)


def test_json_that_is_no_statement_is_refused(run: Path) -> None:
    (run / "public" / "statement.json").write_text("[1, 2]", encoding="utf-8")
    assert "holds no JSON object" in refusal(run)


@pytest.mark.parametrize("format", report.FORMATS)
def test_a_newer_schema_is_refused_in_every_format(run: Path, format: report.Format) -> None:
    (run / "public" / "statement.json").write_text(
        json.dumps({**STATEMENT, "schema": 2}), encoding="utf-8"
    )
    message = refusal(run, format)
    assert "schema 2" in message
    assert "upgrade dpclip" in message


@pytest.mark.parametrize("schema", ["1", 1.5, True, [1]])
def test_a_schema_that_is_no_whole_number_is_refused(run: Path, schema: object) -> None:
    (run / "public" / "statement.json").write_text(
        json.dumps({**STATEMENT, "schema": schema}), encoding="utf-8"
    )
    assert "no version number" in refusal(run)


def test_an_unknown_format_is_refused(run: Path) -> None:
    assert "html, md, json" in refusal(run, "pdf")  # type: ignore[arg-type]


def test_json_is_the_statement_itself_with_its_order_kept(run: Path) -> None:
    text = report.render(run, "json")
    assert json.loads(text) == STATEMENT
    assert list(json.loads(text)) == ["schema", "guarantee", "note"]
    assert text.endswith("}\n")
    (run / "public" / "statement.json").write_text(text, encoding="utf-8")
    assert report.render(run, "json") == text


def test_json_spells_non_finite_numbers_as_strings(run: Path) -> None:
    (run / "public" / "statement.json").write_text(
        '{"schema": 1, "a": [Infinity, NaN]}', encoding="utf-8"
    )
    assert json.loads(report.render(run, "json"))["a"] == ["inf", "nan"]


def test_a_metrics_line_cut_short_by_a_crash_is_dropped(run: Path) -> None:
    (run / "public" / "released_metrics.jsonl").write_text(
        '{"step": 1, "norm": 2.5}\n{"step": 2, "no'
    )
    assert "| norm | 1 | 2.5 |" in report.render(run, "md")


def test_a_broken_metrics_line_elsewhere_is_refused_by_number(run: Path) -> None:
    (run / "public" / "released_metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 3}\n')
    assert "line 2 of" in refusal(run)


def test_write_replaces_the_page_and_leaves_no_draft(run: Path) -> None:
    target = run / "public" / "report.html"
    target.write_text("old")
    assert report.write(run) == target
    assert target.read_text(encoding="utf-8") == report.render(run, "html")
    assert {path.name for path in target.parent.iterdir()} == {"statement.json", "report.html"}


def test_a_refused_write_leaves_the_old_page(run: Path) -> None:
    target = run / "public" / "report.html"
    target.write_text("old")
    (run / "public" / "statement.json").write_text("{")
    with pytest.raises(InputError):
        report.write(run)
    assert target.read_text() == "old"


def test_the_report_is_light_to_import() -> None:
    heavy = {"torch", "opacus", "scipy", "numpy", "matplotlib", "jinja2", "markupsafe"}
    code = f"import sys, dpclip.report; print({heavy!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
