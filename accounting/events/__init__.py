"""What was released, in units of its own sensitivity: one file a family of events, one registry."""

from accounting.events.balls_in_bins import BallsInBinsGaussian
from accounting.events.base import ADJACENCIES, Adjacency, Event, require_adjacency, require_count
from accounting.events.composed import Composed, NonPrivate, SelfComposed, Unsupported, flatten, obstacle
from accounting.events.fixed_batches import FixedBatchesGaussian
from accounting.events.gaussian import Gaussian, PoissonGaussian
from accounting.events.laplace import Laplace
from accounting.events.mixture import MixtureGaussian
from accounting.events.registry import EVENTS, event_from_json
from accounting.events.stated import ApproximateDP, PureDP
from accounting.events.truncated_poisson import TruncatedPoissonGaussian
from accounting.events.without_replacement import WithoutReplacementGaussian

__all__ = [
    "ADJACENCIES",
    "EVENTS",
    "Adjacency",
    "ApproximateDP",
    "BallsInBinsGaussian",
    "Composed",
    "Event",
    "FixedBatchesGaussian",
    "Gaussian",
    "Laplace",
    "MixtureGaussian",
    "NonPrivate",
    "PoissonGaussian",
    "PureDP",
    "SelfComposed",
    "TruncatedPoissonGaussian",
    "Unsupported",
    "WithoutReplacementGaussian",
    "event_from_json",
    "flatten",
    "obstacle",
    "require_adjacency",
    "require_count",
]
