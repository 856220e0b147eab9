"""What a controller is shown: numbers made of released values alone, a summary a step and features a decision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dpclip.clipping.control.losses import RATE, LossAccount
from dpclip.clipping.rule import StepRelease
from dpclip.coordinates import some, stride

if TYPE_CHECKING:
    from dpclip.clipping.control.controller import Context

_TINY = 1e-30
KINDS = ("embedding", "vector", "adapter")  # beside matrices


@dataclass(frozen=True)
class Summary:
    """One step, in numbers; K groups.

    Attributes:
        energy: squared norm of the released mean gradient.
        noise: what noise alone contributes to it: coordinates times variance.
        agreement: inner product with the step before, whose noise is independent; its expectation has no noise in it.
        within: released share of units below the rule's own threshold; empty where none is released.
        loss: released mean of the clipped losses, if there is one.
        loss_noise: its noise standard deviation.
        blur: standard deviation of each agreement if there were nothing but noise.
    """

    energy: tuple[float, ...]
    noise: tuple[float, ...]
    agreement: tuple[float, ...]
    within: tuple[float, ...] = ()
    loss: float | None = None
    loss_noise: float = 0.0
    blur: tuple[float, ...] = ()

    def shown(self) -> dict[str, float]:
        """Numbers worth a curve."""
        share = {"share_within": sum(self.within) / len(self.within)} if self.within else {}
        return share if self.loss is None else {**share, "released_loss": self.loss}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Summary:
        """The inverse of `dataclasses.asdict`, after JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, Sequence) else v for k, v in fields.items()}
        return cls(**values)


class Summariser:
    """Turns each step's release into a `Summary`; remembers the last released gradient for the next.

    Args:
        owners: the group of each parameter.
        sizes: elements of each parameter.
        parents: which of the released shares is each group's.
    """

    def __init__(self, owners: Sequence[int], sizes: Sequence[int], parents: Sequence[int]) -> None:
        self._owners, self._sizes, self._parents = list(owners), list(sizes), list(parents)
        self._groups = max(owners) + 1
        self._stride = stride(sizes)
        self._previous: list[Tensor] = []

    def summarise(self, step: StepRelease, loss_offset: float) -> Summary:
        """The step in numbers.

        Args:
            step: what the step released.
            loss_offset: what was subtracted from each loss.
        """
        kept = [some(gradient.detach().reshape(-1), self._stride) for gradient in step.gradient]
        energy, agreement = [0.0] * self._groups, [0.0] * self._groups
        noise, coordinates = [0.0] * self._groups, [0] * self._groups
        squares = _dots(kept, kept)
        products = _dots(kept, self._previous) if self._previous else [0.0] * len(kept)
        for slot, (values, group) in enumerate(zip(kept, self._owners, strict=True)):
            energy[group] += squares[slot]
            noise[group] += values.numel() * step.coordinate_stds[slot] ** 2
            coordinates[group] += values.numel()
            agreement[group] += products[slot]
        self._previous = [values.clone() for values in kept]
        sides, stds = step.sides, step.side_stds
        shares = (sides["within"] / step.divisor + 0.5).tolist() if "within" in sides else []
        within = tuple(shares[parent] for parent in self._parents) if shares else ()
        loss = float(sides["loss"][0]) / step.divisor + loss_offset if "loss" in sides else None
        loss_noise = stds.get("loss", 0.0) / step.divisor
        blur = tuple(n / math.sqrt(max(1, d)) for n, d in zip(noise, coordinates, strict=True))
        return Summary(tuple(energy), tuple(noise), tuple(agreement), within, loss, loss_noise, blur)

    def tensor_state(self) -> dict[str, Tensor]:
        """The last released gradient, as far as it is kept."""
        return {f"previous.{slot}": values for slot, values in enumerate(self._previous)}

    def load_tensor_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore `tensor_state`."""
        self._previous = [state[f"previous.{slot}"] for slot in range(len(state))]


def _dots(left: Sequence[Tensor], right: Sequence[Tensor]) -> list[float]:
    """Inner products, pair by pair; a GPU is waited for once."""
    return torch.stack([torch.dot(a, b) for a, b in zip(left, right, strict=True)]).tolist()


def width(actions: int) -> int:
    """Features of one group, F, for actions of so many columns."""
    return actions + 19


def features(steps: Sequence[Summary], context: Context, losses: LossCourse) -> Tensor:
    """What the agent sees of each group, [K, F], every number between about -2 and 2.

    Of each group, over the steps since the last decision: what the released energy exceeds the noise's by and what
    successive steps agree on, both in units of what noise alone would scatter them by, and the share below the
    threshold; the action in force; the group's size, whether it is an embedding, vectors (norms) or an adapter, and how
    far the last update moved it. The same for all groups: `_common`.
    """
    groups = len(context.sizes)
    noise, blur = torch.tensor([s.noise for s in steps]), torch.tensor([s.blur for s in steps]).clamp(min=_TINY)
    energy, agreement = torch.tensor([s.energy for s in steps]), torch.tensor([s.agreement for s in steps])
    signal = _legible((energy - noise) / (math.sqrt(2) * blur))
    shared = _legible(agreement / blur)
    within = torch.tensor([s.within for s in steps if s.within]).reshape(-1, groups)
    below = (within.mean(0) - 0.5).clamp(-1, 1) if len(within) else torch.zeros(groups)
    own = torch.stack([signal, shared, below], 1)
    everyone = torch.cat([own.mean(0), torch.tensor(_common(context, losses))]).expand(groups, -1)
    return torch.cat([own, context.executed, _traits(context), everyone], 1).clamp(-2, 2).float()


def _traits(context: Context) -> Tensor:
    """Logarithms of the size and of the last move (0 is 0.03), and the kind; [K, 5]."""
    sizes = torch.tensor(context.sizes, dtype=torch.float32)
    moved = torch.tensor(context.moved or [0.03] * len(sizes)).clamp(min=_TINY)
    kinds = [[float(kind == one) for one in KINDS] for kind in context.kinds]
    kind = torch.tensor(kinds or [[0.0] * len(KINDS)] * len(sizes))
    return torch.cat([torch.log(sizes / sizes.sum())[:, None] / 5, kind, torch.log10(moved / 0.03)[:, None]], 1)


def _common(context: Context, losses: LossCourse) -> list[float]:
    """How far the run is and what is left of the budget; which way the released loss goes, how far it has fallen and
    where it is (in threes and fives of nats); decimal logarithms of the run's length, of the steps done (in fours) and
    of the noise's norm over the joint threshold (in threes)."""
    lengths = [math.log10(max(1, steps)) / 4 for steps in (context.steps, context.step)]
    level = math.log10(max(_TINY, context.noise_level)) / 3
    return [context.progress, context.budget_left, losses.trend, losses.fall / 3, losses.now / 5, *lengths, level]


def _legible(scores: Tensor) -> Tensor:
    """Standard scores of each step and group, [steps, K], as one number a group: 0.3 for each of the first sigmas."""
    return torch.asinh(scores.sum(0) / math.sqrt(len(scores))) / 3


@dataclass(frozen=True)
class LossCourse:
    """What is known of the released losses: which way they go, how far they have fallen, where their mean is."""

    trend: float = 0.0
    fall: float = 0.0
    now: float = 0.0


@dataclass
class Reward:
    """What a decision brought, between -1 and 1, from released values alone.

    Progress is the fall of the running mean of the released losses, in units of its own usual size and never of less
    than its noise. Signal is what successive steps agree on, over all groups, in units of what noise alone would
    scatter it by, which does not depend on the gradient's scale: asinh of that over 5.

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
        """The reward of the steps since the last decision, in which the action changed by `change` on average."""
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
