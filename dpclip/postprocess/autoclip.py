"""AutoClip: the threshold is a percentile of all norms so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dpclip.checks import check_between, one_of
from dpclip.errors import InputError
from dpclip.postprocess.by_norm import SCOPES, NormClipper
from dpclip.postprocess.clipper import CLIPPERS

_FIRST = 64  # norms there is room for at the start


@CLIPPERS.register
@dataclass(eq=False)
class AutoClip(NormClipper):
    """g min(1, T/||g||), T the p-th percentile of the norms before clipping.

    Args:
        percentile: p from 0 (the smallest norm so far) to 100 (never clips).
        window: norms that are kept; None keeps all, as the paper does.
        include_current: whether T is taken with the present norm among them. Without it the first
            step is not clipped.
        scope: "global", or "tensor" for a history and a threshold of each parameter.

    Differs from the published code: norms of 0 and norms that are not finite are not kept, since a
    percentile of 0 stops training and one NaN stays for ever. `match_published=True` keeps them.

    Reference: Seetharaman et al., "AutoClip: Adaptive gradient clipping for source separation
    networks", 2020.
    """

    percentile: float = 10.0
    window: int | None = None
    include_current: bool = True
    scope: str = "global"  # type: ignore[misc]
    name: ClassVar[str] = "autoclip"

    def check(self) -> None:
        check_between("percentile", self.percentile, 0.0, 100.0, open_high=False)
        one_of("scope", self.scope, SCOPES)
        if self.window is not None and self.window < 1:
            raise InputError(f"window = {self.window}: at least one norm has to be kept")

    def reset(self, sizes: list[int]) -> None:
        """Forget all norms.

        Args:
            sizes: unused.
        """
        self._kept = np.full((self.rows, self.window or _FIRST), np.inf, dtype=np.float32)
        self._counts = np.zeros(self.rows, dtype=np.int64)

    def factors(self, norms: Tensor, places: list[int]) -> Tensor:
        """Keep the norms, and clip to the percentile.

        Args:
            norms: measured, float64, [n] (global: [1]).
            places: the histories they belong to, [n].

        Returns:
            float64, [n], in [0, 1].
        """
        rows = np.asarray(places)
        if self.include_current:
            self._keep(rows, norms.numpy())
            threshold = self._percentile(rows)
        else:
            threshold = self._percentile(rows)
            self._keep(rows, norms.numpy())
        return self.clip_factors(torch.from_numpy(threshold), norms)

    def _keep(self, rows: np.ndarray, norms: np.ndarray) -> None:
        if not self.match_published:
            good = np.isfinite(norms) & (norms > 0)
            rows, norms = rows[good], norms[good]
        if self.window is None and len(rows) and self._counts.max() >= self._kept.shape[1]:
            self._kept = np.pad(
                self._kept, ((0, 0), (0, self._kept.shape[1])), constant_values=np.inf
            )
        self._kept[rows, self._counts[rows] % self._kept.shape[1]] = norms
        self._counts[rows] += 1

    def _percentile(self, rows: np.ndarray) -> np.ndarray:
        """Interpolate between order statistics, [n]; infinite where nothing is kept.

        Empty places hold infinity, so come last.
        """
        filled = np.minimum(self._counts[rows], self._kept.shape[1])
        if not filled.any():
            return np.full(len(rows), np.inf)
        held = self._kept[rows, : filled.max()]
        rank = np.maximum(filled - 1, 0) * (self.percentile / 100)
        low = np.floor(rank).astype(np.int64)
        high = np.minimum(low + 1, np.maximum(filled - 1, 0))
        ordered = np.partition(held, np.unique(np.concatenate([low, high])), axis=1)
        below, above = (
            np.take_along_axis(ordered, k[:, None], 1)[:, 0].astype(np.float64) for k in (low, high)
        )
        if self.match_published and np.isnan(held).any():
            return np.where(np.isnan(held).any(axis=1), np.nan, below)
        with np.errstate(invalid="ignore"):
            between = below + (rank - low) * (above - below)
        return np.where(below == above, below, between)

    def clip_factors(self, threshold: Tensor, norms: Tensor) -> Tensor:
        """Compute min(1, T/x); NaN where a kept NaN makes T one (`match_published` only).

        Args:
            threshold: T, float64, [n].
            norms: x, float64, [n].

        Returns:
            float64, [n].
        """
        if self.match_published and bool(threshold.isnan().any()):
            return (threshold / (norms + 1e-6)).clamp(max=1.0)
        return super().clip_factors(threshold, norms)

    def state(self) -> dict[str, Any]:
        names = self.names if self.scope == "tensor" else ["global"]
        filled = np.minimum(self._counts, self._kept.shape[1])
        rows = [
            torch.from_numpy(row[:count].copy())
            for row, count in zip(self._kept, filled, strict=True)
        ]
        counts = {name: int(count) for name, count in zip(names, self._counts, strict=True)}
        return {"history": dict(zip(names, rows, strict=True)), "counts": counts}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`.

        Args:
            state: the kept norms and how many there have been, by parameter name or "global".

        Raises:
            InputError: a name that is not here, or more norms than `window`.
        """
        names = self.names if self.scope == "tensor" else ["global"]
        history = {name: values.numpy() for name, values in state["history"].items()}
        if unknown := sorted(set(history) - set(names)):
            raise InputError(
                f"autoclip: the state is of {unknown[0]!r}, which is not here: same model and "
                "scope needed"
            )
        longest = max((len(values) for values in history.values()), default=0)
        if self.window is not None and longest > self.window:
            raise InputError(
                f"autoclip: the state holds {longest} norms and window = {self.window}: load it "
                "with its own"
            )
        width = self.window or _FIRST * 2 ** max(0, math.ceil(math.log2(max(1, longest) / _FIRST)))
        self._kept = np.full((self.rows, width), np.inf, dtype=np.float32)
        for index, name in enumerate(names):
            values = history.get(name, np.zeros(0, np.float32))
            self._kept[index, : len(values)] = values
            self._counts[index] = state["counts"].get(name, 0)
