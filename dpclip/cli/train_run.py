"""Carries out `dpclip train` once its options are parsed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from dpclip.cli.progress import ConsoleProgress, NoProgress
from dpclip.cli.quiet import quieten_libraries
from dpclip.errors import InputError
from dpclip.record.run_folder import RunFolder, check_free, free_folder
from dpclip.train.run_settings import settings_of
from dpclip.train.settings import UNBOUND, Settings, option, read_toml


def run(
    given: dict[str, Any],
    *,
    config: Path | None,
    output: Path | None,
    resume: Path | None,
    as_json: bool,
) -> str:
    """Start or resume a run; returns its status.

    Raises:
        InputError: options that cannot be used.
    """
    if resume is not None:
        folder = _folder_to_resume(resume, config, output)
        settings = _settings_to_resume(folder, given)
    else:
        settings, output = _settings_to_start(given, config, output)
    quieten_libraries()
    listener = NoProgress() if as_json else ConsoleProgress(Console(highlight=False))

    with listener:
        from dpclip.train import (
            run as training,  # torch is imported only when the options make sense
        )

        if resume is not None:
            outcome = training.resume(folder, settings, listener)
        else:
            outcome = training.start(settings, output or free_folder(Path("dpclip-run")), listener)
    if as_json:
        print(json.dumps({**outcome.statement, "run_folder": str(outcome.folder)}, allow_nan=False))  # noqa: T201
    else:
        listener.conclude(outcome)
    return outcome.status


def _folder_to_resume(resume: Path, config: Path | None, output: Path | None) -> RunFolder:
    if config is not None or output is not None:
        raise InputError(
            "--resume takes the run's own folder and settings: leave out --config and --output"
        )
    return RunFolder.open(resume)


def _settings_to_resume(folder: RunFolder, given: dict[str, Any]) -> Settings:
    settings = settings_of(folder)
    for name, value in given.items():
        before = getattr(settings, name)
        if value != before and name not in UNBOUND:
            raise InputError(
                f"{option(name)} {value} differs from the {before} that the run was started with: "
                "leave it out to resume, or start a new run in a new folder"
            )
    return settings.changed(**{k: v for k, v in given.items() if k in UNBOUND})


def _settings_to_start(
    given: dict[str, Any], config: Path | None, output: Path | None
) -> tuple[Settings, Path | None]:
    values = {**(read_toml(config) if config else {}), **given}
    folder = values.pop("output", None)
    if output is None and folder is not None:
        output = Path(folder)
    if values.get("epsilon") is None:
        raise InputError(
            "no privacy budget was given: add --epsilon 8 (or --epsilon inf to train without "
            "privacy)"
        )
    if not values["epsilon"] > 0:
        raise InputError(
            f"--epsilon {values['epsilon']} must be positive: 8 is a common start, inf means no "
            "privacy"
        )
    if output is not None:
        check_free(output)
    return Settings(**values), output
