"""What an agent sees of each group: numbers between about -2 and 2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dpclip.clipping.control.context import Context
from dpclip.clipping.control.reward import LossCourse
from dpclip.clipping.control.summary import _TINY, Summary

KINDS = ("embedding", "vector", "adapter")  # beside matrices


def width(actions: int) -> int:
    """Count the features of one group, F.

    Args:
        actions: A, columns of an action.
    """
    return actions + 19


def features(steps: Sequence[Summary], context: Context, losses: LossCourse) -> Tensor:
    """Describe each group to the agent, [K, F], every number in [-2, 2].

    Of each group, over the steps since the last decision: what the released energy exceeds the
    noise's by and what successive steps agree on, both in units of what noise alone would scatter
    them by, and the share below the threshold; the action in force; the group's size, whether it is
    an embedding, vectors (norms) or an adapter, and how far the last update moved it. The same for
    all groups: `_common`.

    Args:
        steps: the steps since the last decision, at least one.
        context: what is public anyway.
        losses: where the released losses are and which way they go.

    Returns:
        float32, [K, F].
    """
    groups = len(context.sizes)
    noise, blur = (
        torch.tensor([s.noise for s in steps]),
        torch.tensor([s.blur for s in steps]).clamp(min=_TINY),
    )
    energy, agreement = (
        torch.tensor([s.energy for s in steps]),
        torch.tensor([s.agreement for s in steps]),
    )
    signal = _legible((energy - noise) / (math.sqrt(2) * blur))
    shared = _legible(agreement / blur)
    within = torch.tensor([s.within for s in steps if s.within]).reshape(-1, groups)
    below = (within.mean(0) - 0.5).clamp(-1, 1) if len(within) else torch.zeros(groups)
    own = torch.stack([signal, shared, below], 1)
    everyone = torch.cat([own.mean(0), torch.tensor(_common(context, losses))]).expand(groups, -1)
    return torch.cat([own, context.executed, _traits(context), everyone], 1).clamp(-2, 2).float()


def _traits(context: Context) -> Tensor:
    """Describe the size, the kind and the last move of each group, [K, 5].

    Size and move as logarithms; a group that has not moved yet counts as moved by 0.03, which is 0.
    """
    sizes = torch.tensor(context.sizes, dtype=torch.float32)
    moved = torch.tensor(context.moved or [0.03] * len(sizes)).clamp(min=_TINY)
    kinds = [[float(kind == one) for one in KINDS] for kind in context.kinds]
    kind = torch.tensor(kinds or [[0.0] * len(KINDS)] * len(sizes))
    return torch.cat(
        [torch.log(sizes / sizes.sum())[:, None] / 5, kind, torch.log10(moved / 0.03)[:, None]], 1
    )


def _common(context: Context, losses: LossCourse) -> list[float]:
    """Describe the run: the same numbers for all groups.

    How far the run is and what is left of the budget; which way the released loss goes, how far it
    has fallen and where it is (in threes and fives of nats); decimal logarithms of the run's
    length, of the steps done (in fours) and of the noise's norm over the joint threshold (in
    threes).
    """
    lengths = [math.log10(max(1, steps)) / 4 for steps in (context.steps, context.step)]
    level = math.log10(max(_TINY, context.noise_level)) / 3
    return [
        context.progress,
        context.budget_left,
        losses.trend,
        losses.fall / 3,
        losses.now / 5,
        *lengths,
        level,
    ]


def _legible(scores: Tensor) -> Tensor:
    """Add up standard scores of each step and group, [steps, K], to one number a group, [K].

    0.3 for each of the first sigmas.
    """
    return torch.asinh(scores.sum(0) / math.sqrt(len(scores))) / 3
