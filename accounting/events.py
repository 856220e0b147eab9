"""What was released, in units of its own sensitivity.

Every event is a frozen record with a JSON round trip. Noise is always given as a noise multiplier: the
standard deviation of the Gaussian noise divided by the L2 sensitivity C of one unit, that is, the largest
L2 norm one unit can add to the released sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

from accounting.errors import InvalidInput, require

Adjacency = Literal["add-remove", "zero-out", "replace-one"]
ADJACENCIES: tuple[str, ...] = get_args(Adjacency)


def require_adjacency(adjacency: str) -> None:
    """Refuse a neighbouring relation this package has no theorem for."""
    require(
        adjacency in ADJACENCIES,
        f"adjacency {adjacency!r} is unknown, so nothing can be claimed; use one of {', '.join(ADJACENCIES)}",
    )


def _require_noise_multiplier(value: float) -> None:
    real = isinstance(value, Real) and not isinstance(value, bool)
    require(
        real and 0.0 <= value < math.inf,
        f"noise_multiplier={value!r} is not a finite number >= 0; give noise std / sensitivity",
    )


@dataclass(frozen=True)
class Gaussian:
    """One Gaussian release over the whole data set, without sampling.

    noise_multiplier: noise standard deviation / L2 sensitivity of one unit (no unit itself).
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        _require_noise_multiplier(self.noise_multiplier)

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return {"kind": "gaussian", "noise_multiplier": self.noise_multiplier}


@dataclass(frozen=True)
class PoissonGaussian:
    """One Gaussian release over a Poisson sample: each unit takes part with probability sample_rate.

    sample_rate: probability in [0, 1], independent for each unit and each release.
    noise_multiplier: noise standard deviation / L2 sensitivity of one unit (no unit itself).
    """

    sample_rate: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        real = isinstance(self.sample_rate, Real) and not isinstance(self.sample_rate, bool)
        require(
            real and 0.0 <= self.sample_rate <= 1.0,
            f"sample_rate={self.sample_rate!r} is not a probability; give batch size / data set size",
        )
        _require_noise_multiplier(self.noise_multiplier)

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return {
            "kind": "poisson-gaussian",
            "sample_rate": self.sample_rate,
            "noise_multiplier": self.noise_multiplier,
        }


@dataclass(frozen=True)
class SelfComposed:
    """`count` releases of the same event, each with fresh randomness (count: integer >= 0)."""

    event: Event
    count: int

    def __post_init__(self) -> None:
        require_count(self.count)

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return {"kind": "self-composed", "event": self.event.to_json(), "count": int(self.count)}


@dataclass(frozen=True)
class Composed:
    """Several releases, each with fresh randomness, whose parameters were fixed in advance."""

    events: tuple[Event, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", tuple(self.events))

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return {"kind": "composed", "events": [event.to_json() for event in self.events]}


@dataclass(frozen=True)
class NonPrivate:
    """A release without protection: epsilon is infinite from here on, for the given reason."""

    reason: str

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return {"kind": "non-private", "reason": self.reason}


@dataclass(frozen=True)
class Unsupported:
    """A release this package has no theorem for: epsilon is infinite, for the given reason."""

    kind: str
    reason: str

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return {"kind": "unsupported", "name": self.kind, "reason": self.reason}


Event = Gaussian | PoissonGaussian | SelfComposed | Composed | NonPrivate | Unsupported


def require_count(count: int) -> None:
    """Refuse anything but an integer >= 0 as a number of releases."""
    integral = isinstance(count, Integral) and not isinstance(count, bool)
    require(integral and count >= 0, f"count={count!r} is not an integer >= 0; give the number of releases")


def event_from_json(record: dict[str, Any]) -> Event:
    """Read an event back; a kind this version does not know becomes `Unsupported` (epsilon = inf).

    Raises InvalidInput when the record is not an object with a "kind", or a field is missing or out of range.
    """
    require(
        isinstance(record, dict) and isinstance(record.get("kind"), str),
        f"event record {str(record)[:80]!r} has no kind, so it cannot be accounted; write it with to_json()",
    )
    kind = record["kind"]
    try:
        return _read(kind, record)
    except (KeyError, TypeError) as error:
        raise InvalidInput(f"event of kind {kind!r} is incomplete ({error}); write it with to_json()") from error


def _read(kind: str, record: dict[str, Any]) -> Event:
    match kind:
        case "gaussian":
            return Gaussian(record["noise_multiplier"])
        case "poisson-gaussian":
            return PoissonGaussian(record["sample_rate"], record["noise_multiplier"])
        case "self-composed":
            return SelfComposed(event_from_json(record["event"]), record["count"])
        case "composed":
            return Composed(tuple(event_from_json(part) for part in record["events"]))
        case "non-private":
            return NonPrivate(record["reason"])
        case "unsupported":
            return Unsupported(record["name"], record["reason"])
    return Unsupported(kind, f"this version knows no event of kind {kind!r}; upgrade, or account for it by hand")


def flatten(event: Event) -> list[tuple[Event, int]]:
    """Equal primitive events with their total counts, in order of first appearance, without counts of 0."""
    counts: dict[Event, int] = {}
    _gather(event, 1, counts)
    return [(primitive, count) for primitive, count in counts.items() if count > 0]


def _gather(event: Event, times: int, counts: dict[Event, int]) -> None:
    if isinstance(event, SelfComposed):
        _gather(event.event, times * int(event.count), counts)
    elif isinstance(event, Composed):
        for part in event.events:
            _gather(part, times, counts)
    else:
        counts[event] = counts.get(event, 0) + times


def obstacle(event: Event) -> str | None:
    """Why no finite epsilon exists for this event, or None."""
    for primitive, _count in flatten(event):
        if isinstance(primitive, NonPrivate):
            return f"a non-private release: {primitive.reason}"
        if isinstance(primitive, Unsupported):
            return f"unsupported event {primitive.kind!r}: {primitive.reason}"
        if not isinstance(primitive, Gaussian | PoissonGaussian):
            return f"unsupported event of type {type(primitive).__name__}"
    return None
