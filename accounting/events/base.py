"""What every event is: a frozen record that knows its own Rényi divergence and its own privacy
loss.

Noise is always given as a noise multiplier: the scale of the noise (a standard deviation for
Gaussian noise) divided by the sensitivity C of one unit, that is, the largest norm one unit can add
to the released sum. It says nothing of the neighbouring relation: adjacency is an argument of every
question asked of an event.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from accounting.errors import CannotComputeError, InputError, require
from accounting.registry import Registry

if TYPE_CHECKING:
    from accounting.interval import Interval
    from accounting.mechanisms.loss_grid import DiscretizableLoss

Adjacency = Literal["add-remove", "zero-out", "replace-one"]
ADJACENCIES: tuple[str, ...] = get_args(Adjacency)
Reader = Callable[[dict[str, Any]], "Event"]


@dataclass(frozen=True)
class Event:
    """Something that was released.

    A new kind is one file here and one line in `events/__init__.py`.
    """

    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The event as a JSON object: its kind and its fields."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }
        return {"kind": self.kind, **plain}

    @classmethod
    def from_json(cls, record: dict[str, Any], read: Reader) -> Event:
        """The inverse of `to_json`.

        Args:
            record: what `to_json` made.
            read: makes events of records, for events that hold others.

        Raises:
            KeyError: a field is missing.
        """
        values = {field.name: record[field.name] for field in fields(cls)}
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in values.items()
            }
        )

    def unsupported_reason(self, adjacency: str) -> str | None:
        """Why no finite epsilon exists under this adjacency, or None."""
        return None

    def gaussian_mu(self, adjacency: str) -> float | None:
        """mu, if the release is exactly as revealing as N(0, 1) against N(mu, 1).

        Returns:
            mu >= 0, where 0 reveals nothing and inf everything; None for any other release.
        """
        return None

    def failure_probability_under(self, adjacency: str) -> float:
        """Probability that one release gives everything away; `renyi` then holds given that it does
        not.

        Returns:
            a probability in [0, 1].
        """
        return 0.0

    def lower_bound_event(self, adjacency: str) -> tuple[Event, str]:
        """What bounds from below rest on: an event that is certainly no more revealing than this
        one.

        Returns:
            (event, adjacency): itself, where its dominating pair is reached by some data; bounds
            from below are exact then.
        """
        return self, adjacency

    def renyi(self, order: float, adjacency: str) -> float:
        """Rényi divergence of one release, the larger direction, rounded up.

        Args:
            order: > 1.

        Returns:
            rho >= 0; inf if unknown.
        """
        return math.inf

    def delta(self, epsilon: float, adjacency: str, upper: bool = True) -> float | None:
        """delta of one release at epsilon in closed form.

        Args:
            epsilon: >= 0.
            upper: round up, else down.

        Returns:
            a probability in [0, 1], or None if there is no closed form.
        """
        return None

    def verified_epsilon(self, count: int, delta: float, adjacency: str) -> Interval | None:
        """Epsilon at delta of several releases by a method of the event's own.

        Args:
            count: number of releases, >= 1.
            delta: in [0, 1).

        Returns:
            an interval, or None if there is no such method.
        """
        return None

    def loss_grid(
        self, adjacency: str, interval: float, tail: float
    ) -> tuple[DiscretizableLoss, ...]:
        """The privacy loss of one release on a grid, for each direction of the dominating pair.

        Args:
            interval: width of the grid, in loss, > 0.
            tail: probability that may be cut off at each end, in (0, 1).

        Returns:
            two directions (remove, add), or one if the pair is symmetric.

        Raises:
            CannotComputeError: there is no such distribution, or it is too large.
        """
        raise CannotComputeError(f"events of kind {self.kind!r} have no loss distribution here")


EVENTS: Registry[Event] = Registry("event", "accounting.events", key="kind")


def event_from_json(record: dict[str, Any]) -> Event:
    """Read an event back; a kind that this version does not know becomes `Unsupported` (epsilon =
    inf).

    Args:
        record: what `Event.to_json` made.

    Raises:
        InputError: the record is not an object with a "kind", or a field is missing or out of
            range.
    """
    require(
        isinstance(record, dict) and isinstance(record.get("kind"), str),
        f"event record {str(record)[:80]!r} has no kind, so it cannot be accounted; write it with "
        "to_json()",
    )
    kind = record["kind"]
    if kind not in EVENTS:
        reason = f"this version knows no event of kind {kind!r}; upgrade, or account for it by hand"
        return EVENTS.get("unsupported")(kind, reason)
    try:
        return EVENTS.get(kind).from_json(record, event_from_json)  # type: ignore[attr-defined]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"event of kind {kind!r} is incomplete ({error}); write it with to_json()"
        ) from error


def require_adjacency(adjacency: str) -> None:
    """Refuse a neighbouring relation this package has no theorem for.

    Raises:
        InputError: it is none of `ADJACENCIES`.
    """
    require(
        adjacency in ADJACENCIES,
        f"adjacency {adjacency!r} is unknown, so nothing can be claimed; use one of "
        f"{', '.join(ADJACENCIES)}",
    )


def require_noise_multiplier(value: float) -> None:
    """Refuse what is no noise scale / sensitivity.

    Raises:
        InputError: it is no finite number >= 0.
    """
    require(
        is_real(value) and 0.0 <= value < math.inf,
        f"noise_multiplier={value!r} is not a finite number >= 0; give noise scale / sensitivity",
    )


def require_probability(name: str, value: float, remedy: str) -> None:
    """Refuse what is no probability.

    Args:
        name: of the value, for the message.
        remedy: what the message says to do.

    Raises:
        InputError: it is no number in [0, 1].
    """
    require(
        is_real(value) and 0.0 <= value <= 1.0, f"{name}={value!r} is not a probability; {remedy}"
    )


def require_count(
    value: int, name: str = "count", least: int = 0, remedy: str = "give the number of releases"
) -> None:
    """Refuse what is no count.

    Args:
        name: of the value, for the message.
        least: the smallest count allowed.
        remedy: what the message says to do.

    Raises:
        InputError: it is no integer >= least.
    """
    integral = isinstance(value, Integral) and not isinstance(value, bool)
    require(integral and value >= least, f"{name}={value!r} is not an integer >= {least}; {remedy}")


def is_real(value: object) -> bool:
    """Whether a value is a real number, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)
