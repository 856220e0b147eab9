"""Several events as one, and events without a guarantee."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from accounting.events.base import EVENTS, Event, Reader, require_count


@EVENTS.register
@dataclass(frozen=True)
class SelfComposed(Event):
    """Several releases of the same event, each with fresh randomness.

    Attributes:
        event: what is released each time.
        count: number of releases, an integer >= 0.
    """

    kind: ClassVar[str] = "self-composed"
    event: Event
    count: int

    def __post_init__(self) -> None:
        require_count(self.count)

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return {"kind": self.kind, "event": self.event.to_json(), "count": int(self.count)}

    @classmethod
    def from_json(cls, record: dict[str, Any], read: Reader) -> Event:
        """The inverse of `to_json`."""
        return cls(read(record["event"]), record["count"])


@EVENTS.register
@dataclass(frozen=True)
class Composed(Event):
    """Several releases, each with fresh randomness, whose parameters were fixed in advance.

    Attributes:
        events: what is released.
    """

    kind: ClassVar[str] = "composed"
    events: tuple[Event, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", tuple(self.events))

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object."""
        return {"kind": self.kind, "events": [event.to_json() for event in self.events]}

    @classmethod
    def from_json(cls, record: dict[str, Any], read: Reader) -> Event:
        """The inverse of `to_json`."""
        return cls(tuple(read(part) for part in record["events"]))


@EVENTS.register
@dataclass(frozen=True)
class NonPrivate(Event):
    """A release without protection: epsilon is infinite from here on.

    Attributes:
        reason: why there is none, in words.
    """

    kind: ClassVar[str] = "non-private"
    reason: str

    def unsupported_reason(self, adjacency: str) -> str | None:
        """The given reason, under every adjacency."""
        return f"a non-private release: {self.reason}"


@EVENTS.register
@dataclass(frozen=True)
class Unsupported(Event):
    """A release this package has no theorem for: epsilon is infinite.

    Attributes:
        name: of the kind of event.
        reason: why there is no theorem, in words.
    """

    kind: ClassVar[str] = "unsupported"
    name: str
    reason: str

    def unsupported_reason(self, adjacency: str) -> str | None:
        """The name and the given reason, under every adjacency."""
        return f"unsupported event {self.name!r}: {self.reason}"


def flatten(event: Event) -> list[tuple[Event, int]]:
    """Take an event apart into primitive ones.

    Returns:
        (event, count) pairs, each event once, in order of first appearance, counts above 0.
    """
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


def unsupported_reason(event: Event, adjacency: str) -> str | None:
    """Why no finite epsilon exists for an event.

    Returns:
        the reason of its first primitive event that has one, or None.
    """
    for primitive, _count in flatten(event):
        reason = (
            primitive.unsupported_reason(adjacency)
            if isinstance(primitive, Event)
            else _unknown(primitive)
        )
        if reason is not None:
            return reason
    return None


def _unknown(thing: object) -> str:
    return f"unsupported event of type {type(thing).__name__}"
