"""What is tried in teaching: courses of the learning rates through a whole run, by kind of
layer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpclip.clipping.control import Context, SacController, Summary
from dpclip.clipping.control.context import RATE
from dpclip.released import Released

PARTS = ("alike", "alike early", "alike late", "embeddings", "embeddings early", "vectors")
CENTRE = torch.tensor([0.0, -0.2, 0.0, 0.2, 0.0, 0.0])
SPREAD = torch.tensor([0.4, 0.4, 0.3, 0.4, 0.3, 0.4])
FADES = 0.85  # a step: Adam's first updates are the noisiest, whatever the length of the run


def rates(
    plan: Tensor, embedding: Tensor, vector: Tensor, step: Tensor, progress: Tensor
) -> Tensor:
    """Each group's rate, in the units of an action: 1 is four times the learning rate, -1 a
    quarter.

    Args:
        plan: one number for each of PARTS, [..., parts].
        embedding, vector: 1 for such groups, else 0, [..., K].
        step: steps done, [...].
        progress: part of the run that is done, [...].
    """
    parts = plan.unbind(-1)
    early = FADES ** (step - 1)
    alike = parts[0] + parts[1] * early + parts[2] * progress
    beyond = (parts[3] + parts[4] * early).unsqueeze(-1) * embedding + parts[5].unsqueeze(
        -1
    ) * vector
    return (alike.unsqueeze(-1) + beyond).clamp(-1, 1)


class Planned(SacController):
    """The agent, following a plan, and a little beside it in each decision; it remembers as
    always.
    """

    def __init__(self, plan: Tensor, seed: int, beside: float = 0.05) -> None:
        self.plan, self.beside = plan, beside
        super().__init__(seed)

    def start(self, groups: int, actions: int) -> None:
        super().start(groups, actions)
        self.draw = torch.Generator().manual_seed(self._seed)

    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        chosen = torch.zeros_like(super().act(seen, context))
        embedding, vector = (
            torch.tensor([float(k == one) for k in context.kinds])
            for one in ("embedding", "vector")
        )
        chosen[:, RATE] = rates(
            self.plan, embedding, vector, torch.tensor(context.step), torch.tensor(context.progress)
        )
        return (chosen + self.beside * torch.randn(chosen.shape, generator=self.draw)).clamp(-1, 1)

    def _learn(self) -> None:
        """A plan is not learned from while it is followed."""


def drawn(centre: Tensor, seed: int) -> Tensor:
    """A plan about another one."""
    return centre + SPREAD * torch.randn(len(PARTS), generator=torch.Generator().manual_seed(seed))
