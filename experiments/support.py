"""What the experiments share: files of results, how they were made, and tables.

A script puts the project's root on the path and imports `experiments.support`, so that it runs from
any folder: `python experiments/theory/cards.py`.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from dpclip.files import write_atomically


def machine() -> str:
    """Processor, cores, and the threads that torch uses in this process."""
    threads = torch.get_num_threads()
    cores = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{cores}, {threads} thread{'s' * (threads > 1)}"


def made_by(command: str, *packages: str) -> dict[str, Any]:
    """How results were made: the command, the machine, and versions of packages."""
    versions = {package: version(package) for package in packages}
    return {"command": command, "machine": machine(), "versions": versions}


def read_results(path: Path) -> Any:
    """What `write_results` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_results(path: Path, results: Any) -> None:
    """As JSON; who stops the script finds the old file or the new one, whole."""
    write_atomically(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")


class ResultsFile:
    """Results that are written after every run, so that a script that is stopped goes on from them.

    Args:
        path: of the JSON file.
        empty: what a new file holds.

    Attributes:
        results: what the file holds; change it, then `write`.
    """

    def __init__(self, path: Path, empty: Any) -> None:
        self.path = path
        self.results: Any = read_results(path) if path.exists() else empty

    def write(self) -> None:
        """After each change."""
        write_results(self.path, self.results)


class RunsFile(ResultsFile):
    """Runs by key, with how they were made.

    Args:
        path: of the JSON file.
        made: how this script makes runs, see `made_by`; kept beside them.

    Attributes:
        runs: results of each run by its key.
    """

    def __init__(self, path: Path, made: dict[str, Any]) -> None:
        super().__init__(path, {"runs": {}})
        self.results |= made
        self.runs: dict[str, Any] = self.results["runs"]

    def add(self, key: str, run: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """Run what is missing, print it but for its curve, and write the file."""
        if key in self.runs:
            return
        found = self.runs[key] = run(*arguments)
        print(key, {name: value for name, value in found.items() if name != "curve"}, flush=True)
        self.write()


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A heading for each column, then the rows."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
