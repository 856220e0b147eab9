"""What was released, in units of its own sensitivity: one file a family of events, one registry."""

from accounting.events.base import ADJACENCIES, Adjacency, Event, require_adjacency, require_count
from accounting.events.composed import Composed, NonPrivate, SelfComposed, Unsupported, flatten, obstacle
from accounting.events.gaussian import Gaussian, PoissonGaussian
from accounting.events.registry import EVENTS, event_from_json

__all__ = [
    "ADJACENCIES",
    "EVENTS",
    "Adjacency",
    "Composed",
    "Event",
    "Gaussian",
    "NonPrivate",
    "PoissonGaussian",
    "SelfComposed",
    "Unsupported",
    "event_from_json",
    "flatten",
    "obstacle",
    "require_adjacency",
    "require_count",
]
