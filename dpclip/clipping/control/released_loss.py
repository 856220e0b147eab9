"""The released losses: what they are clipped to, and a running account of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dpclip.released import SideQuery

RATE, FIRST = 0.15, 4
FIRST_WIDTHS = (2.5, 2.5)  # of the window in the first steps
_CENTRE_RATE = 0.3


@dataclass
class LossWindow:
    """Clip losses to an interval about a running mean of the released ones.

    It is wide until it is known where to be. Centring keeps the number of units in a batch out of
    what is released.

    Attributes:
        least: half its width later on, in the loss's own unit.
        seen: losses released so far.
        centre: its middle; at first half its width, so that it begins at 0.
    """

    least: float
    seen: int = 0
    centre: float = field(init=False)

    def __post_init__(self) -> None:
        self.centre = self.width

    @property
    def width(self) -> float:
        """Half of the interval's width, and what one unit can move the sum by."""
        return max([self.least, *FIRST_WIDTHS[self.seen : self.seen + 1]])

    def query(self, share: float) -> SideQuery:
        """Ask for the sum of the clipped losses, less the middle.

        Args:
            share: the loss's part of the step's budget 1/sigma^2, in (0, 1).

        Returns:
            the query "loss": losses [1, B] -> centred losses [1, B] in [-width, width]; one that is
            not finite counts as the middle, 0.
        """
        width, centre = self.width, self.centre

        def centred(losses: Tensor) -> Tensor:
            return torch.where(
                losses.isfinite(), (losses - centre).clamp(-width, width), torch.zeros_like(losses)
            )

        return SideQuery("loss", width, None, centred, share=share, reads="losses")

    def observe(self, loss: float) -> None:
        """Move the middle towards a released loss.

        Args:
            loss: released mean of the clipped losses, in the loss's unit; below 0 counts as 0.
        """
        self.seen += 1
        self.centre += max(_CENTRE_RATE, 1 / self.seen) * (max(0.0, loss) - self.centre)


@dataclass
class LossAccount:
    """Where the loss is and where it began; single releases are noisy.

    The window that losses are clipped to is not in place yet in the first step, so what that
    released is forgotten as soon as there is more.

    Attributes:
        state: sums and weights; JSON.
    """

    state: dict[str, float] = field(
        default_factory=lambda: {"seen": 0, "sum": 0, "weight": 0, "first": 0, "firsts": 0}
    )

    def add(self, losses: Iterable[float]) -> None:
        """Take in released losses.

        Args:
            losses: one released mean a step, in order.
        """
        for loss in losses:
            now = self.state
            if now["seen"] == 1:
                now = {**now, "sum": 0, "weight": 0, "first": 0, "firsts": 0}
            early = now["firsts"] < FIRST
            self.state = {
                "seen": now["seen"] + 1,
                "sum": (1 - RATE) * now["sum"] + RATE * loss,
                "weight": (1 - RATE) * now["weight"] + RATE,
                "first": now["first"] + loss * early,
                "firsts": now["firsts"] + early,
            }

    @property
    def now(self) -> float:
        """A running mean, about the last six steps; 0 before there was any."""
        return self.state["sum"] / self.state["weight"] if self.state["weight"] else 0.0

    @property
    def fall(self) -> float:
        """How much lower `now` is than the mean of the second to the fifth release."""
        return (
            self.state["first"] / self.state["firsts"] - self.now if self.state["firsts"] else 0.0
        )
