"""`dpclip train`: fine-tune a language model or classifier on private text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from dpclip.cli.checks import rows_or_auto

_PRIVACY, _DATA, _MODEL, _TRAINING, _RUN = "Privacy", "Data", "Model", "Training", "Run"


def _o(text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=False)


def _was_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)  # an enum of whichever click typer uses
    return source is not None and source.name == "COMMANDLINE"


def add_to(app: typer.Typer, errors: Callable[[], AbstractContextManager[None]]) -> None:
    """Register the verb."""

    @app.command("train")
    def train(
        context: typer.Context,
        epsilon: Annotated[
            float | None, _o("Privacy budget; inf trains without privacy.", _PRIVACY)
        ] = None,
        delta: Annotated[float | None, _o("Default min(1e-5, 1/(10 N)).", _PRIVACY)] = None,
        clipping: Annotated[str, _o("Rule, as flat or flat:max_grad_norm=0.5.", _PRIVACY)] = "flat",
        accept_conditional: Annotated[
            bool,
            _o(
                "Allow a rule whose guarantee rests on an unchecked assumption.",
                _PRIVACY,
                "--accept-conditional",
            ),
        ] = False,
        postprocess: Annotated[
            str,
            _o(
                "Clips the released gradient, at no cost: zclip:z_thresh=2.5; several with +.",
                _PRIVACY,
            ),
        ] = "none",
        accountant: Annotated[str, _o("prv (default) or rdp.", _PRIVACY)] = "prv",
        arithmetic: Annotated[
            str,
            _o(
                "exact: sums and noise without rounding error (default); fast: float32 products.",
                _PRIVACY,
            ),
        ] = "exact",
        unit_column: Annotated[
            str | None,
            _o("Rows with one value here are one unit of privacy (one person).", _PRIVACY),
        ] = None,
        rows_per_unit: Annotated[
            int, _o("Most rows of one unit in a step (default 8).", _PRIVACY)
        ] = 8,
        public_units: Annotated[
            int | None, _o("N, if the true number is private.", _PRIVACY)
        ] = None,
        data: Annotated[
            str, _o("CSV, TSV, JSONL, Parquet or text file, hub data set, or builtin.", _DATA)
        ] = "builtin",
        eval_data: Annotated[
            str | None, _o("Public or separate data for held-out figures.", _DATA)
        ] = None,
        task: Annotated[str, _o("lm (default) or classification.", _DATA)] = "lm",
        text_column: Annotated[str | None, _o("Column with the text.", _DATA)] = None,
        input_column: Annotated[
            str | None, _o("Column with what the model is given.", _DATA)
        ] = None,
        target_column: Annotated[
            str | None, _o("Column with what it learns to write.", _DATA)
        ] = None,
        label_column: Annotated[str | None, _o("Column with the class.", _DATA)] = None,
        labels: Annotated[
            str | None, _o("All class names, comma-separated (public).", _DATA)
        ] = None,
        max_length: Annotated[
            int | None, _o("Longest record in tokens (default 128).", _DATA)
        ] = None,
        long_records: Annotated[str, _o("truncate (default) or refuse.", _DATA)] = "truncate",
        model: Annotated[str, _o("Folder, hub name or builtin.", _MODEL)] = "builtin",
        tokenizer: Annotated[
            str | None, _o("Folder or hub name, if not the model's.", _MODEL)
        ] = None,
        from_scratch: Annotated[
            bool, _o("Random weights for the model's config.json.", _MODEL, "--from-scratch")
        ] = False,
        lora: Annotated[int | None, _o("Train adapters of this rank only.", _MODEL)] = None,
        device: Annotated[
            str, _o("auto (default: a GPU if there is one), cpu, cuda, …", _MODEL)
        ] = "auto",
        grad_sample_mode: Annotated[
            str, _o("auto (default), bookkeeping, ghost, hooks or functorch.", _MODEL)
        ] = "auto",
        epochs: Annotated[float | None, _o("Passes over the data (default 3).", _TRAINING)] = None,
        steps: Annotated[int | None, _o("Logical steps, instead of epochs.", _TRAINING)] = None,
        batch_size: Annotated[
            int | None, _o("Expected units a step (default 256, at most N/4).", _TRAINING)
        ] = None,
        physical_batch_size: Annotated[
            str | None,
            _o(
                "Rows computed at once: auto (default: at most 16, and what fits) or a number.",
                _TRAINING,
            ),
        ] = None,
        optimizer: Annotated[str, _o("adamw (default) or sgd.", _TRAINING)] = "adamw",
        lr: Annotated[
            float | None, _o("Learning rate (default 0.768 / width of the model).", _TRAINING)
        ] = None,
        lr_schedule: Annotated[
            str, _o("linear (default), constant or cosine.", _TRAINING)
        ] = "linear",
        eval_every: Annotated[
            int | None, _o("Held-out figure every so many steps.", _TRAINING)
        ] = None,
        baseline: Annotated[
            bool, _o("Then train without privacy, for comparison.", _TRAINING, "--baseline")
        ] = False,
        config: Annotated[Path | None, _o("TOML file with any of these options.", _RUN)] = None,
        output: Annotated[Path | None, _o("Run folder (default dpclip-run).", _RUN)] = None,
        resume: Annotated[Path | None, _o("Continue the run in this folder.", _RUN)] = None,
        checkpoint_every: Annotated[int | None, _o("Steps between checkpoints.", _RUN)] = None,
        seed: Annotated[
            int | None, _o("Chooses the initial weights only; no secret.", _RUN)
        ] = None,
        as_json: Annotated[bool, _o("Print the statement as JSON.", _RUN, "--json")] = False,
    ) -> None:
        """Fine-tune a model on private text within a privacy budget, and state what was
        promised.
        """
        given = {
            name: value
            for name, value in context.params.items()
            if _was_typed(context, name) and name not in ("config", "output", "resume", "as_json")
        }
        with errors():
            from dpclip.cli.train_run import run

            if "physical_batch_size" in given:
                given["physical_batch_size"] = rows_or_auto(
                    "--physical-batch-size", physical_batch_size
                )
            status = run(given, config=config, output=output, resume=resume, as_json=as_json)
            if status != "complete":
                raise typer.Exit(3)
