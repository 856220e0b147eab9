"""What a decision brought, from released values alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dpclip.clipping.control.released_loss import RATE, LossAccount
from dpclip.clipping.control.summary import _TINY, Summary


@dataclass(frozen=True)
class LossCourse:
    """What is known of the released losses: which way they go, how far they have fallen, where
    their mean is.
    """

    trend: float = 0.0
    fall: float = 0.0
    now: float = 0.0


@dataclass
class Reward:
    """What a decision brought, between -1 and 1, from released values alone.

    Progress is the fall of the running mean of the released losses, in units of its own usual size
    and never of less than its noise. Signal is what successive steps agree on, over all groups, in
    units of what noise alone would scatter it by, which does not depend on the gradient's scale:
    asinh of that over 5.

    Args:
        kind: "loss", "signal" or "both", their mean; where no loss is released, signal alone.
        rate: of the running mean of progress' usual size.
        effort: what a change of the action costs.
    """

    kind: str = "both"
    rate: float = 0.3
    effort: float = 0.01
    account: LossAccount = field(default_factory=LossAccount)
    state: dict[str, float] = field(default_factory=dict)

    def of(self, steps: Sequence[Summary], change: float) -> float:
        """The reward of the steps since the last decision, in which the action changed by `change`
        on average.
        """
        parts = []
        if self.kind != "loss" or steps[0].loss is None:
            parts.append(_signal(steps))
        if steps[0].loss is not None:
            progress = self._progress(steps)
            parts += [progress] if self.kind != "signal" else []
        return max(-1.0, min(1.0, sum(parts) / len(parts) - self.effort * change))

    @property
    def course(self) -> LossCourse:
        """For the features; in nats, but for the trend, which is the last progress."""
        return LossCourse(self.state.get("progress", 0.0), self.account.fall, self.account.now)

    def _progress(self, steps: Sequence[Summary]) -> float:
        before = self.account.now if self.account.state["seen"] > 1 else None
        self.account.add([s.loss for s in steps if s.loss is not None])
        fall = 0.0 if before is None else before - self.account.now
        floor = steps[0].loss_noise * RATE * math.sqrt(len(steps))
        usual = self.state.get("usual", abs(fall))
        usual += self.rate * (abs(fall) - usual)
        progress = max(-1.0, min(1.0, fall / max(usual, floor, _TINY)))
        self.state = {"usual": usual, "progress": progress}
        return progress

    def public_state(self) -> dict[str, dict[str, float]]:
        """JSON."""
        return {"account": self.account.state, "own": self.state}

    def load_public_state(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Restore `public_state`."""
        self.account.state, self.state = dict(state["account"]), dict(state["own"])


def _signal(steps: Sequence[Summary]) -> float:
    scores = [a / max(b, _TINY) for s in steps for a, b in zip(s.agreement, s.blur, strict=True)]
    return math.asinh(max(0.0, sum(scores) / math.sqrt(len(scores)))) / 5
