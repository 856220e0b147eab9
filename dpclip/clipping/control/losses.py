"""A running account of the released losses: noisy, and the first of them perhaps cut short."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

RATE, FIRST = 0.15, 4


@dataclass
class LossAccount:
    """Where the loss is and where it began.

    The window that losses are clipped to is not in place yet in the first step, so what that released is forgotten as
    soon as there is more.

    Attributes:
        state: sums and weights; JSON.
    """

    state: dict[str, float] = field(default_factory=lambda: {"seen": 0, "sum": 0, "weight": 0, "first": 0, "firsts": 0})

    def add(self, losses: Iterable[float]) -> None:
        """One released loss a step, in order."""
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
        """How much lower it is than the mean of the second to the fifth."""
        return self.state["first"] / self.state["firsts"] - self.now if self.state["firsts"] else 0.0
