"""From kept runs to a policy: a surface of what was still to come, its top as the actor, critics for that actor."""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dpclip.clipping.control import SacSettings, SoftActorCritic, Transitions
from dpclip.clipping.control.controller import RATE
from dpclip.clipping.control.observation import width

# Columns of an observation in modes A and B, see `dpclip.clipping.control.observation.features`.
OWN, SIZE, MEANS = slice(0, 3), 6, slice(7, 10)
TIME, FALL = -6, -3
BATCH = 64
SETTINGS = SacSettings(gamma=0.99, learning_rate=1e-3, temperature=0.002)
TRIED = 0.5  # how far rates are taken from the base: as far as the explorer went
PARTS = ("observations", "actions", "rewards", "next_observations", "done")


def learn(folders: list[Path], policy: Path, updates: int) -> None:
    """Off-policy from all runs: the actor from a response surface, then the critics for that actor.

    A soft actor-critic that learns from kept runs alone believes its critics where no run has been, and acts there. A
    surface with few terms, fitted to what was still to come in each run, says which way is up within what was tried.
    """
    files = [path for folder in folders for path in sorted(folder.glob("*.pt"))]
    rows = [row for path in files for row in with_returns(torch.load(path))]
    surface = fitted(rows)
    print("surface", {name: round(float(c), 2) for name, c in zip(TERMS, surface, strict=True)})
    agent, draw = SoftActorCritic(width(3), 3, SETTINGS, 0), random.Random(0)
    imitate(agent, rows, surface, updates, draw)
    for part in ("actor", "temperature"):
        agent.optimizers[part].param_groups[0]["lr"] = 0.0
    for _ in range(updates):
        batch = drawn(rows, draw)
        losses = agent.update(Transitions(**{part: torch.stack([row[part] for row in batch]) for part in PARTS}))
    print(f"{len(rows)} decisions", losses, flush=True)
    save_file({k: v.clone().contiguous() for k, v in agent.policy().items()}, policy)


def with_returns(rows: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Each decision with what was still to come in its run."""
    ahead = torch.tensor(0.0)
    for row in reversed(rows):
        ahead = row["rewards"] + SETTINGS.gamma * ahead * (1 - row["done"])
        row["return"] = ahead
    return rows


TERMS = (
    "1",
    "fall",
    "time",
    "fall time",
    "alike",
    "alike fall",
    "alike time",
    "size",
    "size fall",
    "size time",
    "bend",
)
BEND = 0.5  # curvature that is reckoned with at least: what was tried was too near to show it


def situation(row: dict[str, Tensor]) -> tuple[float, float, Tensor]:
    """How far the loss has fallen, how far the run is, and the groups' standardised log sizes."""
    seen = row["observations"]
    fall = min(2.5, max(-0.5, 3 * float(seen[0, FALL])))
    return fall, float(seen[0, TIME]), standard(seen[:, SIZE])


def fitted(rows: list[dict[str, Tensor]]) -> Tensor:
    """Return = surface of the situation and of the rates: alike for all groups, and in proportion to their sizes."""
    inputs, returns = [], []
    for row in rows:
        fall, time, sizes = situation(row)
        rates = row["actions"][:, RATE]
        alike, by_size = float(rates.mean()), float((rates * sizes).mean())
        common = [1.0, fall, time]
        inputs.append([*common, fall * time, *(alike * c for c in common), *(by_size * c for c in common),
                       -(alike**2) - by_size**2])  # fmt: skip
        returns.append(float(row["return"]))
    design, goal = torch.tensor(inputs), torch.tensor(returns)
    ridge = design.T @ design + 1e-2 * torch.eye(len(TERMS))
    return torch.linalg.solve(ridge, design.T @ goal)


def wanted(row: dict[str, Tensor], surface: Tensor) -> Tensor:
    """The action at the top of the surface, within what was tried; thresholds and shares as they are."""
    fall, time, sizes = situation(row)
    common = torch.tensor([1.0, fall, time])
    bend = 2 * max(float(surface[-1]), BEND)
    alike, by_size = (float(surface[k : k + 3] @ common) / bend for k in (4, 7))
    action = torch.zeros_like(row["actions"])
    clipped = [max(-TRIED, min(TRIED, value)) for value in (alike, by_size)]
    action[:, RATE] = (clipped[0] + clipped[1] * sizes).clamp(-0.9, 0.9)
    return action


def drawn(rows: list[dict[str, Tensor]], draw: random.Random) -> list[dict[str, Tensor]]:
    """A batch of decisions for the same number of groups."""
    like = len(draw.choice(rows)["observations"])
    return draw.choices([row for row in rows if len(row["observations"]) == like], k=BATCH)


def imitate(
    agent: SoftActorCritic, rows: list[dict[str, Tensor]], surface: Tensor, updates: int, draw: random.Random
) -> None:
    """Regress the actor's mean on what is wanted; a small standard deviation is left for exploring.

    What is released of a gradient is nearly all noise, so those features are left out in teaching half of the time.
    """
    actor = agent.actor
    with torch.no_grad():
        actor.log_std.weight.zero_()
        actor.log_std.bias.fill_(math.log(0.1))
    optimizer = torch.optim.AdamW([*actor.body.parameters(), *actor.mean.parameters()], lr=1e-3, weight_decay=0.01)
    for _ in range(updates):
        batch = drawn(rows, draw)
        seen = torch.stack([row["observations"] for row in batch])
        if draw.random() < 0.5:
            seen[..., OWN], seen[..., MEANS] = 0.0, 0.0
        goal = torch.stack([wanted(row, surface) for row in batch])
        loss = (torch.tanh(actor(seen)[0]) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"imitated within {math.sqrt(loss.item()):.3f}")


def standard(values: Tensor) -> Tensor:
    """Mean 0, standard deviation 1."""
    return (values - values.mean()) / values.std(correction=0).clamp(min=1e-6)
