"""SPAM's clipping: elements far larger than usual are cut back to the edge of the usual."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dpclip.checks import check_between, check_threshold
from dpclip.errors import InputError
from dpclip.postprocess.blocks import blocks_of
from dpclip.postprocess.clipper import CLIPPERS, ClipReport, GradientClipper, GradientStep
from dpclip.postprocess.norms import accumulation_dtype, local


@CLIPPERS.register
@dataclass(eq=False)
class SpikeAware(GradientClipper):
    """Elements with g^2 > threshold v become sign(g) sqrt(threshold v).

    v is the running mean of g^2 before this step. It begins at 0 and is not corrected for that, as
    in the paper, where it is Adam's: early thresholds are stricter.

    Args:
        threshold: how many times the usual square a spike has; positive.
        skip_steps: steps at the start that only learn v.
        beta2: decay of v, in [0, 1).

    Differs from the published code: an element that has had no gradient yet is no spike; there it
    would be held at 0. `match_published=True` holds it. The optimizer `dpclip.optim.SPAM` has
    momentum reset and re-warm-up, too.

    Reference: Huang et al., "SPAM: Spike-aware Adam with momentum reset for stable LLM training",
    2025.
    """

    threshold: float = 5000.0
    skip_steps: int = 20
    beta2: float = 0.999
    name: ClassVar[str] = "spam"

    def check(self) -> None:
        check_threshold("threshold", self.threshold)
        check_between("beta2", self.beta2, 0.0, 1.0)
        if self.skip_steps < 0:
            raise InputError(f"skip_steps = {self.skip_steps}: at least 0 is needed")

    def reset(self, sizes: list[int]) -> None:
        """Forget every v.

        Args:
            sizes: unused.
        """
        self._usual: dict[int, Tensor] = {}  # v, by parameter

    @torch.no_grad()
    def transform(self, seen: GradientStep) -> ClipReport:
        """Cut spikes in place, and learn v from what is left.

        Args:
            seen: the gradients of the step.

        Returns:
            a report whose `clipped` counts blocks in which something was cut, and whose scales are
            all 1: single elements are cut, not tensors scaled.
        """
        clipped = 0  # blocks in which something was cut
        for gradient, place in zip(seen.gradients, seen.places, strict=True):
            usual = self._usual.get(place)
            if usual is None:
                usual = self._usual[place] = torch.zeros_like(
                    gradient, dtype=accumulation_dtype(gradient)
                )
            for part in zip(blocks_of(gradient), blocks_of(usual), strict=True):
                clipped += self._clip(*part, cut=self._steps > self.skip_steps)
        return ClipReport(
            seen.norm, clipped, scales=torch.ones(len(seen.gradients), dtype=torch.float64)
        )

    def _clip(self, gradient: Tensor, usual: Tensor, *, cut: bool) -> bool:
        """Cut and learn from one block; return whether anything was cut."""
        squares = gradient.to(usual.dtype).square()
        spiked = cut and has_spikes(squares, usual, self.threshold)
        if spiked:
            spiked = cut_spikes_(gradient, usual, self.threshold, never_seen=self.match_published)
            squares = gradient.to(usual.dtype).square()
        usual.lerp_(squares, 1 - self.beta2)
        return spiked

    def state(self) -> dict[str, Any]:
        return {"usual": {self.names[place]: v.clone() for place, v in self._usual.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore `state`.

        Args:
            state: "usual": v by parameter name.

        Raises:
            InputError: it names a parameter that is none of ours.
        """
        places = {name: place for place, name in enumerate(self.names)}
        self.refuse_unknown(state["usual"])
        self._usual = {places[name]: v.clone() for name, v in state["usual"].items()}


def has_spikes(squares: Tensor, usual: Tensor, threshold: float) -> bool:
    """Whether g^2 > threshold v anywhere, elements included that never had a gradient.

    Args:
        squares: g^2, any shape, at least one element.
        usual: v, of the same shape.
        threshold: over v.
    """
    return bool(torch.add(squares, usual, alpha=-threshold).amax() > 0)


def cut_spikes_(gradient: Tensor, usual: Tensor, threshold: float, *, never_seen: bool) -> bool:
    """Cut what exceeds sqrt(threshold v), in place.

    Args:
        gradient: any shape.
        usual: v, of the same shape.
        threshold: over v.
        never_seen: whether elements with v = 0 are cut, too, to 0.

    Returns:
        whether anything was cut.
    """
    limit = (usual * threshold).sqrt()
    if not never_seen:
        local(limit).masked_fill_(local(usual) == 0, float("inf"))
    spikes = gradient.abs() > limit
    if not bool(spikes.any()):
        return False
    gradient.copy_(torch.where(spikes, torch.sign(gradient) * limit, gradient))
    return True
