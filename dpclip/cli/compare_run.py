"""Carries out `dpclip compare` once its options are parsed."""

from __future__ import annotations

import json
import math
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rich.console import Console
from rich.markdown import Markdown

from dpclip.cli.checks import rows_or_auto
from dpclip.cli.progress import NoProgress
from dpclip.cli.quiet import quieten_libraries
from dpclip.errors import InputError
from dpclip.train.settings import Settings, option, read_toml

_OWN = ("epsilon", "clipping", "seed", "baseline")


def run(
    rules: str,
    epsilons: str,
    seeds: int,
    config: Path | None,
    output: Path,
    rest: list[str],
    as_json: bool,
) -> None:
    """Compare, print the table, write the figure.

    Raises:
        InputError: options that cannot be used.
    """
    budgets = tuple(_budget(text) for text in epsilons.split(",") if text.strip())
    values = read_toml(config) if config else {}
    values = {k: v for k, v in values.items() if k not in (*_OWN, "output")} | settings_from(rest)
    quieten_libraries()
    from dpclip.report.comparison import write_figure
    from dpclip.train import comparison

    base = Settings(**{"epsilon": 1.0, **values})
    grid = comparison.ComparisonGrid(base, comparison.split_rules(rules), budgets, seeds)
    console = Console(highlight=False, quiet=as_json, soft_wrap=True)
    count = sum(1 for _ in grid.cells())
    console.print(
        f"{count} runs: {len(grid.rules)} rules, ε = {epsilons}, {seeds} seeds, in {output}"
    )
    listener = _Counter(console)

    def began(number: int, cell: comparison.ComparisonCell) -> None:
        listener.begin(
            f"run {number + 1} of {count}: {cell.rule}, ε = {cell.epsilon:g}, seed {cell.seed}"
        )

    result = comparison.carry_out(grid, output, listener, began)
    figure = write_figure(output, result)
    if as_json:
        print(json.dumps(result))  # noqa: T201
        return
    console.print(Markdown(comparison.markdown(result)))
    console.print(f"Table: {output}/comparison.md, comparison.json   Figure: {figure}")


def settings_from(words: list[str]) -> dict[str, Any]:
    """Options of `dpclip train` as settings.

    Raises:
        InputError: an option that train does not have, or that the comparison sets itself; a value
            that does not fit.
    """
    hints = get_type_hints(Settings)
    known = {option(field.name): field.name for field in fields(Settings) if field.name not in _OWN}
    found: dict[str, Any] = {}
    queue = list(words)
    while queue:
        word, equals, value = queue.pop(0).partition("=")
        name = known.get(word)
        if name is None:
            raise InputError(
                f"{word}: compare takes the options of train but for {', '.join(map(option, _OWN))}"
            )
        if hints[name] is bool:
            found[name] = True
            continue
        if not equals:
            if not queue:
                raise InputError(f"{word} needs a value")
            value = queue.pop(0)
        rows = name == "physical_batch_size"
        found[name] = rows_or_auto(word, value) if rows else _typed(word, value, hints[name])
    return found


def _typed(word: str, value: str, hint: Any) -> Any:
    kinds = [kind for kind in (hint, *get_args(hint)) if kind in (int, float)]
    if not kinds:
        return value
    try:
        return kinds[0](value)
    except ValueError:
        raise InputError(
            f"{word} {value!r} is not a {'whole number' if kinds[0] is int else 'number'}"
        ) from None


def _budget(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(
            f"--epsilon {text!r} is not a number: give budgets as 1,2,8 (inf trains without "
            "privacy)"
        ) from None
    if not value > 0 or math.isnan(value):
        raise InputError(f"--epsilon {text!r} must be positive")
    return value


class _Counter(NoProgress):
    """One line for each run, with the time it took."""

    def __init__(self, console: Console) -> None:
        self._console, self._started = console, time.monotonic()

    def begin(self, text: str) -> None:
        """A run begins."""
        self._started = time.monotonic()
        self._console.print(text, end=" … ")

    def on_evaluate(self, step: int, metric: str, value: float) -> None:
        """Before and after each run."""
        took = f" ({time.monotonic() - self._started:.0f} s)" if step else ""
        self._console.print(f"{metric} {value:.4g}{took}", end="\n" if step else " → ")
