"""From kept runs to a policy: a surface over plans, its lowest points as the actor, critics for that actor."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import torch
from plans import rates
from safetensors.torch import load_file, save_file
from surface import FIRST, INTERVAL, Situation, Surface
from torch import Tensor

from dpclip.clipping import Controlled
from dpclip.clipping.control import SacSettings, SoftActorCritic, Transitions
from dpclip.clipping.control.controller import RATE
from dpclip.clipping.control.losses import LossAccount, LossWindow
from dpclip.clipping.control.observation import width

# Columns of an observation in modes A and B, see `dpclip.clipping.control.observation.features`.
RATE_NOW, EMBEDDING, VECTOR, ADAPTER, MOVED = 5, 7, 8, 9, 10
PROGRESS, LOSSES, FALL_AND_NOW, LENGTH, STEP, NOISE = 14, slice(16, 19), slice(17, 19), 19, 20, 21
TELLING = (RATE_NOW, EMBEDDING, VECTOR, MOVED, PROGRESS, 17, 18, LENGTH, STEP, NOISE)
BATCH, DECAY = 64, 0.5
VARIANTS = 8  # of the noise on losses
SETTINGS = SacSettings(gamma=0.99, learning_rate=1e-3, temperature=0.002)
FIELDS = ("observations", "actions", "rewards", "next_observations", "done")
Row = dict[str, Tensor]


def learn(folders: list[Path], policy: Path, updates: int, begin: Path | None = None) -> None:
    """Off-policy from all runs: the actor from a response surface, then the critics for that actor.

    A policy to begin with keeps what it does about whole models; adapters are taught after them, in any case, through
    the weights of the one feature that tells them apart.

    A soft actor-critic that learns from kept runs alone believes its critics where no run has been, and acts there. A
    surface with few terms, fitted to how whole runs ended, says which way is up within what was tried.
    """
    tasks = [torch.load(path) for folder in folders for path in sorted(folder.glob("*.pt"))]
    tasks += 2 * [task for task in tasks if Situation(*task["situation"]).whole]  # the likest to private runs
    surface = Surface.fitted(tasks)
    surface.save(policy.with_suffix(".json"))
    rows = [row for task in tasks for row in rows_of(task, surface)]
    agent, draw = SoftActorCritic(width(3), 3, SETTINGS, 0), random.Random(0)
    if begin:
        agent.load_policy(load_file(begin))
    else:
        imitate(agent, [row for row in rows if not has_adapters(row)], updates, draw)
    imitate_adapters(agent, [row for row in rows if has_adapters(row)], updates, draw)
    for part in ("actor", "temperature"):
        agent.optimizers[part].param_groups[0]["lr"] = 0.0
    for _ in range(updates):
        batch = drawn(rows, draw)
        losses = agent.update(Transitions(**{field: torch.stack([row[field] for row in batch]) for field in FIELDS}))
    print(f"{len(rows)} decisions, scatter {surface.scatter:.3f}", losses, flush=True)
    save_file({k: v.clone().contiguous() for k, v in agent.policy().items()}, policy)


def rows_of(task: dict[str, Any], surface: Surface) -> list[Row]:
    """Each decision of a task, with the best plan for the task and what may be seen of the losses."""
    situation = Situation(*task["situation"])
    plan, worth = surface.best(situation), torch.tensor(situation.usual())
    rows = []
    for run in task["runs"]:
        seen = torch.stack([seen_losses(run["losses"], situation, draw) for draw in range(VARIANTS)])
        for index, row in enumerate(run["transitions"]):
            rows.append({**row, "plan": plan, "worth": worth, "seen losses": seen[:, index]})
    return rows


def seen_losses(losses: list[float], situation: Situation, seed: int) -> Tensor:
    """What a run would have seen of its losses at each decision, with noise drawn anew: fall and level, [n, 2]."""
    generator = torch.Generator().manual_seed(seed)
    account, found = LossAccount(), []
    for done in range(1, situation.steps + 1):
        whole, part = divmod(done - 1, INTERVAL)
        true = torch.tensor(losses[whole] + part / INTERVAL * (losses[min(whole + 1, len(losses) - 1)] - losses[whole]))
        window = LossWindow(Controlled.loss_width, seen=done - 1).width
        noise = window * 10**situation.noise / math.sqrt(Controlled.loss_share) * torch.randn((), generator=generator)
        account.add([float((true.clamp(max=2 * window) if done == 1 else true) + noise)])
        if done == FIRST or done % INTERVAL == 0:
            found.append([account.fall / 3, account.now / 5])
    return torch.tensor(found).clamp(-2, 2)


def drawn(rows: list[Row], draw: random.Random) -> list[Row]:
    """A batch of decisions for the same number of groups."""
    like = len(draw.choice(rows)["observations"])
    return draw.choices([row for row in rows if len(row["observations"]) == like], k=BATCH)


def imitate(agent: SoftActorCritic, rows: list[Row], updates: int, draw: random.Random) -> None:
    """Regress the actor's mean on what is wanted; a small standard deviation is left for exploring.

    A miss counts for as much as there is to learn in the task. Features are standardised, and those that say nothing
    (what is released of a gradient is nearly all noise, and there are too few tasks for the rest) begin at weight 0.
    The losses are left out a quarter of the time: mode A does not have them.
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
    optimizer = torch.optim.AdamW([*inner.body.parameters(), *inner.mean.parameters()], lr=2e-3, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, updates)
    for _ in range(updates):
        seen, goal, worth = lesson(rows, draw)
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


def imitate_adapters(agent: SoftActorCritic, rows: list[Row], updates: int, draw: random.Random) -> None:
    """The same for adapters; nothing else changes in what is done about other groups, whose feature is 0."""
    first = agent.actor.body[0]
    optimizer = torch.optim.Adam([first.weight], lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, updates)
    others = torch.arange(first.weight.shape[1]) != ADAPTER
    for _ in range(updates):
        seen, goal, worth = lesson(rows, draw)
        loss = missed(agent.actor(seen)[0], goal, worth)
        optimizer.zero_grad()
        loss.backward()
        first.weight.grad[:, others] = 0.0
        optimizer.step()
        schedule.step()
    print(f"adapters imitated within {math.sqrt(loss.item()):.3f}")


def has_adapters(row: Row) -> bool:
    """Whether a decision was about adapters."""
    return bool(row["observations"][:, ADAPTER].any())


def lesson(rows: list[Row], draw: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, the rates that are wanted, and what each counts for."""
    batch = drawn(rows, draw)
    seen, plans, worth = (torch.stack([row[f] for row in batch]) for f in ("observations", "plan", "worth"))
    seen[..., FALL_AND_NOW] = torch.stack([draw.choice(row["seen losses"]) for row in batch])[:, None]
    goal = lengthened(seen, plans, draw)
    if draw.random() < 0.25:
        seen[..., LOSSES] = 0.0
    return seen, goal, worth


def missed(mean: Tensor, goal: Tensor, worth: Tensor) -> Tensor:
    """By how much an actor misses what is wanted: rates, and no departure of anything else."""
    acted = torch.tanh(mean)
    wrong = (acted[..., RATE] - goal).square().mean(-1)
    return (worth * wrong).sum() / worth.sum() + acted[..., :RATE].square().mean()


def lengthened(seen: Tensor, plans: Tensor, draw: random.Random) -> Tensor:
    """What is wanted; half of the observations are changed as if in a run up to 100 times as long."""
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    random_numbers = torch.rand(2, len(seen), generator=generator)
    times = torch.where(random_numbers[0] < 0.5, 1.0, 100 ** random_numbers[1])
    steps = 10 ** (4 * seen[:, 0, LENGTH]) * times
    progress = seen[:, 0, PROGRESS]
    as_first = (times > 1) & (seen[:, 0, STEP] <= math.log10(FIRST + 0.5) / 4)
    step = torch.where(as_first, float(FIRST), (progress * steps).clamp(min=FIRST))
    together = (step / steps, 1 - step / steps, steps.log10() / 4, step.log10() / 4)
    for column, values in zip((PROGRESS, PROGRESS + 1, LENGTH, STEP), together, strict=True):
        seen[..., column] = values[:, None]
    return rates(plans, seen[..., EMBEDDING], seen[..., VECTOR], step, step / steps)
