"""Teach the soft actor-critic on language models and public text, so that a private run need not
begin untrained.

usage: OMP_NUM_THREADS=1 python pretrain.py collect DATA EPISODES FIRST LAST [SURFACE]    tasks
FIRST to LAST - 1
       OMP_NUM_THREADS=1 python pretrain.py learn EARLIER POLICY UPDATES EPISODES…
       OMP_NUM_THREADS=1 python pretrain.py evaluate DATA OUTPUT.json FIRST LAST RULE…

DATA is a folder with tinyshakespeare, wikitext2, gsm8k, sms_spam, trec and adult, beside a folder
models; EPISODES a folder that collects runs. A task is a model (a part of the built-in one, the
WikiText GPT-2, or adapters), a text, a budget, a batch size and a learning rate. Nothing here is
private: each run that follows a plan (`plans.py`) is held against the true held-out loss of the
same run, with the same seed, under the `quantile` controller; what the agent sees and remembers is
what it would in a private run. `learn` fits a surface (`surface.py`), beginning with an EARLIER one
(JSON), and writes it beside the policy; about its best plans `collect` draws further ones.
`evaluate` holds rules (`rl:policy=public`) against `quantile`, on tasks FIRST to LAST - 1.
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
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import torch
from learning import learn
from plans import CENTRE, Planned, drawn
from surface import Situation, Surface
from torch import Tensor

from dpclip.budget.ledger import Ledger
from dpclip.budget.plan import Plan, make_plan
from dpclip.clipping import ClippingRule, ControlledClipping, StepRelease, make_rule
from dpclip.engine.setup import build_private_training, trainable_parameters
from dpclip.models.loading import LoadedModel, load_model
from dpclip.noise.keystream import SecretKey
from dpclip.released import Released
from dpclip.sampling.units import UnitIndex
from dpclip.tasks.clinic_notes import clinic_notes
from dpclip.tasks.language_modelling import Example, LanguageModelling
from dpclip.tasks.records import Records

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import write_results

INTERVAL, HELD_OUT = 4, 48
# reward of a decision after which the log perplexity is a WORTH-th lower than the pair's
WORTH = 10.0
REPEATS = 4
LENGTHS = (12, 24, 36, 60, 120, 240)  # of runs, in steps
TOKENS = 96  # most of a record
# texts like those that are trained on in private: drawn three times as often
STRUCTURED = ("notes", "census")


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
        "questions": [
            line.split(" ", 1)[1] for line in lines("trec/train_5500.label.gz") if " " in line
        ],
        "messages": [
            line.split("\t", 1)[1]
            for line in lines("sms_spam/SMSSpamCollection.gz")
            if "\t" in line
        ],
        "sums": [json.loads(line)["question"] for line in lines("gsm8k/train.jsonl.gz") if line],
        "notes": [note.text for note in clinic_notes(8000)],
        "census": [
            _person(line.split(", "))
            for line in lines("adult/adult.data.gz")
            if line.count(",") == 14
        ],
    }


def _person(row: list[str]) -> str:
    """A census row in words."""
    age, kind, _, school, _, status, work, _, race, sex, _, _, hours, country, income = row
    words = f"{race} {sex.lower()} aged {age}, {status.lower()}, from {country}. School: {school}. "
    return (
        words + f"Works {hours} hours a week, {kind.lower()}, as {work.lower()}. Income {income}."
    )


@dataclass(frozen=True)
class Task:
    """What a run trains, drawn from its seed alone; the training itself is the same for each
    controller.
    """

    seed: int
    text: str
    model: str
    blocks: int
    lora: int | None
    epsilon: float
    batch: int
    rate: float
    units: int
    steps: int

    @classmethod
    def drawn(cls, seed: int, names: list[str]) -> Task:
        """A random task; lengths take turns, and every third time round adapters are trained."""
        draw = random.Random(seed)
        return cls(
            seed,
            draw.choice([*names, *STRUCTURED * 2]),
            draw.choice(["builtin", "builtin", "wikitext-gpt2-4x256"]),
            draw.choice([2, 3]),
            8 if seed // len(LENGTHS) % 3 == 2 else None,
            draw.choice([0.5, 2.0, 8.0]),
            draw.choice([24, 48, 96]),
            10 ** draw.uniform(-0.5, 0.4),
            draw.choice([2000, 5000]),
            LENGTHS[seed % len(LENGTHS)],
        )

    def plan(self, data: Path) -> Plan:
        """For as many records as there are, at most `units`."""
        rows = min(self.units, len(texts(data)[self.text]) - HELD_OUT)
        return plan_of(rows, self.batch, self.epsilon, self.steps)

    def loaded(self, models: Path) -> LoadedModel:
        """The first blocks of the built-in model, or the whole of one, or adapters of one."""
        torch.manual_seed(self.seed)
        builtin = self.model == "builtin"
        name = "builtin" if builtin else str(models / self.model)
        loaded = load_model(name, LanguageModelling.head(), lora=self.lora, device="auto")
        if builtin and self.lora is None:
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
    return make_plan(
        units=units,
        expected_batch_size=batch,
        target_epsilon=epsilon,
        target_delta=1e-5,
        steps=steps,
    )


def run(task: Task, data: Path, rule: ClippingRule) -> list[float]:
    """One private run; the held-out loss at each decision."""
    loaded = task.loaded(data.parent / "models")
    model, language = loaded.model, LanguageModelling(loaded.tokenizer, TOKENS)
    rows, held_out = task.examples(data, language)
    peak = task.rate * (4 if task.lora else 1) * 0.768 / model.config.hidden_size
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=peak, weight_decay=0.0)
    plan = task.plan(data)
    private = build_private_training(
        model,
        optimizer,
        rows,
        UnitIndex(len(rows), None),
        plan=plan,
        key=SecretKey.for_tests(task.seed),
        ledger=Ledger.create(None, plan),
        rule=rule,
        grad_sample_mode="auto",
        physical_batch_size=128 if torch.cuda.is_available() else 32,
        rows_per_unit=1,
        examples=(),
        postprocess=(),
        collate=language.collate,
        recheck=False,
    )
    losses = [math.log(language.evaluate(model, held_out))]

    class Watcher:
        def on_step_begin(self, step: int, generation: int) -> None:
            optimizer.param_groups[0]["lr"] = peak * (1 - step / task.steps)

        def on_step_end(self, step: int, released: Released[StepRelease]) -> None:
            if (step + 1) % INTERVAL == 0:
                losses.append(math.log(language.evaluate(model, held_out)))

    private.observers.append(Watcher())
    for batch in private.batches():
        with private.microbatch(batch):
            private.backward(language.losses(model, batch))
        private.step()
    private.close()
    return losses


def ruled(task: Task, controller: str) -> ControlledClipping:
    """The rule of a run."""
    return ControlledClipping(
        controller=controller, interval=INTERVAL, warmup=0.0, agent_seed=task.seed, policy="none"
    )


def collect(data: Path, folder: Path, first: int, last: int, surface: str) -> None:
    """Plans, each beside the same run under the quantile controller; a file a task."""
    folder.mkdir(parents=True, exist_ok=True)
    known = Surface.read(Path(surface)) if surface else None
    for seed in range(first, last):
        task = Task.drawn(seed, list(texts(data)))
        pair = run(task, data, ruled(task, "quantile"))
        noise = math.log10(task.plan(data).noise_multiplier / task.batch)
        situation = Situation(
            noise, math.log(task.rate), pair[0] - pair[-1], float(bool(task.lora)), task.steps
        )
        runs = []
        for repeat in range(REPEATS):
            rule = ruled(task, "sac")
            about = known.best(situation) if known and repeat % 2 == 0 else CENTRE
            plan = drawn(about, REPEATS * seed + repeat)
            agent = rule.agent = Planned(plan, REPEATS * seed + repeat)
            losses = run(task, data, rule)
            kept = remembered(agent.tensor_state(), losses, pair)
            runs.append({"plan": plan, "more": losses[-1] - pair[-1], "losses": losses, **kept})
        torch.save(
            {"task": asdict(task), "situation": astuple(situation), "pair": pair, "runs": runs},
            folder / f"{seed}.pt",
        )
        ends = ", ".join(f"{run['more']:+.3f}" for run in runs)
        print(task, f"{pair[0]:.3f} -> {pair[-1]:.3f}; {ends}", flush=True)


def remembered(
    memory: dict[str, Tensor], losses: list[float], pair: list[float]
) -> dict[str, Tensor]:
    """What the agent saw and did, rewarded for what the pair's loss has fallen less: n decisions, n
    + 1 observations.

    In half the precision, which is plenty.
    """
    ahead = [math.log(other / own) for own, other in zip(losses, pair, strict=True)]
    rewards = [WORTH * (after - before) for before, after in itertools.pairwise(ahead)]
    count = len(memory["memory.rewards"])
    return {
        "observations": torch.cat(
            [memory["memory.observations"], memory["memory.next_observations"][-1:]]
        ).half(),
        "actions": memory["memory.actions"].half(),
        "rewards": torch.tensor(rewards[:count]).clamp(-1, 1).half(),
    }


def evaluate(data: Path, output: Path, first: int, last: int, rules: list[str]) -> None:
    """How much higher the held-out loss ends than under the quantile controller."""
    more: dict[str, list[float]] = {}
    for seed in range(first, last):
        task = Task.drawn(seed, list(texts(data)))
        plain = run(task, data, ruled(task, "quantile"))
        for name in rules:
            more.setdefault(name, []).append(run(task, data, make_rule(name))[-1] - plain[-1])
        print(
            task,
            f"{plain[0]:.3f} -> {plain[-1]:.3f}",
            {n: f"{m[-1]:+.3f}" for n, m in more.items()},
            flush=True,
        )
        found = {
            name: {
                "mean": statistics.fmean(m),
                "error": statistics.stdev(m) / len(m) ** 0.5,
                "nats": m,
            }
            for name, m in more.items()
            if len(m) > 1
        }
        write_results(output, found)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["collect", data, folder, first, last, *surface]:
            collect(Path(data), Path(folder), int(first), int(last), surface[0] if surface else "")
        case ["learn", earlier, policy, updates, *folders]:
            learn([Path(folder) for folder in folders], Path(policy), int(updates), Path(earlier))
        case ["evaluate", data, output, first, last, *rules]:
            evaluate(Path(data), Path(output), int(first), int(last), rules)
        case _:
            sys.exit(__doc__)
