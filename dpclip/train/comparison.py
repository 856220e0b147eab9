"""The same training plan with several clipping rules, budgets and seeds; one table, resumable."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpclip.clipping import make_rule
from dpclip.errors import InputError
from dpclip.files import write_atomically
from dpclip.record.run_folder import RunFolder
from dpclip.train.run import Listener, Outcome, resume, start
from dpclip.train.run_settings import settings_of
from dpclip.train.settings import Settings

NO_PRIVACY = "none"


@dataclass(frozen=True)
class ComparisonCell:
    """One run of the comparison."""

    rule: str
    epsilon: float
    seed: int

    @property
    def folder(self) -> str:
        """Its place below the comparison's folder."""
        name = re.sub(r"[^\w.=-]+", "_", self.rule)
        return f"runs/{name}-eps{self.epsilon:g}-seed{self.seed}"


@dataclass(frozen=True)
class ComparisonGrid:
    """What is compared.

    Attributes:
        base: the settings that all runs share.
        rules: as `--clipping` takes them; at epsilon = inf one run without clipping stands for all.
        epsilons: budgets.
        seeds: how many; seeds 1 … n choose the initial weights, while each run's noise has a key of
            its own.
    """

    base: Settings
    rules: tuple[str, ...]
    epsilons: tuple[float, ...]
    seeds: int

    def __post_init__(self) -> None:
        for rule in self.rules:
            make_rule(rule)
        if not self.rules or not self.epsilons or self.seeds < 1:
            raise InputError("nothing to compare: give at least one rule, one epsilon and one seed")
        if self.base.eval_data is None and self.base.data != "builtin":
            raise InputError(
                "a comparison needs held-out figures: give --eval-data FILE, public or separate "
                "data"
            )

    def cells(self) -> Iterator[ComparisonCell]:
        """All runs; seeds outermost, so that a comparison that is stopped early has something of
        everything.
        """
        for seed in range(1, self.seeds + 1):
            for epsilon in self.epsilons:
                for rule in self.rules if math.isfinite(epsilon) else (NO_PRIVACY,):
                    yield ComparisonCell(rule, epsilon, seed)

    def settings(self, cell: ComparisonCell) -> Settings:
        """One run's settings."""
        rule = "flat" if cell.rule == NO_PRIVACY else cell.rule
        return self.base.changed(
            epsilon=cell.epsilon, clipping=rule, seed=cell.seed, baseline=False
        )


def split_rules(text: str) -> tuple[str, ...]:
    """Rules from a comma-separated list in which settings may themselves be separated by commas."""
    found: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if found and "=" in part and ":" not in part:
            found[-1] += f",{part}"
        else:
            found.append(part)
    return tuple(found)


def carry_out(
    grid: ComparisonGrid,
    folder: Path,
    listener: Listener,
    began: Callable[[int, ComparisonCell], None],
) -> dict[str, Any]:
    """Run what is missing, continue what was interrupted, and write `comparison.json` after each
    run.

    Args:
        grid: what to compare.
        folder: new, or of the same comparison.
        listener: hears each run.
        began: told the number and the cell of each run that is not yet complete.

    Raises:
        InputError: the folder holds another comparison.
    """
    _claim(grid, folder)
    rows: list[dict[str, Any]] = []
    for number, cell in enumerate(grid.cells()):
        row = _finished(folder / cell.folder)
        if row is None:
            began(number, cell)
            _run(grid.settings(cell), folder / cell.folder, listener)
            row = _finished(folder / cell.folder)
            assert row is not None
        rows.append(
            {"rule": cell.rule, "target_epsilon": _json(cell.epsilon), "seed": cell.seed, **row}
        )
        result = {"rows": rows, "table": table(rows), "note": NOTE}
        write_atomically(folder / "comparison.json", json.dumps(result, indent=1) + "\n")
        write_atomically(folder / "comparison.md", markdown(result))
    return result


NOTE = (
    "Each run has spent its own epsilon on the training data. If that data is private, what was "
    "spent is the composition of all runs, and choosing the best of them by private data would "
    "have to be paid for too: compare on public data."
)


def _claim(grid: ComparisonGrid, folder: Path) -> None:
    text = grid.base.to_toml()
    path = folder / "base.toml"
    if path.exists() and path.read_text() != text:
        raise InputError(
            f"{folder} holds a comparison with other settings: choose another --output"
        )
    if not path.exists() and folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no comparison: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def _run(settings: Settings, path: Path, listener: Listener) -> Outcome:
    if (path / "ledger.jsonl").exists():
        run = RunFolder.open(path)
        return resume(run, settings_of(run), listener)
    return start(settings, path, listener)


def _finished(path: Path) -> dict[str, Any] | None:
    """The public figures of a run that has its statement."""
    statement_path = path / "public" / "statement.json"
    if not statement_path.is_file():
        return None
    statement = json.loads(statement_path.read_text())
    guarantee, evaluation = statement["guarantee"], statement["evaluation"] or {}
    return {
        "epsilon": guarantee["epsilon"],
        "delta": guarantee["delta"],
        "kind": guarantee["kind"],
        "assumption": guarantee["assumption"],
        "status": statement["run"]["status"],
        "noise_multiplier": statement["mechanism"]["noise_multiplier"],
        "clipping": statement["mechanism"]["clipping"],
        "metric": evaluation.get("metric"),
        "before": evaluation.get("before"),
        "after": evaluation.get("after"),
        "folder": str(Path(*path.parts[-2:])),
    }


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds for each rule and budget; runs that diverged are
    counted, not averaged.
    """
    groups: dict[tuple[str, Any], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["rule"], row["target_epsilon"]), []).append(row)
    return [_summary(rule, epsilon, members) for (rule, epsilon), members in groups.items()]


def _summary(rule: str, epsilon: Any, members: list[dict[str, Any]]) -> dict[str, Any]:
    values = [
        row["after"] for row in members if row["after"] is not None and math.isfinite(row["after"])
    ]
    return {
        "rule": rule,
        "epsilon": epsilon,
        "metric": members[0]["metric"],
        "runs": len(members),
        "diverged": len(members) - len(values),
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "kind": members[0]["kind"],
    }


def markdown(result: dict[str, Any]) -> str:
    """Rules down, budgets across."""
    cells = result["table"]
    rules = list(dict.fromkeys(cell["rule"] for cell in cells))
    budgets = list(dict.fromkeys(cell["epsilon"] for cell in cells))
    by_place = {(cell["rule"], cell["epsilon"]): cell for cell in cells}
    lines = [f"Held-out {cells[0]['metric']}, mean ± standard deviation over seeds.", ""]
    lines += ["| rule | " + " | ".join(f"ε = {budget}" for budget in budgets) + " |"]
    lines += ["| --- |" + " --- |" * len(budgets)]
    for rule in rules:
        row = [shown(by_place.get((rule, budget))) for budget in budgets]
        lines.append(f"| {rule} | " + " | ".join(row) + " |")
    return "\n".join([*lines, "", result["note"], ""])


def shown(cell: dict[str, Any] | None) -> str:
    """One cell of the table."""
    if cell is None:
        return "—"
    if cell["mean"] is None:
        return "diverged"
    spread = "" if cell["std"] is None else f" ± {cell['std']:.3g}"
    lost = f" ({cell['diverged']} of {cell['runs']} diverged)" if cell["diverged"] else ""
    return f"{cell['mean']:.4g}{spread}{lost}"


def _json(value: float) -> float | str:
    return value if math.isfinite(value) else "inf"
