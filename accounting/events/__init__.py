"""What was released, in units of its own sensitivity: one file a family of events, one line each
here.
"""

from accounting.events.approximate_dp import ApproximateDP as ApproximateDP
from accounting.events.approximate_dp import PureDP as PureDP
from accounting.events.balls_in_bins import BallsInBinsGaussian as BallsInBinsGaussian
from accounting.events.base import ADJACENCIES as ADJACENCIES
from accounting.events.base import EVENTS as EVENTS
from accounting.events.base import Adjacency as Adjacency
from accounting.events.base import Event as Event
from accounting.events.base import event_from_json as event_from_json
from accounting.events.base import require_adjacency as require_adjacency
from accounting.events.base import require_count as require_count
from accounting.events.composed import Composed as Composed
from accounting.events.composed import NonPrivate as NonPrivate
from accounting.events.composed import SelfComposed as SelfComposed
from accounting.events.composed import Unsupported as Unsupported
from accounting.events.composed import flatten as flatten
from accounting.events.composed import unsupported_reason as unsupported_reason
from accounting.events.fixed_batches import FixedBatchesGaussian as FixedBatchesGaussian
from accounting.events.gaussian import Gaussian as Gaussian
from accounting.events.gaussian import PoissonGaussian as PoissonGaussian
from accounting.events.laplace import Laplace as Laplace
from accounting.events.mixture_gaussian import MixtureGaussian as MixtureGaussian
from accounting.events.truncated_poisson import TruncatedPoissonGaussian as TruncatedPoissonGaussian
from accounting.events.without_replacement import (
    WithoutReplacementGaussian as WithoutReplacementGaussian,
)
