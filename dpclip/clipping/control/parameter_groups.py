"""Which parameters are clipped together, and which a controller sees and acts on together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dpclip.clipping.per_group import Grouping, block_of, is_adapter, layer_of, tensor_of
from dpclip.clipping.quantile import single_group
from dpclip.clipping.rule import ParameterKind

# finest first
GROUPINGS: dict[str, Grouping] = {
    "tensor": tensor_of,
    "layer": layer_of,
    "block": block_of,
    "model": single_group,
}


def resolve_grouping(groups: str, names: Sequence[str] = ()) -> str:
    """Resolve "auto": layers for adapters, or else the model (see experiments/rl_control).

    Args:
        groups: a key of `GROUPINGS`, or "auto".
        names: of the trainable parameters; "auto" is "layer" where more than half are adapters.

    Returns:
        a key of `GROUPINGS`.
    """
    if groups != "auto":
        return groups
    return "layer" if 2 * sum(map(is_adapter, names)) > len(names) else "model"


@dataclass(frozen=True)
class Layout:
    """Two partitions of the parameters, the second at least as fine as the first.

    Attributes:
        owners: the clipping group of each parameter.
        seen: the controller's group of each parameter.
        sizes: elements of each parameter.
        kinds: of each parameter, or empty.
    """

    owners: tuple[int, ...]
    seen: tuple[int, ...]
    sizes: tuple[int, ...]
    kinds: tuple[ParameterKind, ...] = ()

    @cached_property
    def parents(self) -> list[int]:
        """The clipping group that each of the controller's groups lies in."""
        return [self.owners[self.seen.index(group)] for group in range(max(self.seen) + 1)]

    def seen_sizes(self) -> tuple[int, ...]:
        """Count the elements of each of the controller's groups."""
        totals = [0] * (max(self.seen) + 1)
        for group, size in zip(self.seen, self.sizes, strict=True):
            totals[group] += size
        return tuple(totals)

    def seen_kinds(self) -> tuple[ParameterKind, ...]:
        """Return the kind of the largest parameter in each of the controller's groups."""
        by_size = sorted(
            zip(self.sizes, self.seen, self.kinds, strict=False), key=lambda one: one[0]
        )
        largest = {group: kind for _, group, kind in by_size}
        return tuple(largest[group] for group in sorted(largest))

    def means(self, column: Tensor) -> Tensor:
        """Average over the controller's groups within each clipping group.

        Args:
            column: one number for each of the controller's groups.

        Returns:
            one mean for each clipping group, float64.
        """
        parents = torch.tensor(self.parents)
        groups = max(self.owners) + 1
        sums = torch.zeros(groups, dtype=torch.float64).index_add_(0, parents, column.double())
        return sums / torch.bincount(parents, minlength=groups)

    def moved(self, moves: Sequence[float]) -> tuple[float, ...]:
        """Find the furthest move in each of the controller's groups.

        Args:
            moves: one length for each parameter, at least 0.

        Returns:
            one length for each of the controller's groups.
        """
        furthest = [0.0] * (max(self.seen) + 1)
        for group, move in zip(self.seen, moves, strict=True):
            furthest[group] = max(furthest[group], move)
        return tuple(furthest)

    def norm(self, stds: Sequence[float]) -> float:
        """Compute the expected norm of noise, as the root of its mean square.

        Args:
            stds: standard deviation in each coordinate, one for each parameter.

        Returns:
            sqrt(sum_j size_j std_j^2), on the scale of `stds`.
        """
        return math.sqrt(
            math.fsum(size * std**2 for size, std in zip(self.sizes, stds, strict=True))
        )
