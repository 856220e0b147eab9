"""What joins from outside: the examples of the guide, entry points, plain annotations."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from accounting.events import EVENTS
from dpclip.clipping import RULES
from dpclip.errors import InputError
from dpclip.postprocess import CLIPPERS
from dpclip.registry import Registry
from dpclip.sampling import SCHEMES
from dpclip.tasks import TASKS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "extend.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def _registries_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (RULES, CLIPPERS, EVENTS, SCHEMES, TASKS):
        monkeypatch.setattr(registry, "_makers", dict(registry._makers))


@pytest.mark.parametrize("code", BLOCKS, ids=[block.split("\n")[0] for block in BLOCKS])
@pytest.mark.usefixtures("_registries_as_before")
def test_each_example_of_the_guide_runs_and_is_short(code: str, tmp_path: Path) -> None:
    assert len(code.splitlines()) <= 40
    script = tmp_path / "example.py"
    script.write_text(code)
    runpy.run_path(str(script))


def test_the_guide_shows_every_kind() -> None:
    shown = " ".join(BLOCKS)
    for kind in ("ClippingRule", "Event", "Task", "Scheme", "GradientClipper"):
        assert f"({kind}" in shown or f", {kind}" in shown, kind


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An installed package that brings a rule by an entry point, without postponed annotations."""
    (tmp_path / "halved.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            from typing import ClassVar, Optional

            from dpclip.clipping import Flat


            @dataclass
            class Halved(Flat):
                max_grad_norm: float = 0.5
                note: Optional[int] = None
                name: ClassVar[str] = "halved"
            """
        )
    )
    info = tmp_path / "halved-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halved\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dpclip.clipping_rules]\nhalved = halved:Halved\nbroken = halved:Missing\n"
    )
    return tmp_path


def outside(package: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT,
        env={"PYTHONPATH": f"{package}:{ROOT}", "PATH": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def test_a_rule_of_another_package_is_found_by_its_name(package: Path) -> None:
    code = (
        "from dpclip.clipping import make_rule; r = make_rule('halved:max_grad_norm=0.25,note=3');"
        "print(type(r).__name__, r.max_grad_norm, r.note)"
    )
    done = outside(package, code)
    assert done.stdout.split() == ["Halved", "0.25", "3"], done.stderr


def test_the_command_line_finds_it_and_names_what_cannot_be_imported(package: Path) -> None:
    found = "from dpclip.cli import main; import sys; sys.argv = ['dpclip', *{0!r}.split()]; main()"
    words = (
        "calibrate --epsilon 2 --delta 1e-5 --sample-rate 0.1 --steps 10 --batch-size 10 --clipping"
    )
    assert "halved" in outside(package, found.format(f"{words} halved")).stdout
    broken = outside(package, found.format(f"{words} broken"))
    assert broken.returncode == 2
    assert "halved:Missing cannot be imported" in broken.stderr
    assert len(broken.stderr.strip().splitlines()) == 1


def test_a_name_that_is_nearly_right_gets_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"'flatt' is unknown.*did you mean flat\?"):
        RULES.get("flatt")
    with pytest.raises(InputError, match=r"no setting 'max_norm'.*did you mean max_grad_norm\?"):
        RULES.make("flat:max_norm=1")


def test_two_makers_cannot_have_one_name() -> None:
    registry: Registry[object] = Registry("thing")
    registry.register(dict, "a")
    registry.register(dict, "a")
    with pytest.raises(InputError, match="'a' is registered already"):
        registry.register(list, "a")


def test_what_is_spelt_as_before_is_read_and_not_listed() -> None:
    assert RULES.get("normalised") is RULES.get("normalized")
    assert "normalised" not in RULES.names()
