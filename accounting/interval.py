"""One accountant's opinion on an epsilon."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """The truth is at most `upper` and, where known, at least `lower`; `note` names what went wrong."""

    accountant: str
    lower: float | None
    estimate: float | None
    upper: float
    note: str = ""
