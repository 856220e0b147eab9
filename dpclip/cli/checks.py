"""Checks that several verbs share."""

from __future__ import annotations

from typing import get_args

from accounting import Adjacency
from dpclip.errors import InputError


def check_adjacency(name: str) -> Adjacency:
    """One of the neighbouring relations that the accountants know."""
    known = get_args(Adjacency)
    if name not in known:
        raise InputError(f"--adjacency {name!r} is unknown: choose one of {', '.join(known)}")
    return name  # type: ignore[return-value]


def check_steps(steps: int) -> int:
    """At least one step."""
    if steps < 1:
        raise InputError(f"--steps {steps} must be at least 1")
    return steps


def rows_or_auto(name: str, value: str | None) -> int | None:
    """A number of rows; None for auto."""
    if value in (None, "auto"):
        return None
    try:
        return int(value or "")
    except ValueError as error:
        raise InputError(f"{name} {value!r} is neither auto nor a whole number") from error
