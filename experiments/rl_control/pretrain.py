"""Teach the soft actor-critic on language models and public text, so that a private run need not begin untrained.

usage: OMP_NUM_THREADS=1 python pretrain.py collect DATA EPISODES FIRST LAST [POLICY]    runs FIRST to LAST - 1
       OMP_NUM_THREADS=1 python pretrain.py learn POLICY UPDATES EPISODES…
       OMP_NUM_THREADS=1 python pretrain.py evaluate DATA POLICY FIRST LAST OUTPUT.json

DATA is a folder with tinyshakespeare, wikitext2, gsm8k, sms_spam, trec and adult; EPISODES a folder that collects runs.
A task is a part of the built-in model (its first two to four blocks, or adapters), a text, a budget, a batch size and a
learning rate. Nothing here is private, so a decision is rewarded for how much more the true held-out loss has fallen
since than in the same run, with the same seed, under the `quantile` controller; what the agent sees is what it would
see in a private run. Collect in several processes, learn, collect with the policy, learn again.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import math
import random
import statistics
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from learning import SIZE, learn, standard
from torch import Tensor

from dpclip.assembly import assemble, trainable
from dpclip.clipping import Controlled, StepRelease
from dpclip.clipping.control import Context, Summary, learner
from dpclip.ledger import Commitments, Ledger
from dpclip.models.loading import LoadedModel, load_model
from dpclip.plan import Plan, make_plan
from dpclip.private import UnitIndex
from dpclip.randomness import SecretKey
from dpclip.released import Released
from dpclip.tasks.clinic_notes import clinic_notes
from dpclip.tasks.language_modelling import Example, LanguageModelling
from dpclip.tasks.records import Records

INTERVAL, LENGTH, HELD_OUT = 4, 40, 48
WORTH = 10.0  # reward of a decision after which the log perplexity is a WORTH-th lower than the pair's
REPEATS = 3
STRUCTURED = ("notes", "census")  # texts like those that are trained on in private: drawn twice as often
SPREADS = torch.tensor([[0.2, 0.0, 0.45], [0.0, 0.0, 0.5]])  # of the explorer's disturbances: alike, and by size


@functools.cache
def texts(data: Path) -> dict[str, list[str]]:
    """Public texts, a list of records each."""

    def lines(path: str) -> Iterator[str]:
        raw = gzip.decompress((data / path).read_bytes())
        return (line.strip() for line in raw.decode("utf-8", "replace").splitlines())

    poem = [line for line in lines("tinyshakespeare/input.txt.gz") if len(line) > 20]
    return {
        "shakespeare": [" ".join(poem[i : i + 3]) for i in range(0, len(poem) - 3, 3)],
        "wikitext": [line for line in lines("wikitext2/valid.txt.gz") if len(line) > 100],
        "questions": [line.split(" ", 1)[1] for line in lines("trec/train_5500.label.gz") if " " in line],
        "messages": [line.split("\t", 1)[1] for line in lines("sms_spam/SMSSpamCollection.gz") if "\t" in line],
        "sums": [json.loads(line)["question"] for line in lines("gsm8k/train.jsonl.gz") if line],
        "notes": [note.text for note in clinic_notes(8000)],
        "census": [_person(line.split(", ")) for line in lines("adult/adult.data.gz") if line.count(",") == 14],
    }


def _person(row: list[str]) -> str:
    """A census row in words."""
    age, kind, _, school, _, status, work, _, race, sex, _, _, hours, country, income = row
    words = f"{race} {sex.lower()} aged {age}, {status.lower()}, from {country}. School: {school}. "
    return words + f"Works {hours} hours a week, {kind.lower()}, as {work.lower()}. Income {income}."


@dataclass(frozen=True)
class Task:
    """What a run trains, drawn from its seed alone; the training itself is the same for each controller."""

    seed: int
    text: str
    blocks: int
    lora: int | None
    epsilon: float
    batch: int
    rate: float
    units: int
    steps: int

    @classmethod
    def drawn(cls, seed: int, names: list[str]) -> Task:
        """A random task."""
        draw = random.Random(seed)
        lora = draw.choice([None, None, None, None, 8])
        return cls(
            seed, draw.choice([*names, *STRUCTURED]), draw.choice([2, 3, 4]), lora, draw.choice([0.5, 2.0, 8.0]),
            draw.choice([24, 32]), 10 ** draw.uniform(-0.2, 0.3), draw.choice([2000, 5000]), draw.choice([16, 24]),
        )  # fmt: skip

    def model(self) -> LoadedModel:
        """The first blocks of the built-in model, or all of it with adapters."""
        torch.manual_seed(self.seed)
        loaded = load_model("builtin", "lm", lora=self.lora)
        if self.lora is None:
            loaded.model.transformer.h = loaded.model.transformer.h[: self.blocks]
            loaded.model.config.n_layer = self.blocks
        return loaded

    def examples(self, data: Path, task: LanguageModelling) -> tuple[list[Example], list[Example]]:
        """To train on, and held out."""
        rows = list(texts(data)[self.text])
        random.Random(self.seed).shuffle(rows)
        encoded = task.encode(Records(self.text, rows[: self.units + HELD_OUT]))
        return encoded[HELD_OUT:], encoded[:HELD_OUT]


@functools.cache
def plan_of(units: int, batch: int, epsilon: float, steps: int) -> Plan:
    """Plans take a while; there are few."""
    return make_plan(units=units, expected_batch_size=batch, target_epsilon=epsilon, target_delta=1e-5, steps=steps)


def run(task: Task, data: Path, rule: Controlled) -> list[float]:
    """One private run; the held-out loss at each decision."""
    loaded = task.model()
    model, language = loaded.model, LanguageModelling(loaded.tokenizer, LENGTH)
    rows, held_out = task.examples(data, language)
    peak = task.rate * (4 if task.lora else 1) * 0.768 / 192
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=peak, weight_decay=0.0)
    plan = plan_of(len(rows), task.batch, task.epsilon, task.steps)
    private = assemble(
        model, optimizer, rows, UnitIndex(len(rows), None), plan=plan, key=SecretKey.from_seed(task.seed),
        ledger=Ledger.create(None, plan), commitments=Commitments(None), rule=rule, grad_sample_mode="auto",
        loss_reduction="mean", physical_batch_size=32, rows_per_unit=1, row_cost=lambda row: language.cost(rows[row]),
        postprocess=(), collate=language.collate,
    )  # fmt: skip
    losses = [math.log(language.evaluate(model, held_out))]

    class Watcher:
        def begins(self, step: int, generation: int) -> None:
            optimizer.param_groups[0]["lr"] = peak * (1 - step / task.steps)

        def took(self, step: int, released: Released[StepRelease]) -> None:
            if (step + 1) % INTERVAL == 0:
                losses.append(math.log(language.evaluate(model, held_out)))

    private.observers.append(Watcher())
    for batch in private.batches():
        with private.microbatch(batch):
            private.mean(language.losses(model, batch)).backward()
        private.step()
    private.close()
    return losses


def ruled(task: Task, controller: str, policy: str = "none") -> Controlled:
    """The rule of a run."""
    return Controlled(
        controller=controller, interval=INTERVAL, warmup=0.0, agent_seed=task.seed, policy=policy or "none"
    )


class Explorer(learner.Sac):
    """The agent, disturbed: for a while, in proportion to what tells groups apart, and a little in each decision.

    Disturbances that differ from group to group and from decision to decision would average out over both.
    """

    def start(self, groups: int, actions: int) -> None:
        super().start(groups, actions)
        self.draw = torch.Generator().manual_seed(self._seed)
        self.lasting = self.disturbance(*SPREADS.shape) * SPREADS

    def disturbance(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(*shape, generator=self.draw)

    def act(self, seen: Released[tuple[Summary, ...]], context: Context) -> Tensor:
        chosen = super().act(seen, context)
        if self._policy is None:
            chosen = torch.zeros_like(chosen)
        again = torch.rand(self.lasting.shape, generator=self.draw) < 0.1
        self.lasting = torch.where(again, self.disturbance(*self.lasting.shape) * SPREADS, self.lasting)
        assert self._before is not None
        size = self._before[:, SIZE]
        traits = torch.stack([torch.ones_like(size), standard(size)], 1)
        return (chosen + traits @ self.lasting + 0.1 * self.disturbance(*chosen.shape)).clamp(-1, 1)


def collect(data: Path, folder: Path, first: int, last: int, policy: str) -> None:
    """Explorations, each beside the same run under the quantile controller, a file a task."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(first, last):
        task = Task.drawn(seed, list(texts(data)))
        pair, rows, ends = run(task, data, ruled(task, "quantile")), [], []
        for repeat in range(REPEATS):
            rule = ruled(task, "sac")
            explorer = rule.agent = Explorer(REPEATS * seed + repeat, Path(policy) if policy else None)
            losses = run(task, data, rule)
            rows += transitions(explorer.tensor_state(), losses, pair)
            ends.append(f"{losses[-1]:.3f}")
        torch.save(rows, folder / f"{seed}.pt")
        print(task, f"{pair[0]:.3f} -> {pair[-1]:.3f}; {', '.join(ends)}", flush=True)


def transitions(memory: dict[str, Tensor], losses: list[float], pair: list[float]) -> list[dict[str, Tensor]]:
    """What the agent remembers of a run, rewarded for what the pair's loss has fallen less."""
    ahead = [math.log(other / own) for own, other in zip(losses, pair, strict=True)]
    rewards = [WORTH * (after - before) for before, after in itertools.pairwise(ahead)][1:]
    rows = []
    for index in range(len(memory["memory.rewards"])):
        parts = {part: memory[f"memory.{part}"][index] for part in ("observations", "actions", "next_observations")}
        done = torch.tensor(float(index == len(memory["memory.rewards"]) - 1))
        rows.append({**parts, "rewards": torch.tensor(max(-1.0, min(1.0, rewards[index]))), "done": done})
    return rows


def evaluate(data: Path, policy: str, first: int, last: int, output: Path) -> None:
    """Final held-out loss over that of the quantile controller on the same task, on seeds that teaching never used."""
    ratios: dict[str, list[float]] = {}
    for seed in range(first, last):
        task = Task.drawn(seed, list(texts(data)))
        plain = run(task, data, ruled(task, "quantile"))[-1]
        for name, rule in {
            "taught": ruled(task, "sac", policy), "untaught": ruled(task, "sac"), "random": ruled(task, "random"),
            "constant": ruled(task, "constant"), "schedule": ruled(task, "schedule"),
        }.items():  # fmt: skip
            ratios.setdefault(name, []).append(run(task, data, rule)[-1] / plain)
        found = {
            name: {"mean": statistics.fmean(r), "error": statistics.stdev(r) / len(r) ** 0.5, "ratios": r}
            for name, r in ratios.items()
            if len(r) > 1
        }
        output.write_text(json.dumps(found, indent=1) + "\n")
    print({name: (row["mean"], row["error"]) for name, row in found.items()})


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["collect", data, folder, first, last, *policy]:
            collect(Path(data), Path(folder), int(first), int(last), policy[0] if policy else "")
        case ["learn", policy, updates, *folders]:
            learn([Path(folder) for folder in folders], Path(policy), int(updates))
        case ["evaluate", data, policy, first, last, output]:
            evaluate(Path(data), policy, int(first), int(last), Path(output))
        case _:
            sys.exit(__doc__)
