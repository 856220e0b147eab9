"""`dpclip calibrate`: the smallest noise for a target."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated, Any

import typer


def add_to(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Register the verb."""

    @app.command("calibrate")
    def calibrate(
        epsilon: Annotated[float, typer.Option(help="Target epsilon.")],
        delta: Annotated[float, typer.Option(help="The delta of the guarantee.")],
        sample_rate: Annotated[
            float, typer.Option(help="Probability q that a unit joins a step's batch.")
        ],
        steps: Annotated[int, typer.Option(help="Number of steps.")],
        adjacency: Annotated[
            str, typer.Option(help="add-remove, zero-out or replace-one.")
        ] = "add-remove",
        accountant: Annotated[str, typer.Option(help="prv or rdp.")] = "prv",
        clipping: Annotated[
            str | None, typer.Option(help="A rule: its batches, sensitivity and noise.")
        ] = None,
        batch_size: Annotated[
            int, typer.Option(help="Expected units a step, for --clipping.")
        ] = 256,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    ) -> None:
        """The noise multiplier that keeps a schedule within (epsilon, delta), on the safe side."""
        with errors():
            from accounting import calibrate_noise_multiplier
            from dpclip.cli.checks import check_adjacency, check_steps

            if clipping is not None:
                _with_rule(
                    clipping, as_json, epsilon=epsilon, delta=delta, sample_rate=sample_rate,
                    steps=check_steps(steps), batch_size=batch_size, accountant=accountant,
                )  # fmt: skip
                return
            found = calibrate_noise_multiplier(
                epsilon, delta, sample_rate, check_steps(steps),
                adjacency=check_adjacency(adjacency), accountant=accountant,
            )  # fmt: skip
            if as_json:
                fields = {"noise_multiplier": found.noise_multiplier, "epsilon": found.epsilon}
                typer.echo(json.dumps(fields))
            else:
                typer.echo(
                    f"noise multiplier {found.noise_multiplier:.6g} spends epsilon "
                    f"{found.epsilon:.6g}"
                )


def _with_rule(clipping: str, as_json: bool, **schedule: Any) -> None:
    from dpclip.tuning.rule_noise import calibrate_rule

    found = calibrate_rule(clipping, **schedule)
    if as_json:
        typer.echo(json.dumps(found))
        return
    typer.echo(_line("as given", found))
    for other in found.get("best", ()):
        typer.echo(_line("least noise", other))
    if "flat_at_the_same_cap" in found:
        flat = found["flat_at_the_same_cap"]
        typer.echo(
            f"for comparison: flat at C = {flat['C']:.4g}: noise {flat['noise']:.6g} on the sum"
        )


def _line(title: str, found: dict[str, Any]) -> str:
    rule = ", ".join(f"{key} {_short(value)}" for key, value in found["rule"].items())
    return (
        f"{title}: {rule}; drawn by {found['sampling']}; noise multiplier "
        f"{found['noise_multiplier']:.6g} times sensitivity {found['sensitivity']:.6g}: noise "
        f"{found['noise']:.6g} on the sum"
    )


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
