"""The per-sample view of one backward pass: norms, and weighted sums. The sensitive side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from dpclip.gradient_sum import GradientSum, wide


class PerSampleView(Protocol):
    """What a gradient backend offers of one physical micro-batch of B units and K groups."""

    def squared_norms(self) -> Tensor:
        """Squared L2 norms, shape [K, B], float32 or wider; not finite where a sample's gradient is not."""
        ...

    def weighted_sum(self, factors: Tensor, into: GradientSum) -> None:
        """Add sum_i factors[k, i] g_i[k] to `into`; a sample whose factors are 0 is not read at all."""
        ...


class Backend(Protocol):
    """Computes per-sample views of a model."""

    def capture(self, units: int, owners: Tensor | None = None) -> AbstractContextManager[PerSampleView]:
        """Watch one forward and backward pass.

        Args:
            units: B, privacy units in the micro-batch.
            owners: for batches with several rows a unit, the unit of each row, shape [rows].
        """
        ...

    def close(self) -> None:
        """Remove every hook from the model."""
        ...


class MaterialisedView:
    """A view backed by per-sample gradients in memory, one tensor [B, *shape] a parameter (None: no gradient)."""

    def __init__(self, groups: Sequence[int], units: int) -> None:
        self.groups = list(groups)
        self.units = units
        self.samples: list[Tensor | None] = [None] * len(groups)

    def squared_norms(self) -> Tensor:
        # Sums of squares: `norm` and `einsum` over long float32 rows read low on CPU, by up to 5 %.
        present = [(g, s) for g, s in zip(self.groups, self.samples, strict=True) if s is not None]
        dtype = torch.float64 if any(s.dtype == torch.float64 for _, s in present) else torch.float32
        device = present[0][1].device if present else torch.device("cpu")
        squares = torch.zeros(max(self.groups) + 1, self.units, dtype=dtype, device=device)
        for group, sample in present:
            flat = sample.reshape(self.units, -1).to(wide(sample.dtype))
            squares[group] += flat.square().sum(1).to(device)
        return squares

    def weighted_sum(self, factors: Tensor, into: GradientSum) -> None:
        for group, sample, total in zip(self.groups, self.samples, into.tensors, strict=True):
            if sample is None:
                continue
            row = factors[group].to(sample.device, total.dtype)
            read = row != 0
            if not bool(read.all()):  # 0 * inf is not 0: rows without weight stay unread
                row, sample = row[read], sample[read]
            total += (row @ sample.reshape(len(row), -1).to(total.dtype)).view_as(total)
