"""`dpclip epsilon`: what a training schedule costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer


def add_to(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Register the verb."""

    @app.command("epsilon")
    def epsilon(
        sample_rate: Annotated[
            float, typer.Option(help="Probability q that a unit joins a step's batch.")
        ],
        noise_multiplier: Annotated[float, typer.Option(help="Noise std over L2 sensitivity.")],
        steps: Annotated[int, typer.Option(help="Number of steps.")],
        delta: Annotated[float, typer.Option(help="The delta of the guarantee.")],
        adjacency: Annotated[
            str, typer.Option(help="add-remove, zero-out or replace-one.")
        ] = "add-remove",
        accountant: Annotated[str, typer.Option(help="prv or rdp.")] = "prv",
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    ) -> None:
        """The epsilon that a schedule of Poisson-sampled Gaussian steps spends at a delta."""
        with errors():
            from accounting import PoissonGaussian, make_accountant
            from accounting.wording import finite
            from dpclip.cli.checks import check_adjacency, check_steps

            event = PoissonGaussian(sample_rate=sample_rate, noise_multiplier=noise_multiplier)
            book = make_accountant(accountant, check_adjacency(adjacency))
            book.charge(event, check_steps(steps))
            found = book.epsilon(delta)
            if as_json:
                # Without a certified lower end: 0 is always true, and the bound is the only
                # estimate.
                lower = 0.0 if found.lower is None else found.lower
                estimate = found.upper if found.estimate is None else found.estimate
                fields = {
                    "epsilon": finite(found.upper),
                    "estimate": finite(estimate),
                    "lower": finite(lower),
                    "delta": delta,
                    "accountant": accountant,
                    "adjacency": adjacency,
                    "note": found.note,
                }
                typer.echo(json.dumps(fields))
            else:
                note = f" ({found.note})" if found.note else ""
                between = "" if found.lower is None else f" (certainly above {found.lower:.6g})"
                typer.echo(
                    f"epsilon {found.upper:.6g}{between} at delta {delta:g}, {adjacency}, "
                    f"{accountant}{note}"
                )
