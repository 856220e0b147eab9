"""Every kind of event by its name: a new kind is one line here."""

from __future__ import annotations

from typing import Any

from accounting.errors import InvalidInput, require
from accounting.events.balls_in_bins import BallsInBinsGaussian
from accounting.events.base import Event
from accounting.events.composed import Composed, NonPrivate, SelfComposed, Unsupported
from accounting.events.fixed_batches import FixedBatchesGaussian
from accounting.events.gaussian import Gaussian, PoissonGaussian
from accounting.events.laplace import Laplace
from accounting.events.mixture import MixtureGaussian
from accounting.events.stated import ApproximateDP, PureDP
from accounting.events.truncated_poisson import TruncatedPoissonGaussian
from accounting.events.without_replacement import WithoutReplacementGaussian

EVENTS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        Gaussian,
        PoissonGaussian,
        TruncatedPoissonGaussian,
        WithoutReplacementGaussian,
        FixedBatchesGaussian,
        BallsInBinsGaussian,
        Laplace,
        MixtureGaussian,
        PureDP,
        ApproximateDP,
        SelfComposed,
        Composed,
        NonPrivate,
        Unsupported,
    )
}


def event_from_json(record: dict[str, Any]) -> Event:
    """Read an event back; a kind this version does not know becomes `Unsupported` (epsilon = inf).

    Raises InvalidInput when the record is not an object with a "kind", or a field is missing or out of range.
    """
    require(
        isinstance(record, dict) and isinstance(record.get("kind"), str),
        f"event record {str(record)[:80]!r} has no kind, so it cannot be accounted; write it with to_json()",
    )
    kind = record["kind"]
    if kind not in EVENTS:
        return Unsupported(kind, f"this version knows no event of kind {kind!r}; upgrade, or account for it by hand")
    try:
        return EVENTS[kind].from_json(record)
    except (KeyError, TypeError) as error:
        raise InvalidInput(f"event of kind {kind!r} is incomplete ({error}); write it with to_json()") from error
