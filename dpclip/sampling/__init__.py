"""Drawing logical batches, and what all steps cost together.

A new scheme is one file and one line here.
"""

from __future__ import annotations

from dpclip.sampling.filtered import Filtered as Filtered
from dpclip.sampling.halves import Halves as Halves
from dpclip.sampling.halves import HalvesSampler as HalvesSampler
from dpclip.sampling.passes import Passes as Passes
from dpclip.sampling.passes import PassesSampler as PassesSampler
from dpclip.sampling.poisson import Poisson as Poisson
from dpclip.sampling.poisson import PoissonSampler as PoissonSampler
from dpclip.sampling.sampler import Sampler as Sampler
from dpclip.sampling.schedule import Schedule as Schedule
from dpclip.sampling.scheme import SCHEMES as SCHEMES
from dpclip.sampling.scheme import Charge as Charge
from dpclip.sampling.scheme import Charges as Charges
from dpclip.sampling.scheme import Scheme as Scheme
from dpclip.sampling.scheme import added_up as added_up
