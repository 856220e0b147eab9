"""One accountant's opinion on an epsilon, and what may be promised on its strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["worst-case", "filter budget", "conditional"]


@dataclass(frozen=True)
class Interval:
    """The truth is at most `upper` and, where known, at least `lower`.

    Attributes:
        accountant: whose opinion it is.
        lower: a lower bound on epsilon, >= 0; None if unknown.
        estimate: the likeliest epsilon, no bound; None if unknown.
        upper: what may be reported, >= 0; inf where there is no bound.
        note: what went wrong, or how the figure was found; empty if there is nothing to say.
    """

    accountant: str
    lower: float | None
    estimate: float | None
    upper: float
    note: str = ""


@dataclass(frozen=True)
class EpsilonGuarantee:
    """(epsilon, delta) with everything that it means nothing without.

    Attributes:
        epsilon: >= 0, or inf for no guarantee.
        delta: a failure probability in [0, 1).
        kind: "worst-case" for parameters fixed in advance, "filter budget" for a preset budget that
            a filter enforced, "conditional" if an assumption must be named with it.
        adjacency: the neighbouring relation.
        accountant: the accountant or filter it comes from.
        evidence: the accountant's interval.
    """

    epsilon: float
    delta: float
    kind: Kind
    adjacency: str
    accountant: str
    evidence: Interval
