"""Controllers against fixed and adaptive thresholds: utility, how soon it is reached, and what
attackers learn.

usage: OMP_NUM_THREADS=1 python grid.py PREPARED SETTING OUTPUT.json [EPSILONS [SEEDS [RULES]]]
       python grid.py --table OUTPUT.json

EPSILONS and SEEDS are separated by commas, RULES by "; ". PREPARED is made by `prepare.py`, a
SETTING is a key of SETTINGS. Results are kept run by run, so a grid that is stopped goes on where
it was; several processes may fill several files.
"""

from __future__ import annotations

import itertools
import math
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from measures import attacked, choice_accuracy

from dpclip.noise.keystream import SecretKey
from dpclip.train.job import Job
from dpclip.train.run import start
from dpclip.train.settings import Settings

sys.path.append(str(Path(__file__).parents[2]))  # the project's root

from experiments.support import RunsFile, made_by, markdown_table, read_results

RL = "rl:interval={interval},controller="
RULES = {
    "flat": "flat:max_grad_norm=0.1",
    "flat, C = 1": "flat:max_grad_norm=1",
    "flat, C = 0.01": "flat:max_grad_norm=0.01",
    "flat, C = 10": "flat:max_grad_norm=10",
    "per layer": "per-layer:max_grad_norm=0.1",
    "AdaClip": "adaclip",
    "per layer, quantile": "per-layer-quantile:max_grad_norm=0.1,first_rate=2",
    "constant": RL + "constant",
    "random": RL + "random",
    "quantile": RL + "quantile",
    "agent, untaught": RL + "sac,policy=none",
    "agent": RL + "sac,policy=public",
    "agent, by layer": RL + "sac,policy=public,groups=layer",
}
E2E = {
    "data": "e2e_train.csv",
    "eval_data": "e2e_held_out.csv",
    "input_column": "mr",
    "target_column": "ref",
}
NOTES = {
    "data": "notes_train.csv",
    "eval_data": "notes_held_out.csv",
    "text_column": "text",
    "unit_column": "patient",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "e2e-builtin": {**E2E, "batch_size": 64, "steps": 24},
    "e2e-builtin-long": {**E2E, "batch_size": 64, "steps": 120},
    "notes-builtin": {**NOTES, "batch_size": 32, "steps": 24},
    "notes-builtin-long": {**NOTES, "batch_size": 32, "steps": 120},
    "e2e-wikitext-lora": {
        **E2E,
        "batch_size": 64,
        "steps": 24,
        "model": "wikitext-gpt2-4x256",
        "lora": 8,
    },
    "e2e-wikitext": {**E2E, "batch_size": 64, "steps": 24, "model": "wikitext-gpt2-4x256"},
    "notes-wikitext": {**NOTES, "batch_size": 32, "steps": 24, "model": "wikitext-gpt2-4x256"},
    "notes-wikitext-lora": {
        **NOTES,
        "batch_size": 32,
        "steps": 24,
        "model": "wikitext-gpt2-4x256",
        "lora": 8,
    },
}
RATES = {f"{text}-builtin{length}": 0.006 for text in ("e2e", "notes") for length in ("", "-long")}
INTERVAL = 4
COLUMNS = (
    "perplexity",
    "over flat's",
    "over `quantile`'s",
    "agent's steps to it",
    "choice",
    "membership",
    "exposure",
)


class Quiet:
    """Keeps the job and the held-out curve."""

    def __init__(self) -> None:
        self.curve: list[tuple[int, float]] = []

    def on_plan(self, job: Job, spend: list[tuple[int, float]], folder: Path | None) -> None:
        self.job = job

    def on_evaluate(self, step: int, metric: str, value: float) -> None:
        self.curve.append((step, value))

    def on_step(self, step: int, epsilon: float, values: dict[str, float]) -> None:
        self.last = values

    def log(self, message: str) -> None:
        print(message, file=sys.stderr)


def settings_of(prepared: Path, setting: str, rule: str, epsilon: float, seed: int) -> Settings:
    """One run's settings."""
    chosen = dict(SETTINGS[setting])
    for key in ("data", "eval_data", "model"):
        if key in chosen:
            chosen[key] = str(prepared / chosen[key])
    clipping = RULES.get(rule, rule).format(interval=INTERVAL)
    return Settings(
        epsilon=epsilon,
        delta=1e-5,
        seed=seed,
        clipping=clipping,
        eval_every=INTERVAL,
        lr=RATES.get(setting),
        **chosen,
    )


def run(prepared: Path, setting: str, rule: str, epsilon: float, seed: int) -> dict[str, Any]:
    """Train, measure, attack."""
    with tempfile.TemporaryDirectory() as folder:
        listener, began = Quiet(), time.process_time()
        settings = settings_of(prepared, setting, rule, epsilon, seed)
        key = SecretKey.for_tests(seed)  # runs of a seed are compared with one another
        outcome = start(settings, Path(folder) / "run", listener, key=key)
        cpu = time.process_time() - began
        shutil.rmtree(folder, ignore_errors=True)
    job, model = listener.job, listener.job.loaded.model
    model.eval()
    return {
        "perplexity": outcome.after,
        "before": outcome.before,
        "curve": listener.curve,
        "epsilon": outcome.statement["guarantee"]["epsilon"],
        "noise": job.plan.noise_multiplier,
        "choice": choice_accuracy(model, job, prepared, setting),
        **attacked(model, job, prepared, setting),
        "cpu_s": round(cpu, 1),
    }


def fill(
    prepared: Path,
    setting: str,
    output: Path,
    epsilons: list[float],
    seeds: list[int],
    rules: list[str],
) -> None:
    """Runs that are missing; seeds outermost."""
    made = made_by(f"python grid.py PREPARED {setting} {output.name}", "torch", "transformers")
    settings = {**SETTINGS[setting], "lr": RATES.get(setting), "interval": INTERVAL}
    file = RunsFile(output, made | {"settings": settings})
    for seed in seeds:
        for epsilon in epsilons:
            for rule in rules:
                key = f"{rule}|{epsilon:g}|{seed}"
                file.add(key, run, prepared, setting, rule, epsilon, seed)


def interval_of(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval (Student's t)."""
    from scipy.stats import t

    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean, float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))


def steps_to(curve: list[list[float]], goal: float) -> float:
    """When perplexity first reached the goal, interpolated in log perplexity; infinite if it never
    did.
    """
    for (before, high), (after, low) in itertools.pairwise(curve):
        if low <= goal < high:
            part = math.log(high / goal) / math.log(high / low)
            return before + part * (after - before)
    return 0.0 if curve[0][1] <= goal else math.inf


def table(output: Path) -> str:
    """Markdown: for each budget and rule, means with 95 % intervals; ratios to two rules, seed by
    seed.
    """
    runs = read_results(output)["runs"]
    found: dict[tuple[float, str], dict[int, dict[str, Any]]] = {}
    for key, value in runs.items():
        rule, epsilon, seed = key.split("|")
        found.setdefault((float(epsilon), rule), {})[int(seed)] = value
    tables = []
    for epsilon in sorted({epsilon for epsilon, _ in found}):
        rows = [_row(found, epsilon, rule) for e, rule in found if e == epsilon]
        tables.append(markdown_table([f"ε = {epsilon:g}", *COLUMNS], rows) + "\n")
    return "\n".join(tables)


def _row(
    found: dict[tuple[float, str], dict[int, dict[str, Any]]], epsilon: float, rule: str
) -> list[str]:
    own = found[epsilon, rule]

    def shown(values: list[float], digits: int) -> str:
        mean, half = interval_of(values) if values else (math.nan, math.nan)
        return (
            f"{mean:.{digits}f} ± {half:.{digits}f}"
            if math.isfinite(half)
            else f"{mean:.{digits}f}"
        )

    def ratio(to: str) -> str:
        other = found.get((epsilon, to), {})
        return shown([own[s]["perplexity"] / other[s]["perplexity"] for s in own if s in other], 3)

    agent = found.get((epsilon, "agent"), {})
    soon = [
        steps_to(agent[s]["curve"], own[s]["perplexity"]) / own[s]["curve"][-1][0]
        for s in own
        if s in agent
    ]
    return [
        rule,
        shown([r["perplexity"] for r in own.values()], 2),
        ratio("flat"),
        ratio("quantile"),
        f"{100 * sorted(soon)[len(soon) // 2]:.0f} %" if soon else "",
        shown([100 * r["choice"] for r in own.values()], 1) + " %",
        *(
            shown([r[name] for r in own.values()], digits)
            for name, digits in (("membership", 3), ("exposure", 2))
        ),
    ]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if sys.argv[1] == "--table":
        print(table(Path(sys.argv[2])))
    else:
        prepared, setting, output, *more = sys.argv[1:]
        epsilons = [float(e) for e in more[0].split(",")] if more else [0.5, 2.0, 8.0]
        seeds = [int(s) for s in more[1].split(",")] if len(more) > 1 else [1, 2, 3]
        rules = more[2].split("; ") if len(more) > 2 else list(RULES)
        fill(Path(prepared), setting, Path(output), epsilons, seeds, rules)
