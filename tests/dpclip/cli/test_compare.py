"""`dpclip compare`: the grid, resuming it, its table and figure, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dpclip.cli.app import app
from dpclip.train.comparison import markdown, split_rules, table
from tests.support import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    tiny.gpt2_folder(folder / "model")
    tiny.write_csv(folder / "notes.csv")
    return folder


def compare(
    place: Path, *words: object, rules: str = "flat,quantile", epsilon: str = "4,inf"
) -> Result:
    options = [
        "--rules",
        rules,
        "--epsilon",
        epsilon,
        "--seeds",
        2,
        "--output",
        place / "out",
        "--data",
        place / "notes.csv",
        "--eval-data",
        place / "notes.csv",
        "--model",
        place / "model",
        "--steps",
        3,
        "--batch-size=12",
        "--delta",
        1e-3,
        "--accountant",
        "rdp",
        *words,
    ]
    return CliRunner().invoke(app, ["compare", *map(str, options)])


@pytest.mark.slow
def test_a_comparison_runs_once_resumes_what_is_missing_and_draws_what_it_found(
    place: Path,
) -> None:
    first = compare(place)
    assert first.exit_code == 0, (first.output, first.exception)
    assert "6 runs: 2 rules" in first.output
    result = json.loads((place / "out" / "comparison.json").read_text())
    assert [(cell["rule"], cell["epsilon"], cell["runs"]) for cell in result["table"]] == [
        ("flat", 4.0, 2), ("quantile", 4.0, 2), ("none", "inf", 2),
    ]  # fmt: skip
    assert all(cell["std"] > 0 for cell in result["table"])
    assert all(row["epsilon"] <= 4 and row["kind"] == "worst-case" for row in result["rows"][:2])
    text = (place / "out" / "comparison.md").read_text()
    assert "| quantile | " in text
    assert "Each run has spent its own epsilon" in text
    svg = (place / "out" / "comparison.svg").read_text()
    for part in ("without privacy", "clipping threshold (released)", "share of samples within it"):
        assert part in svg
    # One run is lost, one is interrupted before its statement; the rest is left alone.
    lost = place / "out" / result["rows"][0]["folder"]
    kept = place / "out" / result["rows"][1]["folder"] / "public" / "statement.json"
    before = kept.stat().st_mtime_ns
    shutil.rmtree(lost)
    (place / "out" / result["rows"][2]["folder"] / "public" / "statement.json").unlink()
    second = compare(place)
    assert second.exit_code == 0, (second.output, second.exception)
    assert second.output.count(" of 6: ") == 2
    assert kept.stat().st_mtime_ns == before
    again = json.loads((place / "out" / "comparison.json").read_text())
    first_row, *rest = result["rows"]
    assert again["rows"][1:] == rest, "an interrupted run ends as it would have"
    assert again["rows"][0] != first_row, "what is begun anew has a key of its own"
    assert again["rows"][0] | {"before": 0, "after": 0} == first_row | {"before": 0, "after": 0}
    svg = (place / "out" / "comparison.svg").read_text()
    third = compare(place)
    assert third.exit_code == 0, (third.output, third.exception)
    assert third.output.count(" of 6: ") == 0
    assert json.loads((place / "out" / "comparison.json").read_text()) == again
    assert (place / "out" / "comparison.svg").read_text() == svg


def test_a_folder_of_another_comparison_is_left_alone(place: Path) -> None:
    (place / "out").mkdir(exist_ok=True)
    if not (place / "out" / "base.toml").exists():
        (place / "out" / "base.toml").write_text("epsilon = 1.0\n")
    result = compare(place, "--lr", 0.5)
    assert result.exit_code == 2
    assert "holds a comparison with other settings" in result.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--rules", "flatt"], ["'flatt' is unknown"]),
        (["--epsilon", "many"], ["'many' is not a number"]),
        (["--epsilon", "0"], ["must be positive"]),
        (["--rulez", "flat"], ["--rulez", "takes the options of train"]),
        (["--clipping", "flat"], ["--clipping", "takes the options of train"]),
        (["--steps", "few"], ["--steps 'few' is not a whole number"]),
        (["--lr"], ["--lr needs a value"]),
        (["--data", "x.csv"], ["needs held-out figures"]),
    ],
)
def test_bad_options_get_one_line(words: list[str], parts: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", "--output", str(tmp_path / "out"), *words])
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]
    assert not (tmp_path / "out").exists()


def test_settings_of_rules_may_hold_commas() -> None:
    found = split_rules("flat, dice:mode=capped,cap=2 ,quantile:rate=0.1")
    assert found == ("flat", "dice:mode=capped,cap=2", "quantile:rate=0.1")


def test_diverged_runs_are_counted_and_not_averaged() -> None:
    rows = [
        {
            "rule": "flat",
            "target_epsilon": 8.0,
            "after": after,
            "metric": "perplexity",
            "kind": "conditional",
        }
        for after in (10.0, None, 12.0)
    ]
    rows.append({**rows[1], "target_epsilon": 1.0})
    cells = table(rows)
    assert (cells[0]["mean"], cells[0]["diverged"], cells[0]["runs"]) == (11.0, 1, 3)
    text = markdown({"table": cells, "note": ""})
    assert "11 ± 1.41 (1 of 3 diverged)" in text
    assert "diverged |" in text
