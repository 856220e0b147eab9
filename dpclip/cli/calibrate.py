"""`dpclip calibrate`: the smallest noise for a target."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer


def add_to(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Register the verb."""

    @app.command("calibrate")
    def calibrate(
        epsilon: Annotated[float, typer.Option(help="Target epsilon.")],
        delta: Annotated[float, typer.Option(help="The delta of the guarantee.")],
        sample_rate: Annotated[float, typer.Option(help="Probability q that a unit joins a step's batch.")],
        steps: Annotated[int, typer.Option(help="Number of steps.")],
        adjacency: Annotated[str, typer.Option(help="add-remove, zero-out or replace-one.")] = "add-remove",
        accountant: Annotated[str, typer.Option(help="prv or rdp.")] = "prv",
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    ) -> None:
        """The noise multiplier that keeps a schedule within (epsilon, delta), on the safe side."""
        with errors():
            from accounting import calibrate_noise_multiplier
            from dpclip.cli.checks import check_adjacency, check_steps

            found = calibrate_noise_multiplier(
                epsilon, delta, sample_rate, check_steps(steps),
                adjacency=check_adjacency(adjacency), accountant=accountant,
            )  # fmt: skip
            if as_json:
                fields = {"noise_multiplier": found.noise_multiplier, "epsilon": found.epsilon}
                typer.echo(json.dumps(fields))
            else:
                typer.echo(f"noise multiplier {found.noise_multiplier:.6g} spends epsilon {found.epsilon:.6g}")
