"""The docs know every command, option, rule and dependency, and the README's loop runs."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import dpclip.optim
from dpclip.cli.app import app
from dpclip.clipping import RULES
from dpclip.postprocess import CLIPPERS
from dpclip.train.settings import Settings, option

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = (ROOT / "docs" / "reference" / "command-line.md").read_text()


def test_every_option_of_train_is_documented() -> None:
    missing = [
        option(f.name) for f in fields(Settings) if not re.search(rf"`{option(f.name)}\b", COMMANDS)
    ]
    assert missing == []


def test_every_option_in_the_docs_exists() -> None:
    section = COMMANDS.split("## dpclip train")[1].split("## dpclip report")[0]
    known = {option(f.name) for f in fields(Settings)} | {
        "--output",
        "--resume",
        "--config",
        "--json",
    }
    assert set(re.findall(r"`(--[a-z-]+)", section)) <= known


def test_every_verb_is_documented() -> None:
    for verb in app.registered_commands:
        assert f"## dpclip {verb.name}" in COMMANDS


def test_every_rule_has_its_section() -> None:
    page = (ROOT / "docs" / "reference" / "clipping.md").read_text()
    assert [f"## {name}" for name in RULES.names() if f"## {name}\n" not in page] == []


def test_every_post_processor_has_its_section() -> None:
    page = (ROOT / "docs" / "reference" / "postprocessing.md").read_text()
    assert [f"## {name}" for name in CLIPPERS.names() if f"## {name}\n" not in page] == []


def test_every_optimizer_has_its_section() -> None:
    page = (ROOT / "docs" / "reference" / "optimizers.md").read_text()
    assert [f"## {name}" for name in dpclip.optim.__all__ if f"## {name}\n" not in page] == []


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    for requirement in [*project["dependencies"], *extras]:
        name = re.split(r"[\[<>=!~ ]", requirement)[0]
        assert name in page, f"{name} has no line of why"


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", ["README.md", "docs/how-to/own-loop.md"])
def test_the_documented_loop_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from torch.nn import functional as F

    code = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[0]
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    before = model.weight.detach().clone()
    scope = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "dataset": [(torch.randn(3), i % 2) for i in range(600)],
        "loss_per_sample": lambda m, batch: F.cross_entropy(
            m(batch[0]), batch[1], reduction="none"
        ),
    }
    exec(code.replace("print(", "shown = str("), scope)
    assert "differentially private" in scope["shown"]
    assert not torch.equal(model.weight, before)


def test_the_documented_accounting_gives_the_documented_figure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs" / "reference" / "accounting.md").read_text()
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    printed = capsys.readouterr().out.splitlines()
    (claimed,) = re.findall(r"upper\)\s+# ([0-9.]+)", page)
    assert float(printed[0]) == pytest.approx(float(claimed), abs=1e-5)
    assert "worst-case" in printed[1]
    assert "agree=True" in printed[2]


def test_tests_that_are_said_to_hold_something_exist() -> None:
    page = (ROOT / "docs" / "explanation" / "pitfalls.md").read_text()
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", page)
    assert len(named) > 40
    for path, name in named:
        file = ROOT / path if path.startswith("tests/") else ROOT / "tests" / "dpclip" / path
        assert file.exists(), f"{path} is no file of tests"
        assert not name or f"def {name}(" in file.read_text(), f"{path} has no {name}"


def test_the_changelog_is_kept() -> None:
    assert "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()
