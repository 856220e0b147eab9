"""The verbs, and how errors leave the program."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from accounting.errors import AccountingError
from dpclip import __version__
from dpclip.cli import calibrate, compare, doctor, epsilon, report, train
from dpclip.errors import DpclipError

app = typer.Typer(
    name="dpclip",
    help="Train and fine-tune models under differential privacy, and prove it afterwards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dpclip {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train and fine-tune models under differential privacy, and prove it afterwards."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """An error of ours ends with one line and the exit code of its class, never with a
    traceback.
    """
    try:
        yield
    except (DpclipError, AccountingError) as error:
        _complain(str(error))
        raise typer.Exit(error.exit_code) from error


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"dpclip: {message}", markup=False)


for verb in (train, compare, report, epsilon, calibrate, doctor):
    verb.add_to(app, one_line_errors)
