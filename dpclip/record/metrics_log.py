"""`released_metrics.jsonl`: numbers that may leave the building, one line a step."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpclip.files import write_atomically


class MetricsLog:
    """`released_metrics.jsonl`: numbers that may leave the building, one line a step."""

    def __init__(self, path: Path | None, upto: int = 0) -> None:
        self._path = path
        self.lines: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self.lines = [line for line in _json_lines(path) if line["step"] <= upto]
            write_atomically(path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Append the values of one step; all must be released or public."""
        line = {"step": step, **values}
        self.lines.append(line)
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def find(self, key: str, step: int) -> float | None:
        """A value logged earlier."""
        return next((x[key] for x in self.lines if x["step"] == step and key in x), None)


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            continue
        yield fields
