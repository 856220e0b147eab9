"""How errors leave the program: one line, and the exit code of their class."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import typer

import accounting.errors
import dpclip.errors
import dpclip.per_sample.errors
from accounting.errors import AccountingError
from dpclip.cli.app import one_line_errors
from dpclip.errors import DpclipError


def below(base: type[Exception]) -> Iterator[type[Exception]]:
    for kind in base.__subclasses__():
        yield kind
        yield from below(kind)


OURS = sorted({*below(DpclipError), *below(AccountingError)}, key=lambda kind: str(kind))


@pytest.mark.parametrize("kind", OURS, ids=[f"{k.__module__}.{k.__name__}" for k in OURS])
def test_every_error_of_ours_is_one_line_with_its_exit_code(
    kind: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, one_line_errors():
        raise kind("the value, the reason, the remedy")
    assert caught.value.exit_code == kind.exit_code  # type: ignore[attr-defined]
    assert capsys.readouterr().err == "dpclip: the value, the reason, the remedy\n"


def test_the_contract_names_four_codes() -> None:
    assert {kind.exit_code for kind in OURS} == {1, 2, 3}  # type: ignore[attr-defined]
    for name in ("InputError", "BudgetExceededError"):
        ours, theirs = getattr(dpclip.errors, name), getattr(accounting.errors, name)
        assert issubclass(ours, theirs)
        assert ours.exit_code == theirs.exit_code


def test_what_is_no_error_of_ours_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError
