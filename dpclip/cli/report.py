"""`dpclip report`: a run's privacy statement for people and machines."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer


def add_to(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Register the verb."""

    @app.command("report")
    def report(
        run: Annotated[Path, typer.Argument(help="The run folder.")],
        form: Annotated[str, typer.Option("--format", help="html, md or json.")] = "md",
        as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    ) -> None:
        """Print the privacy statement of a run; html also writes RUN/public/report.html and prints
        its path.
        """
        with errors():
            from dpclip import report as reports
            from dpclip.errors import InputError

            chosen = "json" if as_json else form
            if chosen == "html":
                typer.echo(str(reports.write(run)))
            elif chosen in ("md", "json"):
                typer.echo(reports.render(run, chosen), nl=False)  # type: ignore[arg-type]
            else:
                raise InputError(f"--format {chosen!r} is unknown: choose one of html, md, json")
