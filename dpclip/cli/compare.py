"""`dpclip compare`: the same plan with several clipping rules and budgets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def add_to(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Register the verb."""

    @app.command("compare", context_settings=_PASSED_ON)
    def compare(
        context: typer.Context,
        rules: Annotated[
            str, typer.Option(help="Comma-separated, as --clipping takes them.")
        ] = "flat,automatic",
        epsilon: Annotated[
            str, typer.Option(help="Budgets, comma-separated; inf trains without privacy.")
        ] = "8",
        seeds: Annotated[int, typer.Option(help="Runs of each rule and budget.")] = 3,
        config: Annotated[
            Path | None, typer.Option(help="TOML file with options of train.")
        ] = None,
        output: Annotated[Path, typer.Option(help="Folder; give the same one to go on.")] = Path(
            "dpclip-comparison"
        ),
        as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    ) -> None:
        """Train with several clipping rules on one plan: a table and a figure.

        Takes the options of train too.
        """
        with errors():
            from dpclip.cli.compare_run import run

            run(rules, epsilon, seeds, config, output, list(context.args), as_json)
