"""Runs that stop on the way, and what the command line says where it refuses."""

from __future__ import annotations

from typer.testing import Result

from dpclip.cli.progress import NoProgress


class Stopped(Exception):
    """Stands for a crash inside the process."""


class StopAfter(NoProgress):
    """Crashes after so many steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int, epsilon: float, values: dict[str, float]) -> None:
        if step == self.step:
            raise Stopped


def one_line(result: Result, *parts: str) -> None:
    """Exit code 2 and a single line on standard error with all the parts."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0]
