"""One accountant's opinion on an epsilon, and what may be promised on its strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["worst-case", "filter budget", "conditional"]


@dataclass(frozen=True)
class Interval:
    """The truth is at most `upper` and, where known, at least `lower`; `note` names what went
    wrong.
    """

    accountant: str
    lower: float | None
    estimate: float | None
    upper: float
    note: str = ""


@dataclass(frozen=True)
class EpsilonGuarantee:
    """(epsilon, delta) with everything that it means nothing without.

    kind: "worst-case" for parameters fixed in advance, "filter budget" for a preset budget that a
    filter enforced, "conditional" if an assumption must be named with it. evidence: the
    accountant's interval.
    """

    epsilon: float
    delta: float
    kind: Kind
    adjacency: str
    accountant: str
    evidence: Interval
