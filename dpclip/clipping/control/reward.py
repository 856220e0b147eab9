"""What a decision brought, from released values alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dpclip.clipping.control.released_loss import RATE, LossAccount
from dpclip.clipping.control.summary import _TINY, Summary


@dataclass(frozen=True)
class LossCourse:
    """What is known of the released losses.

    Attributes:
        trend: the last decision's progress, in [-1, 1]; above 0 where the loss fell.
        fall: how far the mean has fallen since the run began, in the loss's unit.
        now: the running mean of the released losses.
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
        rate: of the running mean of progress' usual size, in (0, 1].
        effort: what a change of the action costs, for each unit of its mean absolute change.
    """

    kind: str = "both"
    rate: float = 0.3
    effort: float = 0.01
    account: LossAccount = field(default_factory=LossAccount)
    state: dict[str, float] = field(default_factory=dict)

    def of(self, steps: Sequence[Summary], change: float) -> float:
        """Reward the steps since the last decision.

        Args:
            steps: their summaries, at least one.
            change: mean absolute change of the action's entries that the decision made, in [0, 2].

        Returns:
            the reward, in [-1, 1].
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
        """The course of the losses for the features, in nats but for the trend."""
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
        """Return the account and the usual progress, as JSON."""
        return {"account": self.account.state, "own": self.state}

    def load_public_state(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Restore `public_state`.

        Args:
            state: what `public_state` returned, after a round trip through JSON.
        """
        self.account.state, self.state = dict(state["account"]), dict(state["own"])


def _signal(steps: Sequence[Summary]) -> float:
    scores = [a / max(b, _TINY) for s in steps for a, b in zip(s.agreement, s.blur, strict=True)]
    return math.asinh(max(0.0, sum(scores) / math.sqrt(len(scores)))) / 5
