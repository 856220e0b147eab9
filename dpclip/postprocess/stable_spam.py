"""Stable-SPAM's transforms: large elements scaled down, then each tensor to norm about 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dpclip.checks import check_between
from dpclip.errors import InputError
from dpclip.postprocess.blocks import blocks_of
from dpclip.postprocess.clipper import CLIPPERS, ClipReport, GradientClipper, GradientStep
from dpclip.postprocess.norms import largest, local, scale_, squared_norms

_KEPT = ("largest", "mean", "square")


@CLIPPERS.register
@dataclass(eq=False)
class StableSPAM(GradientClipper):
    """Scales down each tensor's large elements, then the tensor to a steady norm.

    Elements above a running mean of the tensor's largest element are scaled down; then it gets the
    norm (running mean norm)/(running root mean square norm), at most about 1.

    With Adam afterwards the scale does not matter, only that it is steady; with SGD the learning
    rate becomes each tensor's step length. The optimizer `dpclip.optim.StableSPAM` has Adam and
    momentum resets, too.

    Args:
        gamma1: decays of the norm and of its square, in [0, 1).
        gamma2: decays of the norm and of its square, in [0, 1).
        gamma3: decay of the largest element, in [0, 1).
        eps: in the denominator of the norm.
        total_steps: with it gamma1 falls along half a cosine from 1 to `eta_min` times its value,
            and stays there.
        eta_min: see there; in [0, 1).

    The paper's settings for bfloat16 are gamma1=0.85, gamma2=0.99999. Differs from the published
    code: a tensor whose gradient is 0 is left out; beyond `total_steps` the cosine does not rise
    again. `match_published=True` has both.

    Reference: Huang et al., "Stable-SPAM: How to train in 4-bit more stably than 16-bit Adam",
    2025.
    """

    gamma1: float = 0.7
    gamma2: float = 0.9
    gamma3: float = 0.999
    eps: float = 1e-8
    total_steps: int | None = None
    eta_min: float = 0.5
    name: ClassVar[str] = "stable-spam"

    def check(self) -> None:
        for setting in ("gamma1", "gamma2", "gamma3", "eta_min"):
            check_between(setting, getattr(self, setting), 0.0, 1.0)
        if self.total_steps is not None and self.total_steps < 1:
            raise InputError(f"total_steps = {self.total_steps}: at least 1 is needed")

    def reset(self, sizes: list[int]) -> None:
        """Forget every mean.

        Args:
            sizes: elements of each parameter; only their number counts.
        """
        rows = len(sizes)
        self._kept = {part: torch.zeros(rows, dtype=torch.float64) for part in _KEPT}
        # steps that each tensor's means have seen
        self._ages = torch.zeros(rows, dtype=torch.float64)

    def measure(self, gradients: list[Tensor]) -> Tensor:
        """Measure norms and largest elements of blocks, in one pass over memory.

        Args:
            gradients: n tensors.

        Returns:
            squared norms, [n].
        """
        self._blocks = [blocks_of(gradient, 2**20) for gradient in gradients]
        flat = [block for blocks in self._blocks for block in blocks]
        counts = [len(blocks) for blocks in self._blocks]
        self._squares, self._largest = (
            squared_norms(flat).split(counts),
            largest(flat).split(counts),
        )
        return (
            torch.stack([squares.sum() for squares in self._squares])
            if gradients
            else torch.zeros(0)
        )

    @torch.no_grad()
    def transform(self, seen: GradientStep) -> ClipReport:
        """Cut the large elements, then scale each tensor to its goal, in place.

        Args:
            seen: the gradients that `measure` has just read.

        Returns:
            a report whose scales are of the second transform alone, [n].
        """
        picked = [i for i, s in enumerate(seen.squares.tolist()) if s > 0 or self.match_published]
        if not picked:
            return ClipReport(0.0)
        places = torch.tensor([seen.places[i] for i in picked])
        self._ages[places] += 1
        norms = self._cut_large(picked, places)
        goal = self._usual_norms(places, norms)
        scales = torch.ones(len(seen.gradients), dtype=torch.float64)
        scales[picked] = torch.where(norms > 0, goal / norms, torch.ones_like(norms))
        scale_(seen.gradients, scales.tolist())
        return ClipReport.of(seen, scales)

    def _cut_large(self, picked: list[int], places: Tensor) -> Tensor:
        """Scale down elements above the usual largest one, and return the norms afterwards, [n]."""
        peaks = torch.stack([self._largest[i].max() for i in picked])
        usual = self._running("largest", places, self.gamma3, peaks)
        for row in (peaks > usual).nonzero().flatten().tolist():
            index, limit = picked[row], float(usual[row])
            for block in (self._largest[index] > limit).nonzero().flatten().tolist():
                values = self._blocks[index][block]
                mine = local(values)
                mine.add_(functional.hardshrink(mine, limit), alpha=limit / float(peaks[row]) - 1)
                self._squares[index][block] = squared_norms([values])[0]
        return torch.stack([self._squares[i].sum() for i in picked]).sqrt()

    def _usual_norms(self, places: Tensor, norms: Tensor) -> Tensor:
        decay = self.gamma1 * self.cosine(self._steps)
        mean = self._running("mean", places, decay, norms)
        square = self._running("square", places, self.gamma2, norms.square())
        return mean / (square.sqrt() + self.eps)

    def _running(self, part: str, places: Tensor, decay: float, now: Tensor) -> Tensor:
        """Learn, and return the running mean, corrected for its start at 0, [n]."""
        kept = self._kept[part]
        kept[places] = decay * kept[places] + (1 - decay) * now
        return kept[places] / (1 - decay ** self._ages[places])

    def cosine(self, step: int) -> float:
        """Return what gamma1 (in the optimizer beta1, too) is multiplied by at a step.

        Args:
            step: counted from 1.

        Returns:
            from about 1 down to `eta_min`; 1 without `total_steps`.
        """
        if self.total_steps is None:
            return 1.0
        done = step / (self.total_steps + 1)
        if not self.match_published:
            done = min(1.0, done)
        return self.eta_min + (1 - self.eta_min) * (1 + math.cos(math.pi * done)) / 2

    def rows(self) -> Tensor:
        """Return what is known of each parameter, float64, [n, 4].

        Largest element, norm, squared norm (not corrected) and age.
        """
        return torch.stack([*(self._kept[part] for part in _KEPT), self._ages], 1)

    def set_rows(self, rows: Tensor, steps: int) -> None:
        """Go on from `rows`.

        Args:
            rows: as `rows` returned them, [n, 4].
            steps: how many steps have been taken.
        """
        *kept, self._ages = rows.double().unbind(1)
        self._kept, self._steps = dict(zip(_KEPT, kept, strict=True)), steps

    def state(self) -> dict[str, Any]:
        return {
            **{part: self.by_name(values) for part, values in self._kept.items()},
            "ages": self.by_name(self._ages),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`.

        Args:
            state: the three means and the ages, each by parameter name.

        Raises:
            InputError: it names a parameter that is none of ours.
        """
        self._kept = {part: self.from_names(state[part], 0.0, self._kept[part]) for part in _KEPT}
        self._ages = self.from_names(state["ages"], 0.0, self._ages)
