"""Thresholds chosen from a noisy histogram of gradient norms."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_threshold
from dpclip.clipping.rule import RULES, ClippingRule
from dpclip.errors import InputError
from dpclip.released import Released, SideQuery, StepRelease


@dataclass
class Histogram(ClippingRule):
    """factor_i = min(1, C_t / ||g_i||), C_{t+1} read off a noisy histogram of the norms.

    Every `every` steps each sample adds one to the bin of its norm: a side statistic of sensitivity
    1, noised in the same release as the gradient. Bins that are not above `floor` noise standard
    deviations count as empty. Bins are spaced evenly in log ||g||; the first reaches down to 0 and
    the last has no upper end.

    Args:
        max_grad_norm: C_0.
        lowest: ends of the binned range; C stays within it.
        highest: ends of the binned range; C stays within it.
        bins: number of bins, at least 2.
        budget_share: the histogram's part of 1/sigma^2 in the steps that take one, in (0, 1).
        every: steps from one histogram to the next, at least 1.
        floor: in noise standard deviations; 0 empties negative bins only.

    Guarantee: one sample moves the sum by at most C_t, and the histogram by 1.

    Reference: Wei et al., "DC-SGD: Differentially Private SGD with Dynamic Clipping through
    Gradient Norm Distribution Estimation", 2025. Range, bins and budget share are ours: the paper's
    were not at hand.
    """

    max_grad_norm: float = 1.0
    lowest: float = 1e-3
    highest: float = 1e3
    bins: int = 30
    budget_share: float = 0.05
    every: int = 1
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_threshold("max_grad_norm", self.max_grad_norm)
        check_threshold("lowest", self.lowest)
        check_threshold("highest", self.highest)
        if self.lowest >= self.highest:
            raise InputError(
                f"lowest = {self.lowest} is not below highest = {self.highest}: give a range of "
                "norms"
            )
        if self.bins < 2 or self.every < 1:
            raise InputError(
                f"bins = {self.bins}, every = {self.every}: at least two bins, and one step "
                "between them"
            )
        if not 0 <= self.floor < math.inf:
            raise InputError(f"floor = {self.floor}: a number of standard deviations, 0 or more")
        if not 0 < self.budget_share < 1:
            raise InputError(
                f"budget_share = {self.budget_share}: a part of the step's budget, between 0 and 1"
            )
        self._threshold, self._steps, self._size = self.max_grad_norm, 0, 1

    def partition(self, names: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """Put all parameters in one group and keep their number of elements d.

        Args:
            names: of the trainable parameters.
            sizes: their numbers of elements.
        """
        self._size = sum(sizes)
        return super().partition(names, sizes)

    def bounds(self) -> list[float]:
        return [self._threshold]

    def clip_factors(self, norms: Tensor) -> dict[str, Tensor]:
        """Scale each gradient to norm at most C_t.

        Args:
            norms: L2 norms of whole per-sample gradients, [1, B].

        Returns:
            {"release": factors [1, B], in [0, 1]}.
        """
        return {"release": (self._threshold / norms).clamp(max=1.0)}

    @property
    def edges(self) -> list[float]:
        """Upper ends of all bins but the last, shape [bins - 1]."""
        step = math.log(self.highest / self.lowest) / (self.bins - 2 or 1)
        return [self.lowest * math.exp(step * index) for index in range(self.bins - 1)]

    @property
    def centres(self) -> list[float]:
        """What stands for the norms in each bin, [bins].

        The bin's geometric middle; for the first and the last its one end.
        """
        edges = self.edges
        return [edges[0], *(math.sqrt(a * b) for a, b in itertools.pairwise(edges)), edges[-1]]

    def side_queries(self) -> Sequence[SideQuery]:
        if self._steps % self.every:
            return ()
        edges = self.edges

        def binned(norms: Tensor) -> Tensor:
            ends = torch.tensor(edges, dtype=norms.dtype, device=norms.device)
            which = torch.bucketize(norms[0].contiguous(), ends)
            return torch.nn.functional.one_hot(which, len(edges) + 1).mT.to(norms.dtype)

        return [SideQuery("histogram", 1.0, None, binned, self.bins, share=self.budget_share)]

    def observe(self, released: Released[StepRelease]) -> None:
        """Choose the next threshold where a histogram was released.

        Args:
            released: the step; `sides["histogram"]` holds noisy counts [bins], on the sum scale.
        """
        counts = released.value.sides.get("histogram")
        self._steps += 1
        if counts is None:
            return
        floor = self.floor * released.value.side_stds["histogram"]
        kept = [max(0.0, count) if count > floor else 0.0 for count in counts.tolist()]
        if sum(kept) > 0:
            chosen = self.choose(kept, released.value)
            self._threshold = min(self.highest, max(self.lowest, chosen))

    @abstractmethod
    def choose(self, counts: list[float], step: StepRelease) -> float:
        """Choose the next threshold; the caller keeps it within `lowest` and `highest`.

        Args:
            counts: noisy counts, [bins], none negative and not all 0.
            step: the release that they come from.

        Returns:
            C_{t+1}, a norm.
        """

    def metrics(self) -> dict[str, float]:
        return {"threshold": self._threshold}

    def public_state(self) -> dict[str, Any]:
        return {"threshold": self._threshold, "steps": self._steps}

    def load_public_state(self, state: Mapping[str, Any]) -> None:
        self._threshold, self._steps = float(state["threshold"]), int(state["steps"])

    def describe(self) -> dict[str, Any]:
        fields = ("max_grad_norm", "lowest", "highest", "bins", "budget_share", "every", "floor")
        return {
            "rule": self.name,
            "threshold": self._threshold,
            **{name: getattr(self, name) for name in fields},
        }


@RULES.register
@dataclass
class HistogramQuantile(Histogram):
    """DC-SGD-P: C is a quantile of the noisy histogram.

    Args:
        quantile: share of the samples at or below C, in (0, 1).
    """

    quantile: float = 0.5
    name: ClassVar[str] = "dc-sgd-p"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.quantile < 1:
            raise InputError(
                f"quantile = {self.quantile}: a number strictly between 0 and 1 is needed; 0.5 is "
                "the median"
            )

    def choose(self, counts: list[float], step: StepRelease) -> float:
        """Interpolate the quantile in log within the bin that holds it.

        Args:
            counts: noisy counts, [bins], none negative and not all 0.
            step: unused.

        Returns:
            C_{t+1}, a norm.
        """
        wanted, seen = self.quantile * sum(counts), 0.0
        edges = [*self.edges, self.highest]
        for index, (count, edge) in enumerate(zip(counts, edges, strict=True)):
            if seen + count >= wanted and count > 0:
                below = edges[index - 1] if index else self.lowest
                return float(below * (edge / below) ** ((wanted - seen) / count))
            seen += count
        return self.highest

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "quantile": self.quantile}


@RULES.register
@dataclass
class HistogramError(Histogram):
    """DC-SGD-E: C minimises z^2 C^2 d / B^2 + mean_i max(||g_i|| - C, 0)^2.

    That is noise plus clipping error. z is the gradient's own noise multiplier, d its size and B
    the expected batch; the second term is taken on the noisy histogram's bin centres and its own
    total, never on the norms themselves. Bins within four standard deviations of nothing count as
    empty (`floor`, ours): the noise of an empty bin at a large norm would outweigh every sample.
    """

    floor: float = 4.0
    name: ClassVar[str] = "dc-sgd-e"

    def choose(self, counts: list[float], step: StepRelease) -> float:
        """Minimise the error on a grid of 401 thresholds from `lowest` to `highest`, even in log.

        Args:
            counts: noisy counts, [bins], none negative and not all 0.
            step: the release, for the noise of the gradient's sum and the divisor.

        Returns:
            C_{t+1}, a norm.
        """
        noise = (step.stds[0] / self._threshold / step.divisor) ** 2 * self._size
        whole, centres = sum(counts), self.centres

        def error(threshold: float) -> float:
            clipped = (
                sum(n * max(c - threshold, 0.0) ** 2 for n, c in zip(counts, centres, strict=True))
                / whole
            )
            return noise * threshold**2 + clipped

        grid = [self.lowest * (self.highest / self.lowest) ** (index / 400) for index in range(401)]
        return min(grid, key=error)
