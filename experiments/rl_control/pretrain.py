"""Teach the soft actor-critic on synthetic tasks, so that a private run need not begin untrained.

usage: OMP_NUM_THREADS=1 python pretrain.py EPISODES POLICY.safetensors   goes on where POLICY's folder has a state
       OMP_NUM_THREADS=1 python pretrain.py --evaluate POLICY.safetensors [TASKS]

A task: classify Gaussian inputs, some features a hundred times larger than others, by a random two-layer teacher with
label noise; the student is a perceptron of four layers, trained by DP-Adam or DP-SGD. Nothing here is private, so the
agent is rewarded for the fall of the true held-out loss; it sees what it would see in a private run.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dpclip.assembly import assemble
from dpclip.clipping import Controlled, StepRelease
from dpclip.clipping.control import SacSettings, SoftActorCritic, Transitions, learner
from dpclip.clipping.control.observation import width
from dpclip.ledger import Commitments, Ledger
from dpclip.plan import Plan, make_plan
from dpclip.private import UnitIndex
from dpclip.randomness import SecretKey
from dpclip.released import Released

ROWS, WIDTH, CLASSES, STEPS, INTERVAL = 2000, 20, 4, 96, 8
BATCH, UPDATES, KEPT = 128, 24, 20_000
SETTINGS = SacSettings(learning_rate=1e-3, gamma=0.9)


def plans() -> list[Plan]:
    """Budgets from tight to wide."""
    return [
        make_plan(units=ROWS, expected_batch_size=batch, target_epsilon=epsilon, target_delta=1e-5, steps=STEPS)
        for epsilon in (0.5, 2.0, 8.0)
        for batch in (64, 200)
    ]


@dataclass(frozen=True)
class Task:
    """Rows, a held-out set, and the optimizer's kind and rate."""

    rows: list[tuple[Tensor, Tensor]]
    held_out: tuple[Tensor, Tensor]
    adam: bool
    rate: float
    seed: int

    @classmethod
    def drawn(cls, seed: int) -> Task:
        """A random task."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2 * ROWS, WIDTH, generator=generator)
        teacher = torch.randn(WIDTH, 16, generator=generator), torch.randn(16, CLASSES, generator=generator)
        y = (torch.tanh(x @ teacher[0] / 2) @ teacher[1]).argmax(1)
        flip = torch.rand(len(y), generator=generator) < 0.1
        y = torch.where(flip, torch.randint(CLASSES, y.shape, generator=generator), y)
        x = x * 10 ** (2 * torch.rand(WIDTH, generator=generator) - 1)
        adam = bool(torch.rand(1, generator=generator) < 0.7)
        rate = float(10 ** (0.6 * torch.rand(1, generator=generator) - 0.3)) * (0.01 if adam else 1.0)
        rows = list(zip(x[:ROWS], y[:ROWS], strict=True))
        return cls(rows, (x[ROWS:], y[ROWS:]), adam, rate, seed)

    def student(self) -> nn.Module:
        """Four layers of weights: four groups."""
        torch.manual_seed(self.seed)
        sizes = (WIDTH, 32, 32, 16, CLASSES)
        layers = [part for a, b in itertools.pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())]
        return nn.Sequential(*layers[:-1])

    def loss(self, student: nn.Module) -> float:
        """On the held-out set."""
        with torch.no_grad():
            return float(nn.functional.cross_entropy(student(self.held_out[0]), self.held_out[1]))


class Watcher:
    """The held-out loss at each decision."""

    def __init__(self, task: Task, student: nn.Module) -> None:
        self.task, self.student, self.losses = task, student, [task.loss(student)]

    def begins(self, step: int, generation: int) -> None: ...

    def took(self, step: int, released: Released[StepRelease]) -> None:
        if (step + 1) % INTERVAL == 0:
            self.losses.append(self.task.loss(self.student))


def run(task: Task, plan: Plan, rule: Controlled) -> list[float]:
    """One private run; the held-out loss at each decision."""
    student = task.student()
    optimizer = (torch.optim.Adam if task.adam else torch.optim.SGD)(student.parameters(), lr=task.rate)
    private = assemble(
        student, optimizer, task.rows, UnitIndex(ROWS, None), plan=plan, key=SecretKey.from_seed(task.seed),
        ledger=Ledger.create(None, plan), commitments=Commitments(None), rule=rule, grad_sample_mode="auto",
        loss_reduction="mean", physical_batch_size=256, rows_per_unit=1, row_cost=None, postprocess=(),
        collate=torch.utils.data.default_collate,
    )  # fmt: skip
    watcher = Watcher(task, student)
    private.observers.append(watcher)
    for inputs, targets in private.batches():
        with private.microbatch((inputs, targets)):
            private.mean(nn.functional.cross_entropy(student(inputs), targets, reduction="none")).backward()
        private.step()
    private.close()
    return watcher.losses


def ruled(controller: str, seed: int, policy: str = "") -> Controlled:
    """The rule of a run."""
    return Controlled(
        controller=controller, interval=INTERVAL, warmup=0.0, max_grad_norm=1.0, agent_seed=seed, policy=policy
    )


def transitions(rule: Controlled, losses: list[float]) -> list[tuple[Tensor, ...]]:
    """What the agent remembers of a run, rewarded for the true loss: ten per cent less is worth 0.5."""
    memory = rule.agent.tensor_state()
    rows = []
    for index in range(len(memory["memory.rewards"])):
        fall = (losses[index + 1] - losses[index + 2]) / losses[index + 1]
        reward = torch.tensor(max(-1.0, min(1.0, 5 * fall)))
        done = torch.tensor(float(index == len(memory["memory.rewards"]) - 1))
        parts = [memory[f"memory.{part}"][index] for part in ("observations", "actions", "next_observations")]
        rows.append((parts[0], parts[1], reward, parts[2], done))
    return rows


def teach(episodes: int, path: Path) -> None:
    """Off-policy, over many runs; saves policy and state as it goes."""
    learner.FIRST_BATCH = 10**9  # no learning inside a run
    agent, budgets = SoftActorCritic(width(2), 2, SETTINGS, 0), plans()
    rows: list[tuple[Tensor, ...]] = []
    state = path.with_suffix(".state.pt")
    first = 0
    if state.exists():
        saved = torch.load(state)
        agent.load_tensor_state(saved["agent"])
        rows, first = saved["rows"], saved["episode"]
    start = time.time()
    for episode in range(first, first + episodes):
        save_file({k: v.clone().contiguous() for k, v in agent.policy().items()}, path)
        task, rule = Task.drawn(10_000 + episode), ruled("sac", episode, str(path))
        losses = run(task, budgets[episode % len(budgets)], rule)
        rows = [*rows, *transitions(rule, losses)][-KEPT:]
        for _ in range(UPDATES if len(rows) > 500 else 0):
            picked = torch.randint(len(rows), (BATCH,), generator=agent.generator).tolist()
            agent.update(Transitions(*(torch.stack(part) for part in zip(*(rows[i] for i in picked), strict=True))))
        if episode % 50 == 49:
            print(
                episode + 1,
                f"{time.time() - start:.0f} s",
                f"temperature {agent.log_temperature.exp():.3f}",
                flush=True,
            )
            torch.save({"agent": agent.tensor_state(), "rows": rows, "episode": episode + 1}, state)


def evaluate(path: str, tasks: int) -> None:
    """Final held-out loss over that of the quantile controller on the same task, seeds that teaching never used."""
    learner.FIRST_BATCH = 10**9
    budgets = plans()
    ratios: dict[str, list[float]] = {}
    for seed in range(tasks):
        task, plan = Task.drawn(seed), budgets[seed % len(budgets)]
        plain = run(task, plan, ruled("quantile", 0))[-1]
        for name, rule in {
            "taught": ruled("sac", seed, path), "untaught": ruled("sac", seed), "random": ruled("random", seed),
            "constant": ruled("constant", seed), "schedule": ruled("schedule", seed),
        }.items():  # fmt: skip
            ratios.setdefault(name, []).append(run(task, plan, rule)[-1] / plain)
    found = {
        name: {"mean": statistics.fmean(r), "error": statistics.stdev(r) / len(r) ** 0.5} for name, r in ratios.items()
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if sys.argv[1] == "--evaluate":
        evaluate(sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 60)
    else:
        teach(int(sys.argv[1]), Path(sys.argv[2]))
