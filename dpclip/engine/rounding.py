"""What a step reads of its units: norms from above, statistics on a grid, one loss a unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpclip.errors import PrivacyError

_ROUNDING = 2.0**-20  # of factors and of what they multiply, relative to a norm
_TINY = 2.0**-48  # squares that float32 loses, for up to 2^30 coordinates
_SIDE_BITS = 30  # of a side statistic's sensitivity that are kept


def one_loss_a_unit(losses: Tensor | None, norms: Tensor) -> Tensor:
    """Check that each unit has its loss.

    Args:
        losses: shape [B], or None.
        norms: shape [K, B].

    Returns:
        the losses in the norms' dtype, shape [1, B].

    Raises:
        PrivacyError: there are none, or not one a unit.
    """
    if losses is None or losses.shape != norms.shape[1:]:
        raise PrivacyError(
            "the clipping rule releases a statistic of each unit's loss and was not given one loss "
            "a unit: compute the loss with private.backward(losses), or choose a rule or mode that "
            "does not need it (rl:mode=A)"
        )
    return losses.to(norms).unsqueeze(0)


def norms_from_above(squared: Tensor, separable: bool = False) -> tuple[Tensor, Tensor]:
    """Round norms up, and tell which samples count.

    Args:
        squared: squared L2 norms, float64, shape [K, B].
        separable: groups are clipped one by one.

    Returns:
        norms, float64, and which count, bool; each [K, B].

    What is added covers the rounding of factors, of their products with gradients, and squares too
    small for float32; a gradient that is not finite gets norm 1 here and factor 0 in every sum (law
    6). Where groups are clipped one by one, it is the group that is dropped: those before it are in
    the sum when it is met.
    """
    finite = squared.isfinite()
    if not separable:
        finite = finite.all(0).expand_as(squared)
    norms = torch.where(finite, squared, torch.ones_like(squared)).sqrt() * (1 + _ROUNDING) + _TINY
    return norms, finite


def sum_on_grid(statistics: Tensor, counted: Tensor, sensitivity: float) -> Tensor:
    """Add statistics up so that the order does not matter.

    Each unit's is rounded towards zero to a public grid: integers below 2^53 add up exactly in
    float64.

    Args:
        statistics: shape [m, B].
        counted: which units count, bool, [B].
        sensitivity: L2 bound on one unit's column.

    Returns:
        the sums, float64 on the CPU, [m].
    """
    unit = 2.0 ** (math.floor(math.log2(sensitivity)) - _SIDE_BITS)
    values = torch.where(
        counted, statistics.double(), torch.zeros_like(statistics, dtype=torch.float64)
    )
    return (values / unit).trunc().sum(1).mul(unit).cpu()
