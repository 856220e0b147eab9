"""`dpclip doctor`: examine a model before it meets data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Annotated

import typer


def add_to(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Register the verb."""

    @app.command("doctor")
    def doctor(
        model: Annotated[str, typer.Argument(help="Folder, hub name or builtin.")] = "builtin",
        task: Annotated[str, typer.Option(help="lm or classification.")] = "lm",
        tokenizer: Annotated[
            str | None, typer.Option(help="Folder or hub name, if not the model's.")
        ] = None,
        lora: Annotated[int | None, typer.Option(help="With adapters of this rank.")] = None,
        max_length: Annotated[
            int | None, typer.Option(help="Longest record in tokens (default 128).")
        ] = None,
        from_scratch: Annotated[
            bool, typer.Option("--from-scratch", help="Random weights.")
        ] = False,
        device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    ) -> None:
        """Show how each layer's per-sample norm is computed, what it costs, and what private
        training would refuse.
        """
        with errors():
            from dpclip.cli.doctor_run import run

            healthy = run(model, task, tokenizer, lora, max_length, from_scratch, device, as_json)
            if not healthy:
                raise typer.Exit(2)
