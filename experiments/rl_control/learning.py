"""From kept runs to a policy: a surface over plans, its lowest points as the actor, critics for
that actor.
"""

from __future__ import annotations

import copy
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from plans import rates
from safetensors.torch import save_file
from surface import FIRST, INTERVAL, Situation, Surface
from torch import Tensor

from dpclip.clipping import ControlledClipping
from dpclip.clipping.control import SoftActorCritic, Transitions
from dpclip.clipping.control.context import RATE
from dpclip.clipping.control.features import width
from dpclip.clipping.control.released_loss import LossAccount, LossWindow
from dpclip.clipping.control.sac_controller import CAREFUL

# Columns of an observation in modes A and B, see `dpclip.clipping.control.features`.
RATE_NOW, EMBEDDING, VECTOR, ADAPTER, MOVED = 5, 7, 8, 9, 10
PROGRESS, LOSSES, FALL_AND_NOW, LENGTH, STEP, NOISE = 14, slice(16, 19), slice(17, 19), 19, 20, 21
TELLING = (RATE_NOW, EMBEDDING, VECTOR, ADAPTER, MOVED, PROGRESS, 17, 18, LENGTH, STEP, NOISE)
BATCH, DECAY = 64, 0.5
VARIANTS = 8  # of the noise on losses
SETTINGS = replace(CAREFUL, learning_rate=1e-3)
FIELDS = ("observations", "actions", "rewards", "next_observations", "done")
Row = dict[str, Tensor]


def learn(folders: list[Path], policy: Path, updates: int, earlier: Path) -> None:
    """Off-policy from all runs: the actor from a response surface, then the critics for that actor.

    A soft actor-critic that learns from kept runs alone believes its critics where no run has been,
    and acts there. A surface with few terms, fitted to how whole runs ended, says which way is up
    within what was tried.
    """
    tasks = [torch.load(path) for folder in folders for path in sorted(folder.glob("*.pt"))]
    surface = Surface.fitted(tasks, Surface.read(earlier))
    surface.save(policy.with_suffix(".json"))
    rows = [row for task in tasks for row in rows_of(task, surface)]
    lessons, agent = Lessons(rows, random.Random(0)), SoftActorCritic(width(3), 3, SETTINGS, 0)
    imitate(agent, rows, lessons, updates)
    for part in ("actor", "temperature"):
        agent.optimizers[part].param_groups[0]["lr"] = 0.0
    for _ in range(updates):
        batch = lessons.batch()
        losses = agent.update(
            Transitions(**{field: torch.stack([row[field] for row in batch]) for field in FIELDS})
        )
    print(f"{len(rows)} decisions, scatter {surface.scatter:.3f}", losses, flush=True)
    save_file({k: v.clone().contiguous() for k, v in agent.policy().items()}, policy)


def rows_of(task: dict[str, Any], surface: Surface) -> list[Row]:
    """Each decision of a task, with the best plan for the task and what may be seen of the
    losses.
    """
    situation = Situation(*task["situation"])
    plan, worth = surface.best(situation), torch.tensor(situation.usual())
    rows = []
    for run in task["runs"]:
        seen = torch.stack(
            [seen_losses(run["losses"], situation, draw) for draw in range(VARIANTS)]
        )
        observations, actions, rewards = (
            run[part].float() for part in ("observations", "actions", "rewards")
        )
        last, early = len(rewards) - 1, torch.arange(1, len(rewards) + 1) ** -0.5
        for index, reward in enumerate(rewards):
            rows.append(
                {
                    "observations": observations[index],
                    "actions": actions[index],
                    "rewards": reward,
                    "next_observations": observations[index + 1],
                    "done": torch.tensor(float(index == last)),
                    "plan": plan,
                    "worth": worth,
                    "seen losses": seen[:, index],
                    "often": early[index] / early.sum(),
                }
            )
    return rows


def seen_losses(losses: list[float], situation: Situation, seed: int) -> Tensor:
    """What a run would have seen of its losses at each decision, with noise drawn anew: fall and
    level, [n, 2].
    """
    generator = torch.Generator().manual_seed(seed)
    account, found = LossAccount(), []
    for done in range(1, situation.steps + 1):
        whole, part = divmod(done - 1, INTERVAL)
        true = torch.tensor(
            losses[whole]
            + part / INTERVAL * (losses[min(whole + 1, len(losses) - 1)] - losses[whole])
        )
        window = LossWindow(ControlledClipping.loss_width, seen=done - 1).width
        noise = (
            window
            * 10**situation.noise
            / math.sqrt(ControlledClipping.loss_share)
            * torch.randn((), generator=generator)
        )
        account.add([float((true.clamp(max=2 * window) if done == 1 else true) + noise)])
        if done == FIRST or done % INTERVAL == 0:
            found.append([account.fall / 3, account.now / 5])
    return torch.tensor(found).clamp(-2, 2)


class Lessons:
    """Batches of decisions for one number of groups; each run as often as any other, whatever its
    length, and in each the first decisions more often than the last.

    Args:
        rows: all decisions.
        draw: says which.
    """

    def __init__(self, rows: list[Row], draw: random.Random) -> None:
        self.draw, self._by_groups = draw, dict[int, list[Row]]()
        for row in rows:
            self._by_groups.setdefault(len(row["observations"]), []).append(row)
        self._often = {
            k: [float(row["often"]) for row in rows] for k, rows in self._by_groups.items()
        }
        self._totals = [sum(often) for often in self._often.values()]

    def batch(self) -> list[Row]:
        """So many decisions."""
        groups = self.draw.choices(list(self._often), self._totals)[0]
        return self.draw.choices(self._by_groups[groups], self._often[groups], k=BATCH)


def imitate(agent: SoftActorCritic, rows: list[Row], lessons: Lessons, updates: int) -> None:
    """Regress the actor's mean on what is wanted; a small standard deviation is left for exploring.

    A miss counts for as much as there is to learn in the task. Features are standardised, and those
    that say nothing (what is released of a gradient is nearly all noise, and there are too few
    tasks for the rest) begin at weight 0. The losses are left out a quarter of the time: mode A
    does not have them.
    """
    actor, first = agent.actor, agent.actor.body[0]
    everything = torch.cat([row["observations"] for row in rows])
    mean, spread = everything.mean(0), everything.std(0).clamp(min=0.05)
    weight = torch.zeros_like(mean)
    weight[list(TELLING)] = 1 / spread[list(TELLING)]
    with torch.no_grad():
        actor.log_std.weight.zero_()
        actor.log_std.bias.fill_(math.log(0.05))
    inner = copy.deepcopy(actor)
    optimizer = torch.optim.AdamW(
        [*inner.body.parameters(), *inner.mean.parameters()], lr=2e-3, weight_decay=DECAY
    )
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, updates)
    for _ in range(updates):
        seen, goal, worth = lesson(lessons)
        loss = missed(inner((seen - mean) * weight)[0], goal, worth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    actor.load_state_dict(inner.state_dict())
    with torch.no_grad():
        first.weight.mul_(weight)
        first.bias.sub_(first.weight @ mean)
    print(f"imitated within {math.sqrt(loss.item()):.3f}")


def lesson(lessons: Lessons) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, the rates that are wanted, and what each counts for."""
    batch, draw = lessons.batch(), lessons.draw
    seen, plans, worth = (
        torch.stack([row[f] for row in batch]) for f in ("observations", "plan", "worth")
    )
    seen[..., FALL_AND_NOW] = torch.stack([draw.choice(row["seen losses"]) for row in batch])[
        :, None
    ]
    step, progress = 10 ** (4 * seen[:, 0, STEP]), seen[:, 0, PROGRESS]
    goal = rates(plans, seen[..., EMBEDDING], seen[..., VECTOR], step, progress)
    if draw.random() < 0.25:
        seen[..., LOSSES] = 0.0
    return seen, goal, worth


def missed(mean: Tensor, goal: Tensor, worth: Tensor) -> Tensor:
    """By how much an actor misses what is wanted: rates, and no departure of anything else."""
    acted = torch.tanh(mean)
    wrong = (acted[..., RATE] - goal).square().mean(-1)
    return (worth * wrong).sum() / worth.sum() + acted[..., :RATE].square().mean()
